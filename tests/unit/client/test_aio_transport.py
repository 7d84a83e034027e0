"""A stream's call on an event loop: what the host says of its end is never lost."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest

from casemate.client.transport import AsyncHostConnection
from casemate.errors import Code, RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a host that refuses every stream at once."""

    def refuse(_: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
        context.set_details("no room")
        return iter(())

    server = grpc.server(ThreadPoolExecutor(4))
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "InferStream": grpc.stream_stream_rpc_method_handler(refuse)
    }
    service = "casemate.v1.ConfidentialInference"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


async def many() -> AsyncGenerator[bytes, None]:
    for _ in range(20):
        yield b"x" * 3000
        await asyncio.sleep(0.0005)


def test_a_refusal_that_meets_a_message_on_its_way_keeps_its_reason(refusing: str) -> None:
    async def work() -> set[Code]:
        connection, codes = AsyncHostConnection(refusing), set()
        for _ in range(200):
            call = connection.stream(many(), 60)
            with pytest.raises(RequestError) as caught:
                await call.take()
            codes.add(caught.value.code)
            call.cancel()
        await connection.close()
        return codes

    assert asyncio.run(work()) == {Code.OVERLOADED}


def test_what_cannot_be_sent_ends_the_call(refusing: str) -> None:
    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"x"
        raise RequestError(Code.TOO_LARGE, "no more can be sealed")

    async def work() -> Code:
        connection = AsyncHostConnection(refusing)
        with pytest.raises(RequestError) as caught:
            await connection.stream(broken(), 60).take()
        await connection.close()
        return caught.value.code

    assert asyncio.run(work()) in {Code.UNAVAILABLE, Code.OVERLOADED}
