"""The report: a value with a verdict, and its forms for machines and people."""
