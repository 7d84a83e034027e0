"""``casemate-admin``: ask a running host's administration service, or make a caller's token."""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from casemate import limits
from casemate.v1 import administration_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

_REFUSED, _NO_ANSWER = 1, 3
_SERVICE: Final = "/casemate.v1.Administration/"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the answer as JSON; 0, or 1 refused, 2 wrong usage, 3 nobody answered."""
    options = _parser().parse_args(arguments)
    if options.command == "token":
        return _token()
    method, request, answer_type = _request(options)
    target = f"unix:{options.socket}"
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call: Any = channel.unary_unary(_SERVICE + method)
        try:
            data = call(request.SerializeToString(), timeout=limits.LOAD_TIMEOUT_S)
        except grpc.RpcError as error:
            return _failed(error)
    print(json.dumps(_as_dict(answer_type.FromString(data)), indent=2))  # noqa: T201 - its output
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="casemate-admin", description="Administer one host.")
    parser.add_argument(
        "--socket",
        type=Path,
        default=Path("/run/casemate/admin.sock"),
        help="administration.socket of the host's configuration (%(default)s)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="whether the host serves, and why not")
    commands.add_parser("models", help="what is loaded, and which files failed")
    load = commands.add_parser("load", help="load a sealed model beside the others")
    load.add_argument("file", type=Path)
    replace = commands.add_parser("replace", help="load a sealed model in place of a version")
    replace.add_argument("file", type=Path)
    replace.add_argument("version", type=_version, help="the version that it replaces")
    unload = commands.add_parser("unload", help="serve a version no more")
    unload.add_argument("name")
    unload.add_argument("version", type=_version)
    drain = commands.add_parser("drain", help="take no new sessions, then end the enclave")
    drain.add_argument("seconds", type=_seconds, help="the enclave ends within this time")
    commands.add_parser("token", help="make a bearer token and its line for the configuration")
    return parser


def _version(text: str) -> int:
    """Return a model's version (SPEC 8.2)."""
    version = int(text)
    if not 1 <= version < 1 << 32:
        raise argparse.ArgumentTypeError("not from 1 to 2^32-1")
    return version


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= limits.ADMIN_DRAIN_MAX_S:
        raise argparse.ArgumentTypeError(f"not from 0 to {limits.ADMIN_DRAIN_MAX_S:g}")
    return seconds


def _request(options: argparse.Namespace) -> tuple[str, Message, Any]:
    match options.command:
        case "models":
            return "ListModels", pb.ListModelsRequest(), pb.ListModelsResponse
        case "load":
            path = str(options.file.absolute())
            return "LoadModel", pb.LoadModelRequest(path=path), pb.LoadedModel
        case "replace":
            path = str(options.file.absolute())
            request = pb.ReplaceModelRequest(path=path, replaces=options.version)
            return "ReplaceModel", request, pb.LoadedModel
        case "unload":
            named = pb.UnloadModelRequest(name=options.name, version=options.version)
            return "UnloadModel", named, pb.UnloadModelResponse
        case "drain":
            within = pb.DrainRequest(within_ms=int(options.seconds * 1000))
            return "Drain", within, pb.DrainResponse
        case _:
            return "GetStatus", pb.GetStatusRequest(), pb.HostStatus


def _as_dict(message: Message) -> dict[str, Any]:
    """Digests in hexadecimal, not protobuf's base64; numbers as numbers."""
    result: dict[str, Any] = {}
    for field, value in message.ListFields():
        result[field.name] = _plain(value)
    return result


def _plain(value: Any) -> Any:  # noqa: ANN401 - a protobuf field
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str | int | float):
        return value
    return [_as_dict(item) for item in value]


def _token() -> int:
    """The token is for the caller, its digest for the host; neither is kept here."""
    token = secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode()).hexdigest()
    print(json.dumps({"token": token, "token_sha256": digest}, indent=2))  # noqa: T201 - its output
    return 0


def _failed(error: grpc.RpcError) -> int:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status is not None else ():
        if detail.Unpack(info):
            print(status.message, file=sys.stderr)  # noqa: T201 - its output
            return _REFUSED
    print(f"{error.code().name}: the host does not answer", file=sys.stderr)  # noqa: T201 - as above
    return _NO_ANSWER


if __name__ == "__main__":
    sys.exit(main())
