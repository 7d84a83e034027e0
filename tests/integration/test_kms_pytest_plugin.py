"""The double for other projects: the README's example is run as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

import casemate_devkit.kms as package
from casemate_devkit.kms import KmsDouble
from casemate_devkit.kms.faults import KINDS
from casemate_devkit.kms.principals import save_principals
from casemate_devkit.kms.pytest_plugin import ADMIN, ENCLAVE

README = Path(package.__file__).parent / "README.md"
PLUGIN = "casemate_devkit.kms.pytest_plugin"


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    installed = [item for item in entry_points(group="pytest11") if item.value == PLUGIN]
    plugin = [] if installed else ["-p", PLUGIN]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, *options]
    return subprocess.run(
        [*command, "-W", "error", str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return str(code)


@pytest.mark.integration
def test_the_readmes_example_passes(tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(example())
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.integration
def test_the_readmes_example_fails_against_moto(tmp_path: Path) -> None:
    """What the double is for: the same lines, and moto hands out the plaintext."""
    code = example().replace("kms_double().client(ADMIN)", 'boto3.client("kms", "eu-central-1")')
    head = "import boto3\nfrom moto import mock_aws\n"
    code = code.replace("def test_my", "@mock_aws\ndef test_my")
    code = code.replace("kms_double, ", "")
    (tmp_path / "test_example.py").write_text(head + code)
    done = run_pytest(tmp_path)
    assert "assert 'Plaintext' not in answer" in done.stdout.replace('"', "'")
    assert done.returncode == 1


def test_the_readme_lists_every_fault() -> None:
    text = README.read_text(encoding="utf-8")
    assert [kind for kind in KINDS if not re.search(rf"^\| `{kind}[=`]", text, re.MULTILINE)] == []


@pytest.mark.integration
def test_the_server_says_where_it_is(tmp_path: Path) -> None:
    save_principals(tmp_path / "principals.json", [ADMIN])
    command = [sys.executable, "-m", "casemate_devkit.kms", "--directory", str(tmp_path / "kms")]
    command += ["--principals", str(tmp_path / "principals.json"), "--nitro-root", "ab" * 32]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        client = boto3.client(
            "kms",
            region_name="eu-central-1",
            endpoint_url=f"https://localhost:{ready['port']}",
            verify=ready["ca_pem"],
            aws_access_key_id=ADMIN.access_key_id,
            aws_secret_access_key=ADMIN.secret_access_key,
        )
        assert client.list_keys()["Keys"] == []
        process.terminate()
        assert process.wait(60) == 0
    for bad in (["--fault", "misspelt"], ["--nitro-root", "x"]):
        done = subprocess.run([*command, *bad], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


SHAPED = {
    "describe_key": "KeyMetadata",
    "get_key_rotation_status": None,
    "list_aliases": "Aliases",
    "list_grants": "Grants",
    "list_resource_tags": "Tags",
}


def shapes(client: Any) -> dict[str, set[str]]:  # noqa: ANN401 - boto3 is untyped
    """The members of what a client gets for a key with one alias, grant and tag."""
    tags = [{"TagKey": "a", "TagValue": "b"}]
    key = client.create_key(Tags=tags)["KeyMetadata"]["KeyId"]
    client.create_alias(AliasName="alias/x", TargetKeyId=key)
    client.create_grant(KeyId=key, GranteePrincipal=ENCLAVE.arn, Operations=["Decrypt"])
    found = {}
    for name, member in SHAPED.items():
        answer = getattr(client, name)(KeyId=key)
        inner = answer[member] if member else answer
        record = inner[0] if isinstance(inner, list) else inner
        found[name] = set(record) - {"ResponseMetadata"}
    return found


def test_answers_have_all_that_motos_have(tmp_path: Path) -> None:
    """moto's is an independent reading of the API."""
    with KmsDouble(tmp_path, roots=frozenset({bytes(32)}), principals=[ADMIN]) as double:
        ours = shapes(double.client(ADMIN))
    with mock_aws():
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "y"}
        theirs = shapes(boto3.client("kms", region_name="eu-central-1", **keys))
    missing = {name: theirs[name] - ours[name] for name in SHAPED}
    # moto does not settle what a key is for if nobody says so; AWS does.
    assert missing.pop("describe_key") == {"SigningAlgorithms"}
    assert not any(missing.values())
