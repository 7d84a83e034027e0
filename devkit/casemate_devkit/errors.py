"""What goes wrong with the developer's tools themselves, told to the person who runs them."""

from __future__ import annotations


class DevkitError(Exception):
    """A tool cannot do what it was asked; the message says what is missing and what to do."""
