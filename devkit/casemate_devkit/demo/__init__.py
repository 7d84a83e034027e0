"""The demonstration: the whole promise, on real data, with real processes."""
