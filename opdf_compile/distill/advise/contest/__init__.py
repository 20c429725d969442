"""The referee: any number of ways to train against the plain student, by steps and by time."""
