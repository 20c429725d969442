"""The hoisted form: a weight program beside the user's own module."""
