"""Numbers: the candidate's outputs against a float64 truth, within a derived tolerance."""
