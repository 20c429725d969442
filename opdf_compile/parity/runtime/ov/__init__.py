"""OpenVINO: compiled models, runs on shared tensors, and the graph that it runs."""
