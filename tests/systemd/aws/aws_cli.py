#!/usr/bin/python3
"""Stands in for ``aws configure export-credentials --format process`` with an instance's role."""

import sys
from pathlib import Path

if sys.argv[1:] != ["configure", "export-credentials", "--format", "process"]:
    sys.exit(252)
print(Path("/srv/checkout/role.json").read_text())
