"""What check data is made of: samples, the model's answers, and the truth in float64."""
