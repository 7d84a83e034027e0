"""``python -m casemate_devkit.measure TREE``: its registers, for each party to compute itself."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.errors import CasemateError
from casemate_devkit import cmdline
from casemate_devkit.enclave_process import measure
from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the registers as one JSON object; 1 if the tree cannot be measured."""
    parser = argparse.ArgumentParser(prog="python -m casemate_devkit.measure")
    parser.add_argument("tree", type=Path, metavar="TREE")
    parser.add_argument("--form", choices=cmdline.FORMS, default=cmdline.PROCESS)
    options = parser.parse_args(arguments)
    try:
        measured = measure(options.tree, options.form)
    except (DevkitError, CasemateError, OSError) as error:
        print(f"measure: {error}", file=sys.stderr)
        return 1
    print(
        json.dumps(
            {"pcr0": measured.pcr0.hex(), "pcr1": measured.pcr1.hex(), "pcr2": measured.pcr2.hex()}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
