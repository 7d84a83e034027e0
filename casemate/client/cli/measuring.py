"""`casemate measure`: the registers of a release, and the policy that accepts it (SPEC 4, 12)."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from casemate.attestation import Measurement, measure_tree
from casemate.attestation.cmdline import FORMS, INTERPRETER, PROCESS, enclave_cmdline
from casemate.attestation.eif import measure_eif
from casemate.client.cli.group import existing, json_option, new, warn
from casemate.client.cli.tables import printable, tree
from casemate.client.inspection import image
from casemate.client.release import Measured, PolicyTerms, extended_policy, new_policy
from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    from casemate.attestation import TrustPolicy

_Result = tuple[dict[str, Any], Measurement, bytes | None]  # what to show; registers; PCR8

_BOOT: Final = "app/boot.py"
_ROOT_HELP: Final = "Accepted attestation root: SHA-256 of its DER. May be repeated."
_MODEL_HELP: Final = "Accepted model and its publisher's key. May be repeated."
_OPTION: Final = {"roots": "root", "models": "model"}


@dataclass(frozen=True, slots=True)
class _Terms:
    """What the options say of the policy to write."""

    release: str | None
    configuration: Path | None
    extend: Path | None
    audience: str | None
    roots: tuple[str, ...]
    models: tuple[str, ...]
    pin_signer: bool

    def check(self, *, wanted: bool) -> None:
        """Refuse options that do not fit together; ``wanted``: a policy is to be written."""
        given = {name for name in self.__slots__ if getattr(self, name)}
        if not wanted:
            if given:
                raise click.UsageError("these options describe a policy: name it with --policy-out")
            return
        whole = {"audience", "roots", "models"}
        missing = {"release", "configuration"} - given
        missing |= set() if self.extend else whole - given
        if missing:
            names = ", ".join(sorted(f"--{_OPTION.get(name, name)}" for name in missing))
            raise click.UsageError(f"--policy-out needs {names}")
        if self.extend and given & whole:
            raise click.UsageError("--extend takes audience, roots and models from the policy")

    def policy(self, image: Measurement, pcr8: bytes | None) -> TrustPolicy:
        """Return the policy; raises CasemateError."""
        if self.release is None or self.configuration is None:
            raise RuntimeError("checked before")
        if self.pin_signer and pcr8 is None:
            raise CasemateError(Code.INVALID_ARGUMENT, "no signature over this image's PCR0")
        signer = pcr8 if self.pin_signer else None
        measured = Measured(self.release, image, self.configuration.read_bytes(), signer)
        if self.extend is not None:
            return extended_policy(self.extend, measured)
        return new_policy(PolicyTerms.parse(self.audience or "", self.roots, self.models), measured)


@click.command(short_help="Compute the registers of a release, and a policy for it.")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--form", type=click.Choice(FORMS), help="How a staged tree is run; else `process`.")
@click.option("--policy-out", type=new, help="Write a trust policy that accepts this release.")
@click.option("--release", metavar="NAME", help="What the policy calls this release.")
@click.option("--configuration", type=existing, help="The service's configuration: gives PCR16.")
@click.option("--extend", type=existing, help="Add the release to this policy, as a new file.")
@click.option("--audience", help="The service that is meant.")
@click.option("--root", "roots", multiple=True, metavar="SHA256", help=_ROOT_HELP)
@click.option("--model", "models", multiple=True, metavar="NAME=PUBLISHERHEX", help=_MODEL_HELP)
@click.option("--pin-signer", is_flag=True, help="Demand PCR8, who signed the image, as well.")
@json_option
def measure(
    path: Path,
    form: str | None,
    policy_out: Path | None,
    release: str | None,
    configuration: Path | None,
    extend: Path | None,
    audience: str | None,
    roots: tuple[str, ...],
    models: tuple[str, ...],
    pin_signer: bool,
    as_json: bool,
) -> None:
    """Measure PATH, an enclave image (EIF) or a staged tree: what PCR0, PCR1 and PCR2 must be.

    With --policy-out, write a policy that accepts exactly this release with one configuration. It
    wants fresh evidence of at most 300 seconds; edit it where that is not right. With --extend it
    accepts the releases of another policy too, as a rolling upgrade needs.
    """
    terms = _Terms(release, configuration, extend, audience, roots, models, pin_signer)
    terms.check(wanted=policy_out is not None)
    facts, measured, pcr8 = measure_path(path, form)
    if policy_out is not None:
        policy = terms.policy(measured, pcr8)
        with policy_out.open("x") as file:  # a policy is replaced on purpose, never by the way
            file.write(policy.to_toml())
        facts["policy"] = str(policy_out)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.secho(f"{facts.pop('kind')}: {printable(str(path))}", bold=True)
    click.echo("\n".join(tree(facts)))


def measure_path(path: Path, form: str | None) -> _Result:
    """Measure an image or a staged tree: what to show, its registers, PCR8 if it is signed."""
    return _measure_tree(path, form) if path.is_dir() else _measure_image(path, form)


def _measure_tree(root: Path, form: str | None) -> _Result:
    for name in (INTERPRETER[1:], _BOOT):
        if not (root / name).exists():
            raise CasemateError(Code.INVALID_ARGUMENT, f"{root} is no staged tree: no {name}")
    line = enclave_cmdline(form or PROCESS)
    measured = measure_tree(root, line)
    facts = {
        "kind": "staged tree",
        "form": form or PROCESS,
        "pcr0": measured.pcr0.hex(),
        "pcr1": measured.pcr1.hex(),
        "pcr2": measured.pcr2.hex(),
        "command_line": " ".join(line),
    }
    return facts, measured, None


def _measure_image(path: Path, form: str | None) -> _Result:
    if form is not None:
        raise click.UsageError("--form is for staged trees; an image has one form")
    with path.open("rb") as file:
        measured = measure_eif(file, now=time.time_ns() // 1_000_000)
    for problem in measured.signature.problems if measured.signature else ():
        warn(f"signature: {problem}")
    facts = {"kind": "enclave image", **image(measured)}
    return facts, Measurement(measured.pcr0, measured.pcr1, measured.pcr2), measured.pcr8
