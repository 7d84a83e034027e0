"""Enclave image files, EIF (SPEC 4.4): built reproducibly from a staged tree, in Python alone."""
