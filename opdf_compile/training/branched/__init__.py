"""The module form of branches: beside the student's own modules while it trains."""
