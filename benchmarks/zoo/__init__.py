"""The zoo: real architectures through the whole pipeline, one process each."""
