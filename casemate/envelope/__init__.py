"""The sealed envelope (SPEC 5, 6): pure functions over bytes, without I/O and without a clock."""
