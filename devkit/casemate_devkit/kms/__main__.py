"""``casemate-kms-double``: the double as a process of its own."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from casemate.termination import Termination
from casemate_devkit.kms.faults import ENVIRONMENT, KINDS
from casemate_devkit.kms.principals import load_principals
from casemate_devkit.kms.server import KmsServer

_DIGEST_HEX = 64


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; prints one JSON line once the port is open."""
    options = _options().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="kms-double: %(message)s")
    try:
        server = _server(options)
    except (OSError, ValueError) as error:
        print(f"casemate-kms-double: {error}", file=sys.stderr)
        return 2
    termination = Termination()
    threading.Thread(target=server.serve_forever, name="kms", daemon=True).start()
    _announce(server, options)
    termination.wait()
    server.stop()
    return 0


def _options() -> argparse.ArgumentParser:
    faults = "\n".join(f"  {kind:<18} {text[0]}" for kind, text in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="casemate-kms-double",
        description=main.__doc__,
        epilog=f"faults:\n{faults}\n\nAlso from {ENVIRONMENT}, and from DIRECTORY/faults.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--directory", type=Path, required=True, help="CA, keys, audit trail")
    parser.add_argument(
        "--nitro-root", action="append", default=[], metavar="SHA256HEX", type=_digest
    )
    parser.add_argument("--nitro-root-cert", action="append", default=[], type=Path)
    parser.add_argument("--principals", type=Path, required=True, help="JSON list")
    parser.add_argument("--region", action="append", default=[], help="default: eu-central-1")
    parser.add_argument(
        "--address",
        default="127.0.0.1",
        help="where to listen; another than loopback only on a network that is closed",
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--fault", action="append", default=[], metavar="KIND[=VALUE][*TIMES][@OPERATION]"
    )
    parser.add_argument("--ready-file", type=Path, help="gets the JSON line, too")
    return parser


def _digest(text: str) -> bytes:
    value = bytes.fromhex(text)
    if len(text) != _DIGEST_HEX:
        msg = "not 64 hex digits"
        raise ValueError(msg)
    return value


def _certificate_digest(path: Path) -> bytes:
    data = path.read_bytes()
    pem = data.startswith(b"-----BEGIN")
    load = x509.load_pem_x509_certificate if pem else x509.load_der_x509_certificate
    return hashlib.sha256(load(data).public_bytes(Encoding.DER)).digest()


def _server(options: argparse.Namespace) -> KmsServer:
    options.directory.mkdir(parents=True, exist_ok=True)
    certificates = [_certificate_digest(path) for path in options.nitro_root_cert]
    return KmsServer(
        options.directory,
        roots=frozenset([*options.nitro_root, *certificates]),
        principals=load_principals(options.principals),
        regions=options.region or ["eu-central-1"],
        address=options.address,
        port=options.port,
        faults=[*os.environ.get(ENVIRONMENT, "").split(","), *options.fault],
    )


def _announce(server: KmsServer, options: argparse.Namespace) -> None:
    ready = {
        "port": server.server_address[1],
        "ca_pem": str((options.directory / "ca.pem").absolute()),
        "ca_der": str((options.directory / "ca.der").absolute()),
        "regions": list(server.regions.values()),
    }
    line = json.dumps(ready)
    if options.ready_file is not None:
        partial = options.ready_file.with_suffix(".partial")
        partial.write_text(line + "\n", encoding="utf-8")
        partial.replace(options.ready_file)
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
