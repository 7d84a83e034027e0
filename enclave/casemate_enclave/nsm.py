"""The Nitro Security Module: the same bytes over ``/dev/nsm`` and over a unix socket.

The device is the root of what the enclave says about itself and of its time. Whoever can speak to
it can obtain documents with any public key, so only the enclave's process may reach it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Any, Protocol

from casemate import cbor, limits
from casemate.channel import UnixAddress, connect, parse_address
from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    import socket

# linux/nsm.h: _IOWR(0x0A, 0, struct nsm_raw), with nsm_raw = two pairs of u64 address and length
_IOCTL_RAW = 0xC0200A00
_RAW = struct.Struct("=QQQQ")
_HEAD = struct.Struct(">I")

# NsmErrorCode of aws-nitro-enclaves-nsm-api
_ERRORS = frozenset(
    {
        "BufferTooSmall",
        "InputTooLarge",
        "InternalError",
        "InvalidArgument",
        "InvalidIndex",
        "InvalidOperation",
        "InvalidResponse",
        "ReadOnlyIndex",
    }
)


class Transport(Protocol):
    """Carries one request to the module and brings its answer; raises OSError."""

    def __call__(self, request: bytes) -> bytes:
        """Exchange CBOR for CBOR."""
        ...


class DeviceTransport:
    """``/dev/nsm`` through its ioctl. Opened unbuffered: a buffered file needs a seekable one."""

    def __init__(self, path: str) -> None:
        self._device = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def __call__(self, request: bytes) -> bytes:
        """Exchange one request; the kernel writes the answer's length back."""
        question = ctypes.create_string_buffer(request, len(request))
        answer = ctypes.create_string_buffer(limits.NSM_RESPONSE_MAX)
        raw = bytearray(
            _RAW.pack(
                ctypes.addressof(question), len(request), ctypes.addressof(answer), len(answer)
            )
        )
        fcntl.ioctl(self._device, _IOCTL_RAW, raw)
        length = _RAW.unpack(raw)[3]
        return answer.raw[: min(length, limits.NSM_RESPONSE_MAX)]


class SocketTransport:
    """A unix socket that takes and gives ``u32 length || CBOR``; a connection for each exchange."""

    def __init__(self, address: UnixAddress) -> None:
        self._address = address

    def __call__(self, request: bytes) -> bytes:
        """Exchange one request."""
        with connect(self._address, limits.NSM_TIMEOUT_S) as channel:
            channel.sendall(_HEAD.pack(len(request)) + request)
            (length,) = _HEAD.unpack(_receive(channel, _HEAD.size))
            if length > limits.NSM_RESPONSE_MAX:
                raise OSError("answer too long")
            return _receive(channel, length)


def _receive(channel: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = channel.recv(count - len(data))
        if not piece:
            raise ConnectionResetError("answer cut")
        data += piece
    return data


class Nsm:
    """The module's operations that the enclave uses; an ``Attester`` (casemate_kms.attester).

    Every failure, of the device or of the way to it, is CasemateError(UNAVAILABLE).
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def attest(
        self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None
    ) -> bytes:
        """Return a signed attestation document (SPEC 3.7) that carries the three values."""
        fields = {"user_data": user_data, "nonce": nonce, "public_key": public_key}
        return _bytes(self._call("Attestation", fields), "document")

    def describe_pcr(self, index: int) -> tuple[bool, bytes]:
        """Return whether register ``index`` is locked, and its value."""
        answer = self._call("DescribePCR", {"index": index})
        locked = answer.get("lock")
        if type(locked) is not bool:
            raise _unavailable("unexpected answer")
        return locked, _bytes(answer, "data")

    def extend_pcr(self, index: int, data: bytes) -> bytes:
        """Extend register ``index`` with ``data`` and return its new value."""
        return _bytes(self._call("ExtendPCR", {"index": index, "data": data}), "data")

    def lock_pcr(self, index: int) -> None:
        """Make register ``index`` read-only until the enclave ends."""
        self._call("LockPCR", {"index": index})

    def random(self) -> bytes:
        """Return 1 to 256 random bytes of the module."""
        return _bytes(self._call("GetRandom", None), "random")

    def _call(self, operation: str, arguments: dict[str, Any] | None) -> dict[str, Any]:
        request = cbor.encode(operation if arguments is None else {operation: arguments})
        if len(request) > limits.NSM_REQUEST_MAX:
            raise _unavailable("request too long")
        try:
            answer = cbor.decode_nsm(self._transport(request))
        except (OSError, CasemateError, cbor.CborError):
            raise _unavailable("no answer") from None
        return _result(operation, answer)


def _result(operation: str, answer: Any) -> dict[str, Any]:  # noqa: ANN401 - decoded CBOR
    if answer == operation:  # operations without a result answer with their name alone
        return {}
    if isinstance(answer, dict) and len(answer) == 1:
        result = answer.get(operation)
        if isinstance(result, dict):
            return result
        error = answer.get("Error")
        if isinstance(error, str) and error in _ERRORS:
            raise _unavailable(error)
    raise _unavailable("unexpected answer")


def _bytes(result: dict[str, Any], key: str) -> bytes:
    value = result.get(key)
    if not isinstance(value, bytes) or not value:
        raise _unavailable("unexpected answer")
    return value


def _unavailable(reason: str) -> CasemateError:
    return CasemateError(Code.UNAVAILABLE, f"security module: {reason}")


def seed_kernel(nsm: Nsm, pool: str = "/dev/urandom") -> None:
    """Stir the module's randomness into the kernel's, which a VM just started has little of.

    Nothing is credited: a bad module cannot make it worse. Raises CasemateError or OSError.
    """
    device = os.open(pool, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(device, nsm.random())
    finally:
        os.close(device)


def open_nsm(name: str) -> Nsm:
    """Open the module at a device path, or at ``unix:PATH``; raises OSError or CasemateError."""
    if name.startswith("/"):
        return Nsm(DeviceTransport(name))
    address = parse_address(name)
    if not isinstance(address, UnixAddress):
        raise CasemateError(
            Code.INVALID_ARGUMENT, "the security module is a device or a unix socket"
        )
    return Nsm(SocketTransport(address))
