"""The host's configuration file is read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.channel import UnixAddress, VsockAddress
from casemate.errors import CasemateError, Code
from casemate_host.callers import CallerLimits
from casemate_host.config import HostConfig, TlsConfig

FOLDER = Path("/etc/casemate")
MINIMAL = """
version = 1

[front]

[enclave]
address = "unix:/run/casemate/enclave.sock"
configuration = "configuration.cbor"
trust_policy = "/policies/policy.toml"
"""
FULL = """
version = 1

[front]
listen = "[::1]:8443"
tls_certificate = "front.pem"
tls_key = "front.key"
unary = 8
drain_seconds = 0
receive_seconds = 5

[enclave]
address = "vsock:16:5005"
configuration = "configuration.cbor"
trust_policy = "policy.toml"
credentials = "credentials.json"
models = ["a.casemate", "models/b.casemate"]
connections = 16
evidence_seconds = 30

[egress]
address = "vsock:4294967295:8000"
connections = 4
idle_seconds = 30

[egress.allow]
"kms.eu-central-1.amazonaws.com:443" = "127.0.0.1:4566"
"""


def parse(text: str) -> HostConfig:
    return HostConfig.parse(text.encode(), FOLDER)


def refusal(text: str) -> str:
    with pytest.raises(CasemateError) as raised:
        parse(text)
    assert raised.value.code is Code.INVALID_ARGUMENT
    return raised.value.detail


def test_the_least_that_is_needed() -> None:
    config = parse(MINIMAL)
    assert config.front.listen == "127.0.0.1:0"
    assert config.front.tls is None
    assert config.front.frames is None
    assert config.enclave.address == UnixAddress("/run/casemate/enclave.sock")
    assert config.enclave.configuration == FOLDER / "configuration.cbor"
    assert config.enclave.trust_policy == Path("/policies/policy.toml")
    assert config.enclave.models == ()
    assert config.enclave.connections == 32
    assert config.egress is None


def test_everything() -> None:
    config = parse(FULL)
    assert config.front.tls == TlsConfig(FOLDER / "front.pem", FOLDER / "front.key", None)
    assert (config.front.unary, config.front.drain_s, config.front.receive_s) == (8, 0, 5)
    assert config.enclave.address == VsockAddress(16, 5005)
    assert config.enclave.models == (FOLDER / "a.casemate", FOLDER / "models/b.casemate")
    assert config.egress is not None
    assert config.egress.allow == {"kms.eu-central-1.amazonaws.com:443": ("127.0.0.1", 4566)}
    assert config.egress.idle_s == 30


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("version = 1", "version = 2", "version"),
        ("version = 1", "", "version is missing"),
        ("version = 1", "version = true", "version"),
        ("version = 1", "version = 1\nextra = 1", "unknown key extra"),
        ("[front]", "front = 1", "front: not a table"),
        ("[front]", "[front]\nlisten = ':0'", "front.listen"),
        ("[front]", "[front]\nlisten = 'unix:/x'", "front.listen"),
        ("[front]", "[front]\nlisten = '127.0.0.1:65536'", "front.listen"),
        ("[front]", "[front]\nframes = 'here'", "front.frames"),
        (
            "[front]",
            "[front]\nframes = '127.0.0.1:0'\ntls_certificate = 'c'\ntls_key = 'k'",
            "framed connections have no TLS",
        ),
        ("[front]", "[front]\nunary = 0", "front.unary"),
        ("[front]", "[front]\nunary = 257", "front.unary"),
        ("[front]", "[front]\nunary = 1.0", "front.unary"),
        ("[front]", "[front]\ntls_key = 'k'", "go together"),
        ("[front]", "[front]\nworkers = 3", "unknown key front.workers"),
        ("[enclave]", "[enclave]\nmodels = 'a'", "enclave.models"),
        ("[enclave]", "[enclave]\nmodels = [1]", "enclave.models"),
        ("[enclave]", "[enclave]\nmodels = ['a', 'a']", "enclave.models: duplicate"),
        ("[enclave]", "[enclave]\nconnections = 33", "enclave.connections"),
        ("[enclave]", "[enclave]\nsecret = 'x'", "unknown key enclave.secret"),
        ("unix:/run", "tcp:/run", "enclave.address"),
        ("configuration =", "# configuration =", "enclave.configuration is missing"),
        ("[enclave]", "[egress]\n[enclave]", "egress.allow is missing"),
        ("[front]", "[front", "not TOML"),
        ("[front]", "[front]\nunary = 1\nunary = 2", "not TOML"),
    ],
)
def test_what_is_wrong_is_refused_and_named(old: str, new: str, named: str) -> None:
    assert old in MINIMAL
    assert named in refusal(MINIMAL.replace(old, new, 1))


DIGEST = "0" * 64
CALLER = f"""
[[caller]]
name = "clinic"
token_sha256 = ["{DIGEST}"]
rate = 100
"""


def test_without_callers_everybody_is_served_without_bounds() -> None:
    callers = parse(MINIMAL).callers
    assert callers.known == ()
    assert callers.anonymous == CallerLimits()


def test_with_callers_the_unknown_are_refused_unless_the_file_says_otherwise() -> None:
    (clinic,) = parse(MINIMAL + CALLER).callers.known
    assert (clinic.name, clinic.tokens) == ("clinic", (bytes(32),))
    assert clinic.limits == CallerLimits(rate=100, concurrent=32, streams=16)
    assert parse(MINIMAL + CALLER).callers.anonymous is None
    anonymous = parse(
        MINIMAL + CALLER + "[anonymous]\nconcurrent = 4\nstreams = 2"
    ).callers.anonymous
    assert anonymous == CallerLimits(concurrent=4, streams=2)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("rate = 100", "rate = 0", "rate"),
        ("rate = 100", "burst = 5", "burst without rate"),
        ("rate = 100", "speed = 5", "unknown key caller[0].speed"),
        (CALLER, CALLER + CALLER, "the same name twice"),
        (CALLER, CALLER + CALLER.replace("clinic", "other"), "the same token twice"),
        ('name = "clinic"', 'name = "anonymous"', "caller.name"),
        ('name = "clinic"', 'name = "a b"', "caller.name"),
        (f'["{DIGEST}"]', '["0"]', "64 lower-case hex"),
        (f'["{DIGEST}"]', "[]", "neither"),
        ('name = "clinic"', 'name = "clinic"\ncertificates = ["a"]', "tls_client_ca"),
        ("[front]", "[front]\nlisten = '0.0.0.0:1'", "in the clear"),
        ("[front]", "[front]\nframes = '0.0.0.0:1'", "in the clear"),
        ("[front]", "[front]\ntls_client_ca = 'ca.pem'", "tls_client_ca needs"),
        ("[[caller]]", "[caller]", "array"),
    ],
)
def test_what_is_wrong_with_callers_is_refused_and_named(old: str, new: str, named: str) -> None:
    text = MINIMAL + CALLER
    assert old in text
    assert named in refusal(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("kms.amazonaws.com", "127.0.0.1:1"),
        ("*:443", "127.0.0.1:1"),
        ("a b:443", "127.0.0.1:1"),
        ("kms.amazonaws.com:443", "127.0.0.1"),
        ("kms.amazonaws.com:443", ""),
        ("kms.amazonaws.com:99999", "127.0.0.1:1"),
        ("k" * 254 + ":1", "127.0.0.1:1"),
    ],
)
def test_endpoints_of_the_allow_list(name: str, target: str) -> None:
    line = '"kms.eu-central-1.amazonaws.com:443" = "127.0.0.1:4566"'
    assert "egress.allow" in refusal(FULL.replace(line, f'"{name}" = "{target}"'))


def test_a_missing_or_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CasemateError, match="cannot read"):
        HostConfig.load(tmp_path / "none.toml")
    (tmp_path / "huge.toml").write_text("#" * 300_000)
    with pytest.raises(CasemateError, match="larger"):
        HostConfig.load(tmp_path / "huge.toml")


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "host.toml").write_text(MINIMAL)
    config = HostConfig.load(tmp_path / "host.toml")
    assert config.enclave.configuration == tmp_path / "configuration.cbor"
