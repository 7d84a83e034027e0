"""Whatever the bytes, only EvidenceError comes out; whatever parses, encodes to what it was."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate import cbor
from casemate.attestation import (
    AllowedModel,
    Configuration,
    EvidenceBundle,
    InstanceConfig,
    KeyConfig,
    LogEntry,
    Release,
    TrustPolicy,
    encode_log,
    parse_document,
    parse_log,
    verify_document,
    verify_evidence,
)
from casemate.attestation.chain import verify_chain
from casemate.errors import Code, EvidenceError, PolicyError
from tests.support import evidence as ev
from tests.support import nitro_pki as pki
from tests.support.nitro_pki import NOW

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support import der

VECTORS = Path(__file__).parents[1] / "vectors" / "nitro"
REAL = [path.read_bytes() for path in sorted(VECTORS.glob("*.cbor"))]
AWS_ROOTS = frozenset(
    [bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b")]
)

edits = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 4), st.binary(max_size=4)),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """Replace runs of bytes at relative positions."""
    for position, removed, inserted in changes:
        at = int(position * len(data))
        data = data[:at] + inserted + data[at + removed :]
    return data


@given(st.sampled_from(REAL), edits)
def test_a_changed_genuine_document_never_verifies(
    data: bytes, changes: list[tuple[float, int, bytes]]
) -> None:
    """Save for the tag, which is allowed and not signed, and the twin signature."""
    now = parse_document(data).timestamp
    spoilt = edited(data, changes)
    if spoilt.removeprefix(b"\xd2") == data:
        return
    with pytest.raises(EvidenceError):
        verify_document(spoilt, roots=AWS_ROOTS, now=now)


@given(st.binary(max_size=300))
def test_any_bytes_as_a_document(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        verify_document(data, roots=AWS_ROOTS, now=NOW)


@given(st.integers(1, 4), edits, st.integers(0, 1 << 64))
def test_damaged_certificates(
    depth: int, changes: list[tuple[float, int, bytes]], now: int
) -> None:
    """Below the signature of the document nothing is checked yet: the bytes are the attacker's.

    The root is known by its bytes before anybody looks at the chain.
    """
    certificates = list(ev.chain().certificates)
    certificates[depth] = edited(certificates[depth], changes)
    for time in (NOW, now):
        if certificates != ev.chain().certificates:
            with pytest.raises(EvidenceError) as caught:
                verify_chain(certificates, time)
            assert caught.value.code == Code.EVIDENCE_CHAIN


@given(st.integers(1, 4), edits)
@settings(max_examples=50)
def test_damaged_certificates_that_their_issuer_signed(
    depth: int, changes: list[tuple[float, int, bytes]]
) -> None:
    """A signature that holds does not make the parser trust what it signs."""
    chain = ev.chain()

    def edit(tbs: der.Node) -> None:
        tbs.content, tbs.children = edited(tbs.encode()[4:], changes), []

    certificates = list(chain.certificates)
    certificates[depth] = pki.resign(certificates[depth], edit, chain.keys[depth - 1])
    with suppress(EvidenceError):
        verify_chain(certificates, NOW)


items = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), (1 << 64) - 1)
    | st.binary(max_size=50)
    | st.text(max_size=10),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 40), children, max_size=4)
    ),
    max_leaves=10,
)
names = st.sampled_from([*pki.payload(ev.chain()), "nitrotpm_pcrs", "extra"])


@given(st.dictionaries(names, items, min_size=1, max_size=3))
def test_signed_payloads_of_any_shape(fields: dict[str, object]) -> None:
    bundle = ev.good(**fields)
    with suppress(EvidenceError):
        ev.judge(bundle)


parts = st.sampled_from(
    ["attestation_document", "configuration", "instance_config", "measurement_log"]
)


@given(parts, edits, st.booleans())
def test_a_changed_bundle_never_verifies(
    part: str,
    changes: list[tuple[float, int, bytes]],
    bound: bool,
) -> None:
    """Also where the document binds the change, unless the parts still mean what they should."""
    bundle = ev.good()
    spoilt = ev.with_part(bundle, part, edited(getattr(bundle, part), changes))
    if spoilt == bundle:
        return
    if bound and part in {"instance_config", "measurement_log"}:
        with suppress(EvidenceError):
            ev.judge(ev.attested(spoilt))
        return
    if spoilt.attestation_document.removeprefix(b"\xd2") != bundle.attestation_document or (
        part != "attestation_document"
    ):
        with pytest.raises(EvidenceError):
            ev.judge(spoilt)


@given(edits)
def test_any_evidence_message(changes: list[tuple[float, int, bytes]]) -> None:
    data = edited(ev.good().serialize(), changes)
    with suppress(EvidenceError):
        bundle = EvidenceBundle.parse(data)
        verify_evidence(bundle, ev.policy(), nonce=ev.NONCE, now=NOW)
        assert bundle.user_data() == ev.good().user_data()


parsers: list[Callable[[bytes], object]] = [
    Configuration.parse,
    KeyConfig.parse,
    InstanceConfig.parse,
    parse_log,
]
encodings = [
    ev.CONFIGURATION.encode(),
    ev.KEY.encode(),
    ev.INSTANCE.encode(),
    encode_log([ev.LOADED]),
]


@given(st.sampled_from(list(zip(parsers, encodings, strict=True))), edits)
def test_what_parses_encodes_to_itself(
    layout: tuple[Callable[[bytes], object], bytes], changes: list[tuple[float, int, bytes]]
) -> None:
    parse, good = layout
    data = edited(good, changes)
    with suppress(EvidenceError):
        value = parse(data)
        again = encode_log(value) if isinstance(value, tuple) else value.encode()  # type: ignore[attr-defined]
        assert again == data


@given(st.sampled_from(parsers), items)
def test_any_cbor_as_a_structure(parse: Callable[[bytes], object], item: object) -> None:
    with pytest.raises(EvidenceError):
        parse(b"\xa1" + pki.cbor(item))
    with suppress(EvidenceError):
        parse(pki.cbor(item))


configuration_keys = st.sampled_from(list(cbor.decode(ev.CONFIGURATION.encode())))


@given(configuration_keys, items)
def test_any_value_in_a_configuration(key: str, item: object) -> None:
    value = cbor.decode(ev.CONFIGURATION.encode()) | {key: item}
    data = pki.cbor(dict(sorted(value.items(), key=lambda pair: pki.cbor(pair[0]))))
    with suppress(EvidenceError):
        assert Configuration.parse(data).encode() == data


registers = st.binary(min_size=48, max_size=48).filter(any)
releases = st.builds(Release, st.just("r"), registers, registers, registers, registers)
digests = st.frozensets(st.binary(min_size=48, max_size=48), min_size=1, max_size=3)
models = st.builds(
    AllowedModel,
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    st.binary(min_size=32, max_size=32),
    st.none() | digests,
)


@given(
    st.text(min_size=1, max_size=60).filter(lambda text: "${" not in text),
    st.frozensets(st.binary(min_size=32, max_size=32), min_size=1, max_size=3),
    releases,
    models,
    st.booleans(),
)
def test_policies_round_trip(
    audience: str, roots: frozenset[bytes], release: Release, model: AllowedModel, debug: bool
) -> None:
    policy = ev.policy(
        audience=audience, roots=roots, releases=(release,), models=(model,), allow_debug=debug
    )
    assert TrustPolicy.parse(policy.to_toml()) == policy


@given(edits)
def test_any_policy_text(changes: list[tuple[float, int, bytes]]) -> None:
    text = edited(ev.policy().to_toml().encode(), changes).decode(errors="replace")
    with suppress(PolicyError):
        TrustPolicy.parse(text)


@given(st.lists(st.sampled_from(["load", "unload"]), max_size=5))
def test_logs_of_any_length(operations: list[str]) -> None:
    log: list[LogEntry] = [replace(ev.LOADED, op=operation) for operation in operations]
    assert list(parse_log(encode_log(log))) == log
