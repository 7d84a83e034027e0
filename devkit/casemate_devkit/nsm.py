"""A simulated Nitro Security Module: register bank, request handling, signed documents.

It answers byte for byte in the module's own dialect (``aws-nitro-enclaves-nsm-api``), so the
enclave runs the client that it runs in production, and clients run the production verifier against
a root that only a trial's trust policy lists.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from casemate import cbor, limits
from casemate.wire import digest
from casemate_devkit import documents

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from casemate.attestation.measurement import Measurement
    from casemate_devkit.pki import NitroPki

REQUEST_MAX: Final = 0x1000  # Linux, drivers/misc/nsm.c
RESPONSE_MAX: Final = 0x3000
LOCKED_AT_BOOT: Final = 16  # the hypervisor's registers; 16 to 31 are the enclave's own
_RANDOM_BYTES: Final = 256
_ZERO: Final = bytes(limits.PCR_BYTES)
_FIELDS: Final = ("user_data", "nonce", "public_key")


class _Refusal(Exception):  # noqa: N818 - an answer of the module, not an error of this program
    """An ``Error`` answer; its text is the module's code."""


@dataclass(frozen=True, slots=True)
class Registers:
    """A bank at one moment: the 32 values of 48 bytes, and the indices that are locked."""

    values: tuple[bytes, ...]
    locked: frozenset[int]


def boot_registers(
    measurement: Measurement, instance_id: str, *, debug: bool = False
) -> dict[int, bytes]:
    """Registers 0, 1, 2 and 4 as the hypervisor sets them before an enclave runs.

    Debug mode zeroes PCR0, PCR1, PCR2 (and PCR8, which is zero for unsigned images anyway) and, as
    on the real device, nothing else. Register 3 is zero: no role.
    """
    registers = {4: digest(_ZERO, instance_id.encode("ascii"))}
    if not debug:
        registers |= {0: measurement.pcr0, 1: measurement.pcr1, 2: measurement.pcr2}
    return registers


class SimulatedNsm:
    """One enclave start's module: a fresh bank whose registers 0 to 15 are locked. Thread-safe."""

    def __init__(
        self,
        pki: NitroPki,
        registers: Mapping[int, bytes],
        *,
        module_id: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if any(len(value) != limits.PCR_BYTES for value in registers.values()):
            raise ValueError("a register has 48 bytes")
        self.module_id = module_id or pki.new_module_id()
        self._pki = pki
        self._clock = clock
        self._mutex = threading.Lock()
        self._pcrs = [registers.get(index, _ZERO) for index in range(limits.PCR_MAX)]
        self._locked = set(range(LOCKED_AT_BOOT))

    @classmethod
    def resume(
        cls,
        pki: NitroPki,
        registers: Registers,
        module_id: str,
        *,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Return the module of an enclave that runs already; raises ValueError."""
        if len(registers.values) != limits.PCR_MAX:
            raise ValueError("a bank has 32 registers")
        nsm = cls(pki, dict(enumerate(registers.values)), module_id=module_id, clock=clock)
        nsm._locked = set(registers.locked)
        return nsm

    def registers(self) -> Registers:
        """Return what the bank holds now."""
        with self._mutex:
            return Registers(tuple(self._pcrs), frozenset(self._locked))

    def handle(self, request: bytes) -> bytes:
        """Answer one CBOR request with one CBOR response of at most 0x3000 bytes; never raises."""
        try:
            answer = self._answer(request)
            if len(answer) > RESPONSE_MAX:
                raise _Refusal("BufferTooSmall")  # noqa: TRY301 - refused like every other request
        except _Refusal as refusal:
            return cbor.encode({"Error": str(refusal)})
        return answer

    def _answer(self, request: bytes) -> bytes:
        if len(request) > REQUEST_MAX:
            raise _Refusal("InputTooLarge")
        operation, arguments = _parse(request)
        handlers: dict[str, Callable[[dict[str, Any]], bytes]] = {
            "DescribeNSM": self._describe_nsm,
            "GetRandom": self._get_random,
            "DescribePCR": self._describe_pcr,
            "ExtendPCR": self._extend_pcr,
            "LockPCR": self._lock_pcr,
            "LockPCRs": self._lock_pcrs,
            "Attestation": self._attestation,
        }
        handler = handlers.get(operation)
        if handler is None:
            raise _Refusal("InvalidOperation")
        with self._mutex:
            return handler(arguments)

    def _describe_nsm(self, arguments: dict[str, Any]) -> bytes:
        _only(arguments)
        return _reply(
            "DescribeNSM",
            version_major=1,
            version_minor=0,
            version_patch=0,
            module_id=self.module_id,
            max_pcrs=limits.PCR_MAX,
            locked_pcrs=sorted(self._locked),
            digest="SHA384",
        )

    def _get_random(self, arguments: dict[str, Any]) -> bytes:
        _only(arguments)
        return _reply("GetRandom", random=os.urandom(_RANDOM_BYTES))

    def _describe_pcr(self, arguments: dict[str, Any]) -> bytes:
        index = self._index(arguments, "index")
        return _reply("DescribePCR", lock=index in self._locked, data=self._pcrs[index])

    def _extend_pcr(self, arguments: dict[str, Any]) -> bytes:
        index = self._index(arguments, "data", "index")
        if not isinstance(arguments["data"], bytes):
            raise _Refusal("InvalidOperation")
        self._unlocked(index)
        self._pcrs[index] = digest(self._pcrs[index], arguments["data"])
        return _reply("ExtendPCR", data=self._pcrs[index])

    def _lock_pcr(self, arguments: dict[str, Any]) -> bytes:
        index = self._index(arguments, "index")
        self._unlocked(index)
        self._locked.add(index)
        return cbor.encode("LockPCR")

    def _lock_pcrs(self, arguments: dict[str, Any]) -> bytes:
        _only(arguments, "range")
        if type(arguments["range"]) is not int:
            raise _Refusal("InvalidOperation")
        if arguments["range"] > limits.PCR_MAX:
            raise _Refusal("InvalidIndex")
        self._locked.update(range(arguments["range"]))
        return cbor.encode("LockPCRs")

    def _attestation(self, arguments: dict[str, Any]) -> bytes:
        if arguments.keys() - set(_FIELDS):
            raise _Refusal("InvalidOperation")
        given = {key: arguments.get(key) for key in _FIELDS}
        if any(not isinstance(value, bytes | None) for value in given.values()):
            raise _Refusal("InvalidOperation")
        if any(value and len(value) > limits.DOCUMENT_FIELD_MAX for value in given.values()):
            raise _Refusal("InputTooLarge")
        # What the enclave extended but did not lock yet could still change: it is not attested.
        statement = documents.Statement(
            module_id=self.module_id,
            timestamp=int(self._clock() * 1000),
            pcrs={index: self._pcrs[index] for index in self._locked},
            **given,
        )
        signer = self._pki.leaf(self.module_id)
        return _reply("Attestation", document=documents.document(statement, signer))

    def _index(self, arguments: dict[str, Any], *names: str) -> int:
        _only(arguments, *names)
        index = arguments["index"]
        if type(index) is not int:
            raise _Refusal("InvalidOperation")
        if index >= limits.PCR_MAX:
            raise _Refusal("InvalidIndex")
        return index

    def _unlocked(self, index: int) -> None:
        if index in self._locked:
            raise _Refusal("ReadOnlyIndex")


def _parse(request: bytes) -> tuple[str, dict[str, Any]]:
    """Split a request: a bare text is an operation without arguments."""
    try:
        value = cbor.decode_nsm(request)
    except cbor.CborError:
        raise _Refusal("InvalidOperation") from None
    if isinstance(value, str):
        return value, {}
    if isinstance(value, dict) and len(value) == 1:
        operation, arguments = next(iter(value.items()))
        if isinstance(operation, str) and isinstance(arguments, dict):
            return operation, arguments
    raise _Refusal("InvalidOperation")


def _only(arguments: dict[str, Any], *names: str) -> None:
    if arguments.keys() != set(names):
        raise _Refusal("InvalidOperation")


def _reply(operation: str, **fields: cbor.Value) -> bytes:
    """A reply in the module's field order."""
    body = documents.ordered_map((key, cbor.encode(value)) for key, value in fields.items())
    return documents.ordered_map([(operation, body)])
