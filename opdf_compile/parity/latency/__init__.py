"""Time: paired blocks of interleaved sessions, the interval of their ratio, and the rule."""
