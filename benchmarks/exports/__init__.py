"""The models of parity.py: how they are built, trained for a moment, folded, exported, drawn."""
