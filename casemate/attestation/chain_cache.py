"""Chains that were checked before: what of step 7 of SPEC 3.8 does not depend on the time.

An enclave uses one leaf for hours and signs each document under it, so a client meets the same
chain again and again. A cache belongs to whoever verifies; there is none for the whole process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from casemate import limits
from casemate.wire import digest, lp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric import ec


class Lifetime(NamedTuple):
    """When a certificate is valid, both ends included; milliseconds."""

    not_before: int
    not_after: int


@dataclass(frozen=True, slots=True)
class CheckedChain:
    """A chain in which each certificate was issued by the one before: its lifetimes, root first.

    Whether the root is a trust anchor and whether the lifetimes hold is asked each time.
    """

    lifetimes: tuple[Lifetime, ...]
    leaf_key: ec.EllipticCurvePublicKey


class ChainCache:
    """At most ``limits.CHAIN_CACHE_MAX`` checked chains, the latest used kept; thread-safe.

    A chain is known by the bytes of all its certificates, the root among them: another root, order
    or leaf is another chain.
    """

    def __init__(self, capacity: int = limits.CHAIN_CACHE_MAX) -> None:
        self._capacity = capacity
        self._chains: OrderedDict[bytes, CheckedChain] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._chains)

    def get(self, certificates: Sequence[bytes]) -> CheckedChain | None:
        """Return what is known of the chain of these certificates (DER, root first)."""
        key = _key(certificates)
        with self._lock:
            chain = self._chains.get(key)
            if chain is not None:
                self._chains.move_to_end(key)
            return chain

    def put(self, certificates: Sequence[bytes], chain: CheckedChain) -> None:
        """Remember a chain that passed every check; the one unused for longest makes room."""
        key = _key(certificates)
        with self._lock:
            self._chains[key] = chain
            while len(self._chains) > self._capacity:
                self._chains.popitem(last=False)


def _key(certificates: Sequence[bytes]) -> bytes:
    return digest(lp(*certificates))
