"""`casemate policy`: what is written is clean, what is weak is named; exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from casemate.client.cli import main
from casemate.kms_policy import check_key_policy
from casemate.kms_policy_lint import Weakness
from tests.support.key_policies import ADMIN, CLINIC, ENCLAVE, PCR, SCOPE, SEALER, TRUST

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    path = tmp_path / "trust.toml"
    path.write_text(TRUST.to_toml())
    return path


def run(*arguments: object, text: str | None = None) -> Result:
    return CliRunner().invoke(main, ["policy", *map(str, arguments)], input=text)


def write(trust: Path, *more: object, admin: str = ADMIN.arn) -> Result:
    principals = ["--admin", admin, "--enclave-principal", ENCLAVE.arn]
    principals += ["--encrypt-principal", SEALER.arn]
    return run("kms", "--trust", trust, *principals, *more)


def test_what_is_written_is_clean(trust: Path, tmp_path: Path) -> None:
    done = write(trust, "--purpose", "data")
    assert (done.exit_code, done.stderr) == (0, "")
    check_key_policy(done.stdout, TRUST, purpose="data", scope=SCOPE)
    linted = run("lint", "-", "--trust", trust, "--purpose", "data", text=done.stdout)
    assert (linted.exit_code, linted.stdout) == (0, "no findings\n")
    output = tmp_path / "key-policy.json"
    assert write(trust, "--purpose", "data", "--output", output).stdout == ""
    assert output.read_text() == done.stdout
    assert write(trust, "--purpose", "data", "--output", output).exit_code == 1  # it is there


def test_model_keys_name_their_scope(trust: Path) -> None:
    scope = f"{'02' * 32}/wdbc"
    assert write(trust, "--purpose", "model").exit_code == 2
    done = write(trust, "--purpose", "model", "--scope", scope)
    options = ("--trust", trust, "--purpose", "model", "--scope", scope)
    assert run("lint", "-", *options, text=done.stdout).exit_code == 0
    other = run("lint", "-", "--trust", trust, "--purpose", "data", text=done.stdout)
    assert other.exit_code == 1
    assert str(Weakness.CONTEXT_MISMATCH) in other.stdout


def test_account_root_as_admin_is_warned_of(trust: Path) -> None:
    done = write(trust, "--purpose", "data", admin=f"arn:aws:iam::{CLINIC}:root")
    assert done.exit_code == 0
    assert str(Weakness.MUTABLE_BY_ACCOUNT) in done.stderr


def test_findings_exit_with_one(trust: Path, tmp_path: Path) -> None:
    policy = json.loads(write(trust, "--purpose", "data").stdout)
    for statement in policy["Statement"]:
        statement.get("Condition", {}).get("StringEqualsIgnoreCase", {}).pop(f"{PCR}16", None)
    path = tmp_path / "weak.json"
    path.write_text(json.dumps(policy))
    done = run("lint", path)
    assert done.exit_code == 1
    assert done.stdout.startswith(f"{Weakness.PCR16_MISSING}  statement 4 ")
    assert done.stdout.endswith("1 finding\n")
    shown = json.loads(run("lint", path, "--json").stdout)
    assert shown["clean"] is False
    assert [item["code"] for item in shown["findings"]] == [Weakness.PCR16_MISSING]


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    statement = {"Sid": "\x1b[2J", "Effect": "Allow", "Principal": "\x1b]0;x", "Action": "kms:*"}
    path.write_text(json.dumps({"Statement": [statement]}))
    done = run("lint", path)
    assert done.exit_code == 1
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"x" * 40_000, b"[]"])
def test_what_is_no_policy_is_a_finding(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    done = run("lint", path)
    assert done.exit_code == 1
    assert str(Weakness.MALFORMED_POLICY) in done.stdout


def test_wrong_usage_exits_with_two(trust: Path, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text("{}")
    for arguments in (
        ["lint"],
        ["lint", tmp_path / "missing.json"],
        ["lint", path, "--trust", trust],
        ["lint", path, "--scope", "x"],
        ["lint", path, "--purpose", "data"],
        ["lint", path, "--purpose", "other"],
        ["kms", "--trust", trust],
    ):
        assert run(*arguments).exit_code == 2


def test_principals_that_are_refused(trust: Path) -> None:
    done = write(trust, "--purpose", "data", admin="*")
    assert done.exit_code == 1
    assert "INVALID_ARGUMENT" in done.stderr
