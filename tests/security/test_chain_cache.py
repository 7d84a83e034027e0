"""A26 with memory: a chain that was seen before is spared its signatures and nothing else."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from casemate import limits
from casemate.attestation import ChainCache, chain, parse_document, verify_document, verify_evidence
from casemate.attestation.chain_cache import CheckedChain
from casemate.errors import Code, EvidenceError
from tests.support import evidence as ev
from tests.support import nitro_pki as pki
from tests.support.documents import AWS_ROOTS, GENUINE, genuine
from tests.support.nitro_pki import NOW

if TYPE_CHECKING:
    from cryptography import x509

SECOND = timedelta(seconds=1)


@pytest.fixture
def signatures(monkeypatch: pytest.MonkeyPatch) -> list[x509.Certificate]:
    """The certificates whose signatures were checked, in order."""
    checked: list[x509.Certificate] = []
    check = chain._check_issued

    def counting(subject: x509.Certificate, issuer: x509.Certificate) -> None:
        checked.append(subject)
        check(subject, issuer)

    monkeypatch.setattr(chain, "_check_issued", counting)
    return checked


def verify(data: bytes, trusted: pki.Chain, cache: ChainCache, now: int = NOW) -> None:
    verify_document(data, roots=trusted.roots, now=now, chains=cache)


def code(data: bytes, trusted: pki.Chain, cache: ChainCache, now: int = NOW) -> Code:
    with pytest.raises(EvidenceError) as caught:
        verify(data, trusted, cache, now)
    return caught.value.code


def test_a_seen_chain_is_spared_its_signatures(signatures: list[x509.Certificate]) -> None:
    cache = ChainCache()
    for timestamp in (NOW, NOW + 1, NOW + 2):
        verify(pki.document(ev.chain(), timestamp=timestamp), ev.chain(), cache)
    assert len(signatures) == 4
    verify_document(genuine(GENUINE), roots=AWS_ROOTS, now=1756509359524, chains=cache)
    assert len(signatures) == 8
    assert len(cache) == 2


def test_without_a_cache_nothing_is_remembered(signatures: list[x509.Certificate]) -> None:
    for _ in range(2):
        verify_document(pki.document(ev.chain()), roots=ev.chain().roots, now=NOW)
    assert len(signatures) == 8


@pytest.mark.parametrize("depth", range(5))
def test_lifetimes_of_a_seen_chain_are_judged_each_time(depth: int) -> None:
    specs = pki.real_shape()
    specs[depth] = replace(specs[depth], before=SECOND, after=SECOND)
    made = pki.issue(specs)
    data, cache = pki.document(made), ChainCache()
    verify(data, made, cache)
    for now in (NOW - 1001, NOW + 1001):
        assert code(data, made, cache, now) == Code.EVIDENCE_CHAIN
    for now in (NOW - 1000, NOW + 1000):
        verify(data, made, cache, now)


def test_the_root_is_asked_for_each_time() -> None:
    cache, data = ChainCache(), pki.document(ev.chain())
    verify(data, ev.chain(), cache)
    assert code(data, pki.issue(pki.real_shape()), cache) == Code.EVIDENCE_ROOT


def test_the_documents_own_signature_is_checked_each_time() -> None:
    cache, data = ChainCache(), pki.document(ev.chain())
    verify(data, ev.chain(), cache)
    assert code(data[:-1] + bytes([data[-1] ^ 1]), ev.chain(), cache) == Code.EVIDENCE_SIGNATURE


def test_one_other_certificate_is_another_chain() -> None:
    cache, other = ChainCache(), pki.issue(pki.real_shape())
    verify(pki.document(ev.chain()), ev.chain(), cache)
    certificates = ev.chain().certificates
    for depth in range(1, 5):
        mixed = [*certificates[:depth], other.certificates[depth], *certificates[depth + 1 :]]
        data = pki.document(ev.chain(), cabundle=mixed[:-1], certificate=mixed[-1])
        assert code(data, ev.chain(), cache) == Code.EVIDENCE_CHAIN
    root, regional, zonal, instance = certificates[:-1]
    for bundle in ([root, zonal, regional, instance], [root, regional, zonal]):
        data = pki.document(ev.chain(), cabundle=bundle)
        assert code(data, ev.chain(), cache) == Code.EVIDENCE_CHAIN
    assert len(cache) == 1


def test_a_refused_chain_is_not_remembered() -> None:
    cache = ChainCache()
    specs = pki.real_shape()
    specs[3] = replace(specs[3], after=-SECOND)
    expired = pki.issue(specs)
    data = pki.document(expired)
    assert code(data, expired, cache) == Code.EVIDENCE_CHAIN
    forged = ev.chain().certificates[:-2] + pki.issue(pki.real_shape()).certificates[-2:]
    data = pki.document(ev.chain(), cabundle=forged[:-1], certificate=forged[-1])
    assert code(data, ev.chain(), cache) == Code.EVIDENCE_CHAIN
    assert len(cache) == 0


def test_the_chain_unused_for_longest_makes_room() -> None:
    cache = ChainCache(2)
    known = CheckedChain((), ev.chain().keys[0].public_key())
    for name in (b"a", b"b"):
        cache.put([name], known)
    assert cache.get([b"a"]) is known
    cache.put([b"c"], known)
    assert (cache.get([b"a"]), cache.get([b"b"]), cache.get([b"c"])) == (known, None, known)
    assert len(cache) == 2


def test_any_number_of_chains_fits_in_the_bound() -> None:
    cache = ChainCache()
    known = CheckedChain((), ev.chain().keys[0].public_key())
    for number in range(3 * limits.CHAIN_CACHE_MAX):
        cache.put([number.to_bytes(2, "big")], known)
    assert len(cache) == limits.CHAIN_CACHE_MAX


def test_threads_share_a_cache() -> None:
    cache = ChainCache(1)
    chains = [ev.chain(), pki.issue(pki.real_shape())]
    documents = [(pki.document(made), made) for made in chains]
    failed: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(5):
                for data, made in documents:
                    verify(data, made, cache)
        except Exception as error:  # noqa: BLE001 - reported by the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(cache) == 1


def test_evidence_takes_a_cache_too(signatures: list[x509.Certificate]) -> None:
    cache, bundle = ChainCache(), ev.good()
    for _ in range(2):
        verify_evidence(bundle, ev.policy(), nonce=ev.NONCE, now=NOW, chains=cache)
    assert len(signatures) == 4
    late = parse_document(bundle.attestation_document).timestamp + 3 * 3_600_000
    with pytest.raises(EvidenceError, match="EVIDENCE_CHAIN"):
        verify_evidence(bundle, ev.policy(), nonce=ev.NONCE, now=late, chains=cache)
