"""``[[caller]]`` and ``[anonymous]`` of the host's configuration."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate_host.callers import ANONYMOUS, CallerConfig, CallerLimits
from casemate_host.toml_table import refused

if TYPE_CHECKING:
    from casemate_host.toml_table import Table

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def callers_from(
    top: Table, unary: int, streams: int
) -> tuple[tuple[CallerConfig, ...], CallerLimits | None]:
    """Take both from the file's top table; without either everybody is served, unbounded.

    ``unary``, ``streams``: the front's places. Unless a caller's ``concurrent`` and ``streams`` say
    otherwise it gets half of them, so that no single one takes all. Raises
    CasemateError(INVALID_ARGUMENT).
    """
    if not top.has("caller") and not top.has("anonymous"):
        return (), CallerLimits()
    known = tuple(
        _caller(table, unary, streams) for table in top.tables("caller", limits.CALLERS_MAX)
    )
    for what, values in (
        ("name", [caller.name for caller in known]),
        ("token", [token for caller in known for token in caller.tokens]),
        ("certificate", [name for caller in known for name in caller.certificates]),
    ):
        if len(set(values)) != len(values):
            raise refused(f"caller: the same {what} twice")
    anonymous = None
    if top.has("anonymous"):
        table = top.table("anonymous")
        anonymous = _limits(table, unary, streams)
        table.end()
    return known, anonymous


def _caller(table: Table, unary: int, streams: int) -> CallerConfig:
    name = table.text("name")
    if not _NAME.fullmatch(name) or name == ANONYMOUS:
        raise refused("caller.name: not a name of letters, digits and . _ -")
    tokens = table.texts("token_sha256", limits.CALLER_TOKENS_MAX)
    if not all(_DIGEST.fullmatch(token) for token in tokens):
        raise refused(f"caller {name}: token_sha256 is not 64 lower-case hex digits")
    certificates = table.texts("certificates", limits.CALLER_TOKENS_MAX)
    if not tokens and not certificates:
        raise refused(f"caller {name}: neither token_sha256 nor certificates")
    bounds = _limits(table, unary, streams)
    table.end()
    return CallerConfig(name, bounds, tuple(bytes.fromhex(t) for t in tokens), certificates)


def _limits(table: Table, unary: int, streams: int) -> CallerLimits:
    rate = table.optional_integer("rate", 1, limits.CALLER_RATE_MAX)
    burst = table.optional_integer("burst", 1, limits.CALLER_RATE_MAX)
    if burst is not None and rate is None:
        raise refused("caller: burst without rate")
    return CallerLimits(
        rate=rate,
        burst=burst,
        concurrent=table.integer("concurrent", 1, limits.UNARY_MAX, max(1, unary // 2)),
        streams=table.integer("streams", 1, limits.INFER_STREAMS_MAX, max(1, streams // 2)),
        daily_calls=table.optional_integer("daily_calls", 1, limits.CALLER_DAILY_MAX),
        daily_bytes=table.optional_integer("daily_bytes", 1, limits.CALLER_DAILY_MAX),
    )
