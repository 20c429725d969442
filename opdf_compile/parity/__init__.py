"""Structure, numerics and latency of an export against the untouched student's."""
