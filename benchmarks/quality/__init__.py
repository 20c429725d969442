"""The study: does over-parameterisation make distilled students better, and where."""
