"""One attested key release in a process of its own, which reports what it touched.

Reads a JSON object from standard input: ``path`` (all of ``sys.path`` beside the standard library),
``egress``, ``root`` (hex), ``watch`` (a folder). Writes one: ``key``, ``watched``, ``sockets``.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    order = json.load(sys.stdin)
    watched: list[str] = []
    sockets: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(order["watch"]):
            watched.append(str(arguments[0]))
        if event == "socket.connect":
            sockets.append(str(arguments[1]))
        elif event in {"socket.getaddrinfo", "socket.sendto"}:
            sockets.append(event)

    sys.addaudithook(audit)
    sys.path.extend(order["path"])
    key = release(order)
    json.dump({"key": key.hex(), "watched": watched, "sockets": sockets}, sys.stdout)


def release(order: dict[str, Any]) -> bytes:
    from casemate.attestation.structures import KmsConfiguration  # noqa: PLC0415 - after the hook
    from casemate.channel import UnixAddress  # noqa: PLC0415
    from casemate.kms_context import data_context  # noqa: PLC0415
    from casemate_kms.client import AttestedKms  # noqa: PLC0415
    from casemate_kms.egress import dialer  # noqa: PLC0415
    from tests.support.kms_endpoint import ARN, REGION, FakeAttester  # noqa: PLC0415

    configuration = KmsConfiguration("aws", (REGION,), (bytes.fromhex(order["root"]),))
    kms = AttestedKms(configuration, FakeAttester(), dialer(UnixAddress(order["egress"])))
    kms.set_credentials("AKIDEXPLICIT", "explicit", None, None)
    try:
        return kms.decrypt(
            key_arn=ARN,
            ciphertext_blob=b"wrapped",
            context=data_context("clinic.example"),
            deadline=time.monotonic() + 20,
        )
    finally:
        kms.close()


if __name__ == "__main__":
    main()
