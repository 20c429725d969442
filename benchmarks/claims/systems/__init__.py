"""One module per system: its claims, and the experiment that confirms or refutes each."""
