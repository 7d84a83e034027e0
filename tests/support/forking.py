"""A program that asks, forks, and asks in both processes: ``TARGET ROOT`` (hex)."""

from __future__ import annotations

import os
import sys
import traceback

import numpy as np

from casemate.client import Client, sessions
from tests.support import evidence as made
from tests.support.nitro_pki import NOW

X = np.array([1.5, -2.0], np.float32)


def main(target: str, root: str) -> int:
    """Ask three times; return how the child ended."""
    sessions._now = lambda: NOW
    with Client(target, made.policy(roots=frozenset([bytes.fromhex(root)]))) as client:
        client.infer("wdbc", {"x": X})
        child = os.fork()
        if not child:
            try:
                client.infer("wdbc", {"x": X}, timeout_s=20)
            except BaseException:  # noqa: BLE001 - the child ends here, whatever it was
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        client.infer("wdbc", {"x": X})
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
