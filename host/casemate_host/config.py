"""The host's configuration file: TOML, read strictly.

It decides nothing about trust: what the enclave is and whom it serves is in the configuration and
the trust policy that this file names by path. Paths are relative to the folder of the file.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casemate import limits
from casemate.channel import Address, parse_address
from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ENDPOINT = re.compile(r"(?:\[[0-9a-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):(\d{1,5})", re.ASCII)
_PORT_MAX = 65_535


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """The gRPC front: ``listen`` is ``host:port``; ``tls`` is (certificate chain, key) in PEM."""

    listen: str
    tls: tuple[Path, Path] | None
    unary: int
    drain_s: float
    receive_s: float


@dataclass(frozen=True, slots=True)
class EnclaveConfig:
    """Where the enclave listens and what it is given."""

    address: Address
    configuration: Path
    trust_policy: Path
    credentials: Path | None
    models: tuple[Path, ...]
    connections: int
    evidence_s: float


@dataclass(frozen=True, slots=True)
class EgressConfig:
    """The egress proxy: ``allow`` maps the name that the enclave asks for to what is dialled."""

    address: Address
    allow: Mapping[str, tuple[str, int]]
    connections: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """The metrics page: ``listen`` is (host, port) of the operator's own network."""

    listen: tuple[str, int]


@dataclass(frozen=True, slots=True)
class HostConfig:
    """One host: a front, one enclave, and the enclave's way out, if it has one."""

    front: FrontConfig
    enclave: EnclaveConfig
    egress: EgressConfig | None
    metrics: MetricsConfig | None = None

    @classmethod
    def load(cls, path: Path) -> HostConfig:
        """Read the file at ``path``; raises CasemateError(INVALID_ARGUMENT) naming the fault."""
        try:
            with path.open("rb") as file:
                data = file.read(limits.HOST_CONFIG_MAX + 1)
        except OSError as error:
            raise _refused(f"cannot read {path}: {error.strerror}") from None
        return cls.parse(data, path.absolute().parent)

    @classmethod
    def parse(cls, data: bytes, folder: Path) -> HostConfig:
        """Parse the file's bytes; ``folder`` is what relative paths start from."""
        if len(data) > limits.HOST_CONFIG_MAX:
            raise _refused(f"larger than {limits.HOST_CONFIG_MAX} bytes")
        try:
            top = _Table("", tomllib.loads(data.decode()), folder)
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise _refused(f"not TOML: {error}") from None
        top.integer("version", 1, 1)
        front = _front(top.table("front"))
        enclave = _enclave(top.table("enclave"))
        egress = _egress(top.table("egress")) if top.has("egress") else None
        metrics = _metrics(top.table("metrics")) if top.has("metrics") else None
        top.end()
        return cls(front, enclave, egress, metrics)


def _front(table: _Table) -> FrontConfig:
    listen = table.text("listen", "127.0.0.1:0")
    parse_endpoint(listen, "front.listen")
    certificate, key = table.optional_path("tls_certificate"), table.optional_path("tls_key")
    if (certificate is None) != (key is None):
        raise _refused("front: tls_certificate and tls_key go together")
    result = FrontConfig(
        listen=listen,
        tls=(certificate, key) if certificate and key else None,
        unary=table.integer("unary", 1, limits.UNARY_MAX, limits.UNARY_DEFAULT),
        drain_s=table.seconds("drain_seconds", 600, limits.DRAIN_DEFAULT_S, low=0),
        receive_s=table.seconds("receive_seconds", 600, limits.RECEIVE_TIMEOUT_S),
    )
    table.end()
    return result


def _enclave(table: _Table) -> EnclaveConfig:
    result = EnclaveConfig(
        address=table.address("address"),
        configuration=table.path("configuration"),
        trust_policy=table.path("trust_policy"),
        credentials=table.optional_path("credentials"),
        models=table.paths("models"),
        connections=table.integer(
            "connections", 1, limits.RELAY_CONNECTIONS, limits.RELAY_CONNECTIONS
        ),
        evidence_s=table.seconds("evidence_seconds", limits.AGE_MAX_SECONDS, 60),
    )
    table.end()
    return result


def _egress(table: _Table) -> EgressConfig:
    allow = table.table("allow")
    result = EgressConfig(
        address=table.address("address"),
        allow=allow.endpoints(),
        connections=table.integer(
            "connections", 1, limits.EGRESS_CONNECTIONS, limits.EGRESS_CONNECTIONS
        ),
        idle_s=table.seconds("idle_seconds", 3600, limits.EGRESS_IDLE_S),
    )
    table.end()
    return result


def _metrics(table: _Table) -> MetricsConfig:
    result = MetricsConfig(parse_endpoint(table.text("listen"), "metrics.listen"))
    table.end()
    return result


def parse_endpoint(text: str, where: str) -> tuple[str, int]:
    """Parse ``host:port`` (``[v6]:port``); raises CasemateError(INVALID_ARGUMENT)."""
    match = _ENDPOINT.fullmatch(text)
    if match is None or int(match[1]) > _PORT_MAX:
        raise _refused(f"{where}: not host:port: {text[:80]!r}")
    return text.rsplit(":", 1)[0].strip("[]"), int(match[1])


def _refused(detail: str) -> CasemateError:
    return CasemateError(
        Code.INVALID_ARGUMENT, f"host configuration: {detail}"[: limits.DETAIL_MAX]
    )


class _Table:
    """One TOML table whose keys are taken one by one; what nobody took is refused at the end."""

    def __init__(self, name: str, values: dict[str, Any], folder: Path) -> None:
        self._name = name
        self._values = dict(values)
        self._folder = folder

    def has(self, key: str) -> bool:
        return key in self._values

    def end(self) -> None:
        if self._values:
            raise _refused(f"unknown key {self._where(min(self._values))[:120]}")

    def table(self, key: str) -> _Table:
        return _Table(self._where(key), self._take(key, dict, "table"), self._folder)

    def text(self, key: str, default: str | None = None) -> str:
        value: str = self._take(key, str, "string", default)
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value: int = self._take(key, int, "integer", default)
        if not low <= value <= high:
            raise _refused(f"{self._where(key)}: not within {low} and {high}")
        return value

    def seconds(self, key: str, high: int, default: float, low: int = 1) -> float:
        return float(self.integer(key, low, high)) if self.has(key) else default

    def path(self, key: str) -> Path:
        return self._folder / self.text(key)

    def optional_path(self, key: str) -> Path | None:
        return self.path(key) if self.has(key) else None

    def paths(self, key: str) -> tuple[Path, ...]:
        values = self._take(key, list, "array of strings", [])
        if not all(isinstance(value, str) for value in values):
            raise _refused(f"{self._where(key)}: not an array of strings")
        if len(set(values)) != len(values):
            raise _refused(f"{self._where(key)}: duplicate")
        return tuple(self._folder / value for value in values)

    def address(self, key: str) -> Address:
        try:
            return parse_address(self.text(key))
        except CasemateError as error:
            raise _refused(f"{self._where(key)}: {error.detail}") from None

    def endpoints(self) -> dict[str, tuple[str, int]]:
        """Take every key: ``host:port`` to ``host:port``."""
        result = {}
        for name in sorted(self._values):
            parse_endpoint(name, self._name)
            if len(name) > limits.EGRESS_NAME_MAX:
                raise _refused(f"{self._name}: name too long")
            result[name] = parse_endpoint(self.text(name), self._where(name))
        return result

    def _where(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def _take(self, key: str, kind: type, expected: str, default: object = None) -> Any:  # noqa: ANN401 - TOML
        value = self._values.pop(key, default)
        if value is None:
            raise _refused(f"{self._where(key)} is missing")
        if type(value) is not kind:
            raise _refused(f"{self._where(key)}: not a {expected}")
        return value
