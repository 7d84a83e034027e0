"""Load on a plaintext server with tritonclient's gRPC asyncio client, in an environment of its own.

``drive_oip.py TARGET MODELS_JSON MODEL IN_FLIGHT SECONDS WARM_UP``; prints one JSON object. A line
``begin`` or ``end`` on standard output tells whoever measures processors when the time runs.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import numpy as np
from tritonclient.grpc import aio


def tensors(facts, row):
    """The question as tritonclient takes it; built anew for each call, as an application does."""
    inputs = []
    for name in facts["inputs"]:
        tensor = aio.InferInput(name, row[name].shape, "FP32")
        tensor.set_data_from_numpy(row[name])
        inputs.append(tensor)
    return inputs


async def work(client, model, facts, row, until, ended):
    outputs = list(facts["outputs"])
    while True:
        start = time.perf_counter_ns()
        if start >= until:
            return
        answer = await client.infer(model, tensors(facts, row))
        for name in outputs:
            if answer.as_numpy(name) is None:
                raise SystemExit(f"no output {name}")
        ended.append((time.perf_counter_ns(), time.perf_counter_ns() - start))


async def main():
    target, models, model, in_flight, seconds, warm_up = sys.argv[1:]
    facts = json.loads(Path(models).read_text())[model]
    random = np.random.default_rng(0)
    row = {n: random.random((1, *shape), np.float32) for n, shape in facts["inputs"].items()}
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with aio.InferenceServerClient(target, channel_args=options) as client:
        await client.infer(model, tensors(facts, row))
        begin = time.perf_counter_ns() + int(float(warm_up) * 1e9)
        end = begin + int(float(seconds) * 1e9)
        ended = []
        jobs = [work(client, model, facts, row, end, ended) for _ in range(int(in_flight))]

        async def tell():
            for word, moment in (("begin", begin), ("end", end)):
                await asyncio.sleep(max(0.0, (moment - time.perf_counter_ns()) / 1e9))
                print(word, flush=True)

        await asyncio.gather(tell(), *jobs)
    took = sorted(ns / 1e6 for at, ns in ended if begin <= at < end)
    print(json.dumps({"seconds": float(seconds), "latencies": took}), flush=True)


asyncio.run(main())
