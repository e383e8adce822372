"""Image in, inversion out: the only place where pictures meet networks."""
