"""Key release against a hostile host and a hostile environment (H9, A41, A42, A47 to A50, C7)."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore
import pytest

from casemate import limits
from casemate.errors import CasemateError, Code, KeyReleaseError
from tests.support.kms_bench import AUTHORITY, SECRETS, Bench, bench_for
from tests.support.kms_endpoint import (
    DATA_KEY,
    HOST,
    Authority,
    b64,
    granted,
    raw,
    refused,
    sealed_to,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SITE = Path(botocore.__file__).parents[1]
CHILD = ROOT / "tests" / "support" / "release_child.py"
OURS = [str(ROOT), str(ROOT / "kms_client")]

# What the enclave's tree needs of botocore's data.
BOTOCORE_DATA = [
    "endpoints.json",
    "partitions.json",
    "sdk-default-configuration.json",
    "kms/2014-11-01/endpoint-rule-set-1.json.gz",
    "kms/2014-11-01/service-2.json.gz",
]
PACKAGES = ["botocore", "jmespath", "urllib3", "dateutil", "cryptography", "google"]
MODULES = ["six.py", "_cffi_backend*.so"]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No attempt is given up because the machine is slow."""
    monkeypatch.setattr(limits, "KMS_TIMEOUT_S", 60.0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with bench_for(HOST) as made:
        yield made


def release(bench: Bench, path: list[str], environment: dict[str, str], watch: Path) -> Any:  # noqa: ANN401 - JSON
    order = {
        "path": path,
        "egress": bench.egress.path,
        "root": AUTHORITY.der.hex(),
        "watch": str(watch),
    }
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-X", "pycache_prefix=/nonexistent", str(CHILD)],
        input=json.dumps(order),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def hostile_home(home: Path) -> None:
    """Fill ``home`` with everything that botocore reads from there when it is let."""
    aws = home / ".aws"
    models = aws / "models" / "kms" / "2014-11-01"
    models.mkdir(parents=True)
    (aws / "config").write_text(
        "[default]\nregion = us-east-1\nendpoint_url = https://evil.example\n"
        "ca_bundle = /nonexistent.pem\nservices = s\n"
        "[services s]\nkms =\n  endpoint_url = https://evil.example\n"
        "[profile evil]\ncredential_process = /bin/false\n"
    )
    (aws / "credentials").write_text(
        "[default]\naws_access_key_id = AKIDFILE\naws_secret_access_key = file\n"
    )
    (models / "service-2.json").write_text("{}")
    (home / "evil_plugin.py").write_text("raise SystemExit('imported')\n")


def hostile_environment(home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "AWS_ACCESS_KEY_ID": "AKIDENVIRONMENT",
        "AWS_SECRET_ACCESS_KEY": "environment",
        "AWS_SESSION_TOKEN": "environment",
        "AWS_PROFILE": "missing",
        "AWS_DEFAULT_PROFILE": "missing",
        "AWS_CONFIG_FILE": str(home / ".aws" / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / ".aws" / "credentials"),
        "AWS_DATA_PATH": str(home / ".aws" / "models"),
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "https://evil.example",
        "AWS_ENDPOINT_URL_KMS": "http://127.0.0.1:1",
        "AWS_CA_BUNDLE": "/nonexistent.pem",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "AWS_RETRY_MODE": "nonsense",
        "AWS_MAX_ATTEMPTS": "nonsense",
        "AWS_DEFAULTS_MODE": "nonsense",
        "AWS_CSM_ENABLED": "true",
        "AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES": "nonsense",
        "AWS_EXECUTION_ENV": "evil-execution",
        "AWS_LAMBDA_FUNCTION_NAME": "evil",
        "_X_AMZN_TRACE_ID": "evil-trace",
        "AWS_BEARER_TOKEN_KMS": "evil-token",
        "BOTOCORE_EXPERIMENTAL__PLUGINS": "evil=evil_plugin",
        "HTTPS_PROXY": "http://127.0.0.1:1",
        "https_proxy": "http://127.0.0.1:1",
        "ALL_PROXY": "http://127.0.0.1:1",
        "REQUESTS_CA_BUNDLE": "/nonexistent.pem",
        "SSL_CERT_FILE": str(home / "system.pem"),
        "SSLKEYLOGFILE": str(home / "keys.log"),
    }


def test_nothing_around_the_process_configures_it(bench: Bench, tmp_path: Path) -> None:
    hostile_home(tmp_path)
    path = [*OURS, str(SITE), str(tmp_path)]
    report = release(bench, path, hostile_environment(tmp_path), tmp_path)
    assert report == {
        "key": DATA_KEY.hex(),
        "watched": [],
        "sockets": [bench.egress.path],
    }
    assert not (tmp_path / "keys.log").exists()
    (seen,) = bench.kms.seen
    assert "AKIDEXPLICIT" in seen.headers["Authorization"]
    assert "eu-central-1/kms/" in seen.headers["Authorization"]
    text = str(seen.headers)
    assert "evil" not in text
    assert "environment" not in text
    assert bench.egress.names == [f"{HOST}:443"]


def test_a_pruned_botocore_is_enough(bench: Bench, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    for name in PACKAGES:
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        if name != "botocore":
            (packages / name).symlink_to(SITE / name)
    shutil.copytree(
        SITE / "botocore",
        packages / "botocore",
        ignore=shutil.ignore_patterns("data", "cacert.pem", "__pycache__"),
    )
    for name in BOTOCORE_DATA:
        target = packages / "botocore" / "data" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SITE / "botocore" / "data" / name, target)
    for pattern in MODULES:
        for file in SITE.glob(pattern):
            (packages / file.name).symlink_to(file)
    report = release(bench, [*OURS, str(packages)], {"HOME": str(tmp_path)}, tmp_path / "none")
    assert report["key"] == DATA_KEY.hex()


def test_the_systems_roots_are_not_trusted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's own CA is the system's: the configured root still decides."""
    system = bench.folder / "system.pem"
    system.write_text(
        "-----BEGIN CERTIFICATE-----\n" + b64(AUTHORITY.der) + "\n-----END CERTIFICATE-----\n"
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    bench.trusting(Authority().der)
    with pytest.raises(KeyReleaseError) as caught:
        bench.decrypt()
    assert caught.value.code is Code.KEY_RELEASE_UNAVAILABLE
    assert bench.kms.seen == []


def test_a_host_that_ends_tls_itself_gets_no_request(bench: Bench) -> None:
    """H9: the host has the attested public key and could seal any content to it (A49)."""
    evil = Authority()
    context = evil.server_context(bench.folder, HOST)
    with serving(bench.kms, context) as port:
        bench.egress.ports = {f"{HOST}:443": port}
        with pytest.raises(KeyReleaseError):
            bench.decrypt()
    assert bench.kms.seen == []


@pytest.mark.parametrize("padding", [0, 9000])
def test_what_follows_an_answer_is_never_read_as_the_next_one(bench: Bench, padding: int) -> None:
    bench.kms.extra = b"HTTP/1.1 400 No\r\nPad: %b\r\nContent-Length: 0\r\n\r\n" % (b"x" * padding)
    assert [bench.decrypt() for _ in range(3)] == [DATA_KEY] * 3


def test_an_envelope_for_an_earlier_enclave_does_not_open(bench: Bench) -> None:
    bench.decrypt()
    before = b64(sealed_to(bench.kms.seen[0].document))
    bench.trusting(AUTHORITY.der)
    bench.kms.answers = [granted(CiphertextForRecipient=before)]
    with pytest.raises(KeyReleaseError) as caught:
        bench.decrypt()
    assert caught.value.code is Code.KEY_RELEASE_INVALID


def failures(bench: Bench) -> Iterator[CasemateError]:
    for answer in (
        refused("AccessDeniedException"),
        refused("ValidationException"),
        refused("ThrottlingException"),
        raw(b"garbage"),
        granted(Plaintext=b64(DATA_KEY)),
        granted(bytes(31)),
    ):
        bench.kms.answers = [answer]
        with pytest.raises(CasemateError) as caught:
            bench.decrypt()
        yield caught.value


def test_secrets_are_in_no_log_no_error_and_no_output(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    """Even when everything logs everything to everywhere (request bodies are logged at DEBUG)."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    loggers = [logging.getLogger(), logging.getLogger("botocore")]
    with contextlib.ExitStack() as stack:
        for logger in loggers:
            stack.callback(logger.setLevel, logger.level)
            stack.callback(logger.removeHandler, handler)
            logger.addHandler(handler)
            logger.setLevel(logging.DEBUG)
        bench.client.set_credentials(*SECRETS, None)
        assert bench.decrypt() == DATA_KEY
        errors = list(failures(bench))
    assert "botocore" not in stream.getvalue()
    captured = stream.getvalue() + "".join(capfd.readouterr())
    for error in errors:
        assert error.__context__ is None  # its frames would hold the request
        captured += "".join(traceback.format_exception(error)) + repr(vars(error))
    document = bench.kms.seen[0].document
    planted = [*SECRETS, DATA_KEY.hex(), b64(DATA_KEY), repr(DATA_KEY), b64(document)[:64]]
    assert [secret for secret in planted if secret in captured] == []


@pytest.mark.slow
def test_streams_are_closed_whatever_happens(bench: Bench) -> None:
    """A host that makes releases fail cannot exhaust the enclave's descriptors."""

    def descriptors() -> int:
        gc.collect()
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    bench.egress.verdict = b"\x01"
    with pytest.raises(KeyReleaseError):
        bench.decrypt()
    genuine = bench.egress.ports
    for verdict, ports in ((b"\x01", genuine), (b"\x02", genuine), (None, {f"{HOST}:443": 1})):
        bench.egress.verdict, bench.egress.ports = verdict, ports
        before = descriptors()
        for _ in range(8):
            with pytest.raises(KeyReleaseError):
                bench.decrypt()
        # Others in this process may open a few meanwhile; a leak would show eight.
        assert descriptors() < before + 8
