"""What a person types, sees and gets back."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.attestation import EvidenceBundle, TrustPolicy, measure_tree, parse_document
from casemate.attestation.cmdline import enclave_cmdline
from casemate.client.cli import main
from casemate.client.cli.tables import printable
from casemate.sealed_data import seal_data
from tests.support import eif_builder as eb
from tests.support import evidence as ev
from tests.support import nitro_pki as pki
from tests.support.cli import refusal, run, run_json
from tests.support.documents import TPM, VECTORS, genuine
from tests.support.fake_enclave import seal
from tests.support.nitro_pki import NOW
from tests.support.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_NOW = "2027-01-15T08:00:00Z"
HOSTILE = "\x1b[2Jcleared\r\n\u202egnp.exe\x07"
TPM_POLICY = f"""version = 1
platform = "nitrotpm"
roots = ["641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"]
maximum_age_seconds = 300

[[release]]
name = "ami-1"
pcr4 = "{{pcr4}}"
pcr12 = "{"00" * 48}"
"""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr("casemate.client.sessions._now", lambda: NOW)
    with Service() as running:
        yield running


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """One file of each kind."""
    (tmp_path / "trust.toml").write_text(ev.policy().to_toml())
    (tmp_path / "evidence.bin").write_bytes(ev.good().serialize())
    (tmp_path / "document.cbor").write_bytes(ev.good().attestation_document)
    (tmp_path / "configuration.cbor").write_bytes(ev.CONFIGURATION.encode())
    (tmp_path / "app.eif").write_bytes(eb.Eif().encode())
    (tmp_path / "tpm.toml").write_text(tpm_policy())
    seal(tmp_path / "model.sealed")
    (tmp_path / "rows.sealed").write_bytes(
        seal_data(
            b"content",
            data_key=bytes(32),
            wrapped_key=b"wrapped",
            kms_key="arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            audience="clinic",
            readers=[b"\xab" * 32],
            models=[b"\xcd" * 48],
        )
    )
    return tmp_path


def tpm_policy() -> str:
    return TPM_POLICY.format(pcr4=parse_document(genuine(TPM)).pcrs[4].hex())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("usr/bin/python3", "app/boot.py", "packages/numpy/__init__.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


# verify


def test_verify_a_host(service: Service, files: Path) -> None:
    result = run("verify", service.target, "--policy", files / "trust.toml")
    lines = result.stdout.splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [["✓", "1", "size"], ["✓", "2", "cose"]]
    assert "evidence verified" in lines[18]
    assert "✓ 10 nonce          the one issued, 32 bytes" in result.stdout
    assert "release" in result.stdout
    assert "load wdbc:2, digest aaaaaaaaaaaaaaaa..." in result.stdout
    assert result.stderr == ""


def test_every_passed_step_says_something(service: Service, files: Path) -> None:
    verdict = run_json("verify", service.target, "--policy", files / "trust.toml", "--json")
    details = {step["step"]: step["detail"] for step in verdict["steps"]}
    assert len(details) == 18
    assert all(details.values())
    root = ev.chain().root_sha256.hex()
    assert root[:16] in details["root"]
    assert "until 2027-01-15T10:00:00Z" in details["chain"]
    assert details["age"] == "0.0 s old, at most 300 s accepted"
    assert details["measurements"] == "PCR0, PCR1, PCR2 of release 0.1.0"
    assert ev.RELEASE.pcr16.hex()[:16] in details["configuration"]
    assert "valid until 2027-01-15T09:00:00Z" in details["keys"]
    assert "form process" in details["instance"]
    assert details["audience"] == ev.AUDIENCE
    assert "1 loaded" in details["models"]
    assert (verdict["verified"], verdict["live"], verdict["scope"]) == (True, True, "evidence")


def test_a_refused_host(service: Service, files: Path) -> None:
    service.on_evidence = lambda bundle: replace(bundle, measurement_log=b"\x80")
    arguments = ("verify", service.target, "--policy", files / "trust.toml")
    result = run(*arguments, code=1)
    assert "✗ 14 binding" in result.stdout
    assert "instance" not in result.stdout
    assert result.stderr == "Error: EVIDENCE_BINDING: user_data is not that of the bundle\n"
    verdict = run_json(*arguments, "--json", code=1)
    assert (verdict["verified"], verdict["code"]) == (False, "EVIDENCE_BINDING")
    assert verdict["steps"][-1]["outcome"] == "failed"


def test_nobody_answers(files: Path) -> None:
    arguments = ("verify", "127.0.0.1:1", "--policy", files / "trust.toml")
    assert "HOST_UNREACHABLE" in refusal(*arguments, code=3)
    verdict = run_json(*arguments, "--json", code=3)
    assert verdict == {**verdict, "verified": False, "code": "HOST_UNREACHABLE", "steps": []}


def test_evidence_is_kept_and_judged_again(service: Service, files: Path) -> None:
    kept, policy = files / "kept.bin", files / "trust.toml"
    run("verify", service.target, "--policy", policy, "--save", kept)
    result = run("verify", kept, "--policy", policy, "--at", AT_NOW)
    assert "- 10 nonce          no nonce of yours" in result.stdout
    assert f"evidence verified as of {AT_NOW}: an archive, not a live verdict" in result.stdout
    assert "not a live one" in result.stderr


def test_the_present_refuses_an_archive(files: Path) -> None:
    old = VECTORS / "20250829_bedrock_7743a3dd.cbor"
    (files / "aws.toml").write_text(
        ev.policy(roots=frozenset([bytes.fromhex(tpm_policy().split('"')[3])])).to_toml()
    )
    result = run("verify", old, "--policy", files / "aws.toml", code=1)
    assert "EVIDENCE_CHAIN" in result.stderr
    assert "expired" in result.stderr
    assert "without a nonce of yours" in result.stderr
    at_its_time = run("verify", old, "--policy", files / "aws.toml", "--at", "doc", code=1)
    assert "EVIDENCE_MEASUREMENTS: PCR0 and PCR1 and PCR2 differ" in at_its_time.stderr


def test_a_nonce_of_ones_own(files: Path) -> None:
    for name in ("evidence.bin", "document.cbor"):
        arguments = ("verify", files / name, "--policy", files / "trust.toml", "--at", "doc")
        result = run(*arguments, "--nonce", ev.NONCE.hex())
        assert "✓ 10 nonce          the one issued, 32 bytes" in result.stdout
        other = run(*arguments, "--nonce", "00" * 32, code=1)
        assert "EVIDENCE_NONCE" in other.stderr


def test_a_document_alone(files: Path) -> None:
    arguments = ("verify", files / "document.cbor", "--policy", files / "trust.toml")
    verdict = run_json(*arguments, "--at", "doc", "--json")
    outcomes = {step["number"]: step["outcome"] for step in verdict["steps"]}
    assert outcomes == {
        **dict.fromkeys(range(1, 13), "passed"),
        **dict.fromkeys((10, *range(13, 19)), "skipped"),
    }
    assert (verdict["scope"], verdict["release"], verdict["live"]) == ("document", "0.1.0", False)
    assert "models" not in verdict


def test_nitrotpm_documents_have_a_policy_of_their_own(files: Path) -> None:
    document = VECTORS / f"{TPM}.cbor"
    result = run("verify", document, "--policy", files / "tpm.toml", "--at", "doc")
    assert "PCR4, PCR12 of release ami-1" in result.stdout
    enclave = ("verify", document, "--policy", files / "trust.toml", "--at", "doc")
    assert "EVIDENCE_PLATFORM" in refusal(*enclave)
    for name in ("evidence.bin", "document.cbor"):
        swapped = ("verify", files / name, "--policy", files / "tpm.toml", "--at", "doc")
        assert "EVIDENCE_PLATFORM" in refusal(*swapped)
    live = ("verify", "127.0.0.1:1", "--policy", files / "tpm.toml")
    assert "EVIDENCE_PLATFORM" in refusal(*live)
    infer = ("infer", "127.0.0.1:1", "m", "--policy", files / "tpm.toml", "--input", "x=y.npy")
    assert "POLICY_INVALID" in refusal(*infer)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nowhere",), "neither a file nor host:port"),
        (("127.0.0.1:1", "--nonce", "00" * 16), "are for files"),
        (("127.0.0.1:1", "--at", "doc"), "are for files"),
        (("document.cbor", "--nonce", "xy"), "not hex digits"),
        (("document.cbor", "--at", "yesterday"), "not a time in RFC 3339"),
        (("document.cbor", "--at", "2027-01-15T08:00:00"), "time zone"),
        (("document.cbor", "--at", "1960-01-01T00:00:00Z"), "after 1970"),
        (("document.cbor", "--save", "x"), "is a file already"),
    ],
)
def test_wrong_usage(
    files: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], text: str
) -> None:
    monkeypatch.chdir(files)
    assert text in refusal("verify", *arguments, "--policy", "trust.toml", code=2)


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "1e30", "soon"])
@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("--timeout", ("infer", "127.0.0.1:1", "wdbc", "--input", "x=x.csv")),
        ("--timeout", ("models", "127.0.0.1:1")),
        ("--seconds", ("bench", "127.0.0.1:1", "wdbc", "--input", "x=x.csv")),
    ],
)
def test_times_out_of_bounds_are_wrong_usage(
    files: Path, option: str, arguments: tuple[str, ...], seconds: str
) -> None:
    policy = str(files / "trust.toml")
    assert option in refusal(*arguments, "--policy", policy, option, seconds, code=2)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("app.eif", "INVALID_ARGUMENT"),
        ("model.sealed", "INVALID_ARGUMENT"),
        ("trust.toml", "INVALID_ARGUMENT"),
        ("empty", "MALFORMED"),
        ("cut", "MALFORMED"),
        ("garbage", "EVIDENCE_COSE"),
        (".", "INVALID_ARGUMENT"),
    ],
)
def test_files_that_are_no_evidence(files: Path, name: str, code: str) -> None:
    (files / "empty").write_bytes(b"")
    (files / "cut").write_bytes((files / "evidence.bin").read_bytes()[:-1])
    (files / "garbage").write_bytes(b"\x84garbage")
    arguments = ("verify", files / name, "--policy", files / "trust.toml")
    assert code in refusal(*arguments)
    assert run_json(*arguments, "--json", code=1)["code"] == code


def test_a_policy_that_does_not_load(files: Path) -> None:
    for text in ("", "version = 2", "x" * 300_000, "\x00", "a=[" * 5000):
        (files / "bad.toml").write_text(text)
        line = refusal("verify", files / "document.cbor", "--policy", files / "bad.toml")
        assert "POLICY_INVALID" in line


# inspect


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("document.cbor", "attestation document", "PCR16"),
        ("evidence.bin", "evidence bundle", "7306c6d2"),
        ("model.sealed", "sealed model", "model.onnx"),
        ("rows.sealed", "sealed data", "abab"),
        ("app.eif", "enclave image", "ramdisk"),
        ("configuration.cbor", "configuration", "minimum versions"),
        ("trust.toml", "trust policy", "0.1.0"),
        ("tpm.toml", "trust policy", "ami-1"),
    ],
)
def test_inspect_shows_each_kind_whatever_its_name(
    files: Path, name: str, kind: str, text: str
) -> None:
    renamed = (files / name).rename(files / "file")
    shown = run("inspect", renamed).stdout
    assert shown.startswith(f"{kind}: ")
    assert text in shown
    assert "verified" not in shown.replace("UNVERIFIED", "")
    assert run_json("inspect", renamed, "--json")["kind"] == kind


def test_inspect_says_that_nothing_is_verified(files: Path) -> None:
    for name in ("document.cbor", "evidence.bin", "model.sealed", "configuration.cbor"):
        assert "UNVERIFIED" in run("inspect", files / name).stdout.splitlines()[1]
        assert "UNVERIFIED" in run_json("inspect", files / name, "--json")["note"]


def test_inspect_of_genuine_documents(files: Path) -> None:
    for path in sorted(VECTORS.glob("*.cbor")):
        assert "aws.nitro-enclaves" in run("inspect", path).stdout


def test_a_broken_part_does_not_hide_the_others(files: Path) -> None:
    bundle = replace(ev.good(), configuration=b"\xa1", instance_config=b"")
    (files / "broken").write_bytes(bundle.serialize())
    shown = run_json("inspect", files / "broken", "--json")
    assert "EVIDENCE_CONFIGURATION" in shown["configuration"]["unreadable"]
    assert shown["models"][0]["name"] == "wdbc"


def test_metadata_of_an_image_is_not_shown(files: Path) -> None:
    """A33: it is neither measured nor signed, so anybody may have written it."""
    sections = [*eb.standard(), (eb.RAMDISK, b"x")]
    sections[2] = (eb.METADATA, b'{"ImageName":"planted-name"}')
    (files / "app.eif").write_bytes(eb.Eif(sections).encode())
    for command in ("inspect", "measure"):
        for option in ((), ("--json",)):
            assert "planted-name" not in run(command, files / "app.eif", *option).output


def test_control_characters_are_escaped(files: Path) -> None:
    hostile = pki.document(ev.chain(), module_id=HOSTILE, pcrs=ev.pcrs(), nonce=ev.NONCE)
    (files / "hostile").write_bytes(hostile)
    policy = ("--policy", files / "trust.toml", "--at", "doc")
    outputs = [
        run("inspect", files / "hostile").output,
        run("inspect", files / "hostile", "--json").output,
        run("verify", files / "hostile", *policy).output,
        run("verify", files / "hostile", *policy, "--json").output,
    ]
    for output in outputs:
        assert "cleared" in output
        assert not {"\x1b", "\r", "\u202e", "\x07"} & set(output)


def test_a_hosts_words_are_escaped(service: Service, files: Path) -> None:
    def refuse(_: EvidenceBundle) -> EvidenceBundle:
        raise RuntimeError(HOSTILE)

    service.on_evidence = refuse
    output = run("verify", service.target, "--policy", files / "trust.toml", code=3).output
    assert "cleared" in output
    assert not {"\x1b", "\r", "\u202e", "\x07"} & set(output)


@given(st.text())
def test_printable_text_is_one_line_of_visible_characters(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text


_SEEDS = [
    ev.good().serialize(),
    ev.good().attestation_document,
    ev.CONFIGURATION.encode(),
    ev.policy().to_toml().encode(),
    eb.Eif().encode(),
    b"CASEMDL2\x00\x00\x00\x10" + bytes(100),
    *(path.read_bytes() for path in sorted(VECTORS.glob("2025*.cbor"))),
]


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """Arbitrary bytes, or a good file with some of it replaced."""
    if draw(st.booleans()):
        heads = st.sampled_from([b"", b".eif", b"CASEMDL2", b"\x84", b"\xd2", b"\xa7", b"\n"])
        return draw(heads) + draw(st.binary(max_size=400))
    seed = draw(st.sampled_from(_SEEDS))
    at = draw(st.integers(0, len(seed)))
    return seed[:at] + draw(st.binary(max_size=8)) + seed[at + draw(st.integers(0, 8)) :]


@settings(max_examples=150, deadline=None)
@given(spoilt())
def test_inspect_and_verify_never_crash(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(data)
        Path(folder, "trust.toml").write_text(ev.policy().to_toml())
        for arguments in (
            ["inspect", path],
            ["verify", path, "--policy", Path(folder, "trust.toml"), "--at", AT_NOW, "--json"],
        ):
            assert ended(*map(str, arguments)) in {0, 1}


def ended(*arguments: str) -> int:
    """Run without click's test runner, which is slow; return the exit code."""
    out, err = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = io.StringIO()
    try:
        main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.stdout, sys.stderr = out, err
    raise AssertionError("click always exits")


# measure


def test_measure_an_image(files: Path) -> None:
    measured = run_json("measure", files / "app.eif", "--json")
    expected = [register.hex() for register in eb.registers(eb.standard())]
    assert [measured[name] for name in ("pcr0", "pcr1", "pcr2")] == expected
    assert measured["pcr8"] is None
    assert expected[0] in run("measure", files / "app.eif").stdout


def test_measure_warns_of_a_signature_that_does_not_hold(files: Path) -> None:
    image = eb.signed(eb.Signer().entry(bytes(48)))
    (files / "signed.eif").write_bytes(image.encode())
    result = run("measure", files / "signed.eif")
    assert "warning: signature: the signature is not this certificate's" in result.stderr
    assert "pcr8          none" in result.stdout


@pytest.mark.parametrize("form", ["process", "container", "unsafe-process"])
def test_measure_a_tree(tree: Path, form: str) -> None:
    expected = measure_tree(tree, enclave_cmdline(form))
    measured = run_json("measure", tree, "--form", form, "--json")
    assert measured["pcr0"] == expected.pcr0.hex()
    assert measured["form"] == form
    assert (run_json("measure", tree, "--json") == measured) is (form == "process")


def test_measure_refuses_what_is_no_tree_and_no_image(files: Path, tree: Path) -> None:
    assert "no staged tree" in refusal("measure", files)
    assert "no enclave image" in refusal("measure", files / "evidence.bin")
    os.mkfifo(tree / "fifo")
    assert "EVIDENCE_MEASUREMENTS" in refusal("measure", tree)
    line = refusal("measure", files / "app.eif", "--form", "process", code=2)
    assert "--form is for staged trees" in line


def policy_terms(files: Path) -> tuple[str | Path, ...]:
    return (
        *("--release", "0.2.0", "--configuration", files / "configuration.cbor"),
        *("--policy-out", files / "new.toml"),
    )


def whole_terms() -> tuple[str, ...]:
    return (
        *("--audience", ev.AUDIENCE, "--root", ev.chain().root_sha256.hex()),
        *("--model", f"wdbc={ev.PUBLISHER.hex()}"),
    )


def test_a_policy_for_a_measured_release(files: Path, tree: Path) -> None:
    run("measure", tree, *policy_terms(files), *whole_terms())
    written = TrustPolicy.load(files / "new.toml")
    measured = measure_tree(tree, enclave_cmdline("process"))
    release = replace(
        ev.RELEASE, name="0.2.0", pcr0=measured.pcr0, pcr1=measured.pcr1, pcr2=measured.pcr2
    )
    assert written == ev.policy(releases=(release,))


def test_a_policy_is_never_overwritten(files: Path) -> None:
    arguments = ("measure", files / "app.eif", *policy_terms(files), *whole_terms())
    run(*arguments)
    before = (files / "new.toml").read_text()
    assert "new.toml: File exists" in refusal(*arguments)
    assert (files / "new.toml").read_text() == before


def test_extending_a_policy_accepts_both_releases(files: Path) -> None:
    extend = ("--extend", files / "trust.toml")
    run("measure", files / "app.eif", *policy_terms(files), *extend)
    written = TrustPolicy.load(files / "new.toml")
    assert [release.name for release in written.releases] == ["0.1.0", "0.2.0"]
    image = dict(enumerate(eb.registers(eb.standard())))
    upgraded = ev.good(pcrs=ev.pcrs() | image)
    assert ev.judge(upgraded, written).evidence.release == "0.2.0"
    assert ev.judge(ev.good(), written).evidence.release == "0.1.0"


def test_extending_numbered_releases_goes_on_counting(files: Path) -> None:
    numbered = ev.policy(releases=(replace(ev.RELEASE, number=7),), minimum_release=7)
    (files / "trust.toml").write_text(numbered.to_toml())
    run("measure", files / "app.eif", *policy_terms(files), "--extend", files / "trust.toml")
    written = TrustPolicy.load(files / "new.toml")
    assert [release.number for release in written.releases] == [7, 8]
    assert "minimum release      7" in run("inspect", files / "new.toml").stdout


def test_pinning_the_signer(files: Path) -> None:
    signer = eb.Signer()
    signed = eb.signed(signer.entry(eb.registers(eb.standard())[0]))
    (files / "signed.eif").write_bytes(signed.encode())
    terms = (*policy_terms(files), *whole_terms(), "--pin-signer")
    assert "no signature" in refusal("measure", files / "app.eif", *terms)
    assert not (files / "new.toml").exists()
    run("measure", files / "signed.eif", *terms)
    assert TrustPolicy.load(files / "new.toml").releases[0].pcr8 == signer.pcr8
    assert signer.pcr8.hex() in run("inspect", files / "new.toml").stdout


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (("--release", "1"), "name it with --policy-out", 2),
        (("--policy-out", "p"), "needs --audience", 2),
        (("--audience", "else"), "audience", 1),
        (("--root", "xy"), "root", 1),
        (("--root", "00"), "POLICY_INVALID", 1),
        (("--model", "wdbc"), "NAME=PUBLISHER", 1),
        (("--model", "wdbc=00"), "not a public key", 1),
        (("--model", f"other={'11' * 32}"), "publisher of model other", 1),
        (("--extend", "trust.toml"), "--extend takes", 2),
        (("--configuration", "trust.toml"), "EVIDENCE_CONFIGURATION", 1),
        (("--release", "no name"), "POLICY_INVALID", 1),
    ],
)
def test_policies_that_are_not_written(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    text: str,
    code: int,
) -> None:
    monkeypatch.chdir(files)
    whole: tuple[str | Path, ...] = (*policy_terms(files), *whole_terms())
    if code == 2 and arguments[0] != "--extend":
        whole = ()
    assert text in refusal("measure", "app.eif", *whole, *arguments, code=code)
    assert not (files / "new.toml").exists()
    assert not (files / "p").exists()


# keygen, infer, seal-model


def test_keygen(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    public = run("keygen", path).stdout.strip()
    assert len(bytes.fromhex(public)) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    assert "File exists" in refusal("keygen", path)
    assert path.read_bytes() == before
    assert "No such file" in refusal("keygen", tmp_path / "none" / "key.pem")


def test_infer_prints_the_answer(service: Service, files: Path) -> None:
    np.save(files / "x.npy", np.array([1.5, -2.0], np.float32))
    run("keygen", files / "key.pem")
    answer = run_json(
        *("infer", service.target, "wdbc", "--policy", files / "trust.toml"),
        *("--input", f"x={files / 'x.npy'}", "--caller-key", files / "key.pem"),
    )
    assert answer["outputs"]["x"]["data"] == [3.0, -4.0]
    assert service.callers != [None]


@pytest.mark.parametrize("item", ["x", "=x.npy", "x=", "x=absent.npy", "x=trust.toml"])
def test_infer_with_inputs_that_are_none(service: Service, files: Path, item: str) -> None:
    arguments = ("infer", service.target, "wdbc", "--policy", files / "trust.toml")
    assert "INVALID_ARGUMENT" in refusal(*arguments, "--input", item)
    assert service.requests == []


def test_seal_model_needs_callers_and_a_model(files: Path) -> None:
    run("keygen", files / "key.pem")
    arguments = (
        *("seal-model", files / "trust.toml", files / "out", "--name", "m", "--version", "1"),
        *("--publisher-key", files / "key.pem", "--kms-key", "arn"),
    )
    assert "name the callers" in refusal(*arguments)
    assert "not a public key" in refusal(*arguments, "--caller", "x")
    run(*arguments, "--caller", "any", code=1)
    assert not (files / "out").exists()


# The frame


def test_help_and_version() -> None:
    assert "Exit codes: 0 done; 1 refused" in run("--help").stdout.replace("\n  ", " ")
    for name in ("verify", "infer", "inspect", "measure", "keygen", "seal-model", "conformance"):
        assert f"Usage: casemate {name}" in run(name, "--help").stdout.replace("main", "casemate")
    assert "version" in run("--version").stdout


def test_a_terminal_without_utf8(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    arguments = ["verify", "document.cbor", "--policy", "trust.toml", "--at", "doc"]
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    stream.flush()
    assert b"+  1 size" in stream.buffer.getvalue()


def test_unreadable_files_are_one_line(files: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (files / "evidence.bin").chmod(0)
    arguments = ("verify", files / "evidence.bin", "--policy", files / "trust.toml")
    assert "Permission denied" in refusal(*arguments)


def test_evidence_that_cannot_be_kept_is_one_line(service: Service, files: Path) -> None:
    nowhere = files / "none" / "kept.bin"
    arguments = ("verify", service.target, "--policy", files / "trust.toml", "--save", nowhere)
    assert "No such file" in refusal(*arguments)


def test_json_output_is_one_object(files: Path) -> None:
    arguments = ("verify", files / "document.cbor", "--policy", files / "trust.toml", "--json")
    assert json.loads(run(*arguments, "--at", "doc").stdout)["verified"] is True
