"""The pairs of verdicts.py, of which the right verdict is known, and the rates of its verdicts."""
