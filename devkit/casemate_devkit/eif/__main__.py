"""``python -m casemate_devkit.eif``: build an enclave image, print what it measures.

The same staged tree, kernel, drivers and profile give the same file, wherever and whenever it is
built. Prints one JSON object. Exit status 1: something is missing, and no file was written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate.errors import CasemateError
from casemate_devkit.eif import policies, signing
from casemate_devkit.eif.build import Parts, build, measured
from casemate_devkit.eif.image import add_signature
from casemate_devkit.eif.profile import Profile
from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.attestation.eif import EifImage


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m casemate_devkit.eif", description=(__doc__ or "").partition("\n")[0]
    )
    path: dict[str, Any] = {"type": Path}
    add = parser.add_argument
    add("--profile", **path, required=True, help="docker/eif/nitro.toml, docker/eif/qemu.toml")
    add("--tree", **path, default=Path(".stage/tree"), help="what make stage built")
    add("--kernel", **path, required=True, help="the kernel's image")
    add("--drivers", **path, help="folder in which the profile's modules are, at any depth")
    add("--init", **path, help="a program instead of Casemate's init, as AWS's bootstrap has one")
    add("--output", **path, required=True, help="the image to write")
    signer = parser.add_argument_group("signature (PCR8)")
    signer.add_argument("--certificate", **path, help="the signer's, PEM")
    who = signer.add_mutually_exclusive_group()
    who.add_argument("--signing-key", **path, help="its private key, PEM")
    who.add_argument("--kms-signing-key", metavar="ARN", help="its private key in KMS")
    policy = parser.add_argument_group("policies that accept this image")
    policy.add_argument("--terms", **path, help="who is who: see docker/eif/README.md")
    policy.add_argument("--policies", **path, help="folder for trust.toml and key-NAME.json")
    return parser


def _key(options: argparse.Namespace) -> signing.Key | None:
    if options.signing_key is not None:
        return signing.FileKey.load(options.signing_key)
    if options.kms_signing_key is not None:
        return signing.KmsKey.open(options.kms_signing_key)
    return None


def _build(options: argparse.Namespace) -> EifImage:
    profile, key = Profile.load(options.profile), _key(options)
    if (key is None) != (options.certificate is None):
        raise DevkitError("a signature needs the certificate and its key")
    if (options.terms is None) != (options.policies is None):
        raise DevkitError("policies need --terms and --policies")
    parts = Parts(
        tree=options.tree, kernel=options.kernel, drivers=options.drivers, init=options.init
    )
    if key is None:
        return build(parts, profile, options.output)
    draft: Path = options.output.with_name(f".{options.output.name}.draft")
    try:
        found = build(parts, profile, draft)
        section = signing.section(key, options.certificate.read_bytes(), found.pcr0)
        add_signature(draft, profile.architecture, section)
        draft.replace(options.output)
    finally:
        draft.unlink(missing_ok=True)
    return measured(options.output)


def _describe(found: EifImage, written: list[Path]) -> str:
    registers = {"pcr0": found.pcr0, "pcr1": found.pcr1, "pcr2": found.pcr2, "pcr8": found.pcr8}
    shown: dict[str, object] = {
        name: value.hex() for name, value in registers.items() if value is not None
    }
    shown["sections"] = [{"name": name, "bytes": size} for name, size in found.sections]
    shown["problems"] = list(found.signature.problems) if found.signature else []
    shown["policies"] = [str(path) for path in written]
    return json.dumps(shown, indent=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        found = _build(options)
        written = policies.write(found, options.terms, options.policies) if options.terms else []
    except (DevkitError, CasemateError, OSError) as error:
        print(f"eif: {error}", file=sys.stderr)
        return 1
    print(_describe(found, written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
