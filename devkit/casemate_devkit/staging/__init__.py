"""The parts of a staged tree (SPEC 4.1): runtime, packages, application."""
