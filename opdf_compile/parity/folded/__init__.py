"""Whether the fold happened: what a file may not hold, or may not be, whatever it computes."""
