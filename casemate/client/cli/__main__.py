"""``python -m casemate.client.cli``."""

from casemate.client.cli import main

main()
