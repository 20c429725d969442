"""The inline form: the compose subgraph sits in the forward graph."""
