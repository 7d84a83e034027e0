"""The host's configuration file: TOML, read strictly.

It decides nothing about trust: what the enclave is and whom it serves is in the configuration and
the trust policy that this file names by path. Paths are relative to the folder of the file.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate import limits
from casemate_host.config_callers import callers_from
from casemate_host.toml_table import Table, parse_endpoint, refused

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from casemate.channel import Address
    from casemate_host.callers import CallerConfig, CallerLimits

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """PEM files: certificate chain, its key, and who signs the certificates of callers."""

    certificate: Path
    key: Path
    client_ca: Path | None


@dataclass(frozen=True, slots=True)
class CallersConfig:
    """Whom the front serves; ``anonymous``: the share of the unknown, None: they are refused."""

    known: tuple[CallerConfig, ...]
    anonymous: CallerLimits | None


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """The gRPC front: ``listen`` is ``host:port``; ``frames`` likewise, for framed connections."""

    listen: str
    tls: TlsConfig | None
    unary: int
    streams: int
    drain_s: float
    receive_s: float
    frames: str | None = None


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
class TracesConfig:
    """Where traces go (OTLP over HTTP), under which name, and how many in a hundred."""

    endpoint: str
    service: str
    percent: int


@dataclass(frozen=True, slots=True)
class HostConfig:
    """One host: a front, one enclave, and the enclave's way out, if it has one."""

    front: FrontConfig
    enclave: EnclaveConfig
    egress: EgressConfig | None
    callers: CallersConfig
    metrics: MetricsConfig | None = None
    administration: Path | None = None  # the unix socket of that service
    traces: TracesConfig | None = None
    quotas: Path | None = None  # where what callers used of their day is kept

    @classmethod
    def load(cls, path: Path) -> HostConfig:
        """Read the file at ``path``; raises CasemateError(INVALID_ARGUMENT) naming the fault."""
        try:
            with path.open("rb") as file:
                data = file.read(limits.HOST_CONFIG_MAX + 1)
        except OSError as error:
            raise refused(f"cannot read {path}: {error.strerror}") from None
        return cls.parse(data, path.absolute().parent)

    @classmethod
    def parse(cls, data: bytes, folder: Path) -> HostConfig:
        """Parse the file's bytes; ``folder`` is what relative paths start from."""
        if len(data) > limits.HOST_CONFIG_MAX:
            raise refused(f"larger than {limits.HOST_CONFIG_MAX} bytes")
        try:
            top = Table("", tomllib.loads(data.decode()), folder)
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise refused(f"not TOML: {error}") from None
        top.integer("version", 1, 1)
        front = _front(top.table("front"))
        enclave = _enclave(top.table("enclave"))
        egress = _egress(top.table("egress")) if top.has("egress") else None
        metrics = _metrics(top.table("metrics")) if top.has("metrics") else None
        callers = _callers(top, front)
        administration = None
        if top.has("administration"):
            table = top.table("administration")
            administration = table.path("socket")
            table.end()
        traces = _traces(top.table("traces")) if top.has("traces") else None
        quotas = None
        if top.has("quotas"):
            table = top.table("quotas")
            quotas = table.path("file")
            table.end()
        top.end()
        return cls(front, enclave, egress, callers, metrics, administration, traces, quotas)


def _front(table: Table) -> FrontConfig:
    listen = table.text("listen", "127.0.0.1:0")
    parse_endpoint(listen, "front.listen")
    frames = table.text("frames") if table.has("frames") else None
    result = FrontConfig(
        listen=listen,
        tls=_tls(table),
        unary=table.integer("unary", 1, limits.UNARY_MAX, limits.UNARY_DEFAULT),
        streams=table.integer("streams", 1, limits.INFER_STREAMS_MAX, limits.INFER_STREAMS_DEFAULT),
        drain_s=table.seconds("drain_seconds", 600, limits.DRAIN_DEFAULT_S, low=0),
        receive_s=table.seconds("receive_seconds", 600, limits.RECEIVE_TIMEOUT_S),
        frames=frames,
    )
    table.end()
    if frames is not None:
        parse_endpoint(frames, "front.frames")
        if result.tls is not None:
            # Sizes and tokens would cross in the clear beside a service that hides them.
            raise refused("front: frames and tls_certificate: framed connections have no TLS")
    return result


def _tls(table: Table) -> TlsConfig | None:
    certificate, key = table.optional_path("tls_certificate"), table.optional_path("tls_key")
    authority = table.optional_path("tls_client_ca")
    if (certificate is None) != (key is None):
        raise refused("front: tls_certificate and tls_key go together")
    if certificate is None or key is None:
        if authority is not None:
            raise refused("front: tls_client_ca needs tls_certificate and tls_key")
        return None
    return TlsConfig(certificate, key, authority)


def _callers(top: Table, front: FrontConfig) -> CallersConfig:
    known, anonymous = callers_from(top, front.unary, front.streams)
    if front.tls is None and not _is_local(front) and any(caller.tokens for caller in known):
        raise refused("tokens would cross the network in the clear: front needs tls_certificate")
    if any(caller.certificates for caller in known) and not (front.tls and front.tls.client_ca):
        raise refused("callers with certificates need front.tls_client_ca")
    return CallersConfig(known, anonymous)


def _is_local(front: FrontConfig) -> bool:
    listens = [front.listen, *([front.frames] if front.frames else [])]
    return all(parse_endpoint(listen, "front")[0] in _LOOPBACK for listen in listens)


def _enclave(table: Table) -> EnclaveConfig:
    result = EnclaveConfig(
        address=table.address("address"),
        configuration=table.path("configuration"),
        trust_policy=table.path("trust_policy"),
        credentials=table.optional_path("credentials"),
        models=table.paths("models", limits.MODELS_MAX),
        connections=table.integer(
            "connections", 1, limits.RELAY_CONNECTIONS, limits.RELAY_CONNECTIONS
        ),
        evidence_s=table.seconds("evidence_seconds", limits.AGE_MAX_SECONDS, 60),
    )
    table.end()
    return result


def _egress(table: Table) -> EgressConfig:
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


def _traces(table: Table) -> TracesConfig:
    result = TracesConfig(
        endpoint=table.text("endpoint"),
        service=table.text("service", "casemate-host"),
        percent=table.integer("percent", 1, 100, 100),
    )
    table.end()
    if not result.endpoint.startswith(("http://", "https://")):
        raise refused("traces.endpoint: not a URL")
    return result


def _metrics(table: Table) -> MetricsConfig:
    result = MetricsConfig(parse_endpoint(table.text("listen"), "metrics.listen"))
    table.end()
    return result
