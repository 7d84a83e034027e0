"""Ten times what the service can do: who is let in is served as before, who is not knows at once.

The deployment of the demonstration, every process real, with a model of some ten milliseconds. The
enclave has processors of its own, as a Nitro enclave has; host and load share the others. Run by
`make bench`, from the root of the repository and with a staged tree:
`python -m bench.overload [--json]`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.rounds import Ratio
from casemate.errors import Code
from tests.support.busy_model import busy_model
from tests.support.deployment import prepared
from tests.support.load import Load, Request, closed, not_ok, offered, sealed_requests
from tests.support.workers import descendants

if TYPE_CHECKING:
    from casemate_devkit.local import LocalDeployment

PLACES = 64  # limits.UNARY_DEFAULT: what the host lets in
UNLOADED, AT_CAPACITY = 60, 600
TIMES, SECONDS = 10, 8.0
_EXPECTED = {"sent", "answered", "refused"}
TREE = Path(__file__).resolve().parents[1] / ".stage/tree"


@dataclass(frozen=True, slots=True)
class Measured:
    """The three loads, and which requests the enclave was sent in the last, with repetitions."""

    unloaded: Load
    capacity: Load
    overload: Load
    delivered: list[bytes]
    refused_inside: int


def main() -> int:
    """Measure, print, and return 1 if a target is missed."""
    with tempfile.TemporaryDirectory(prefix="cm-") as folder:
        model = Path(folder) / "busy.onnx"
        model.write_bytes(busy_model())
        with prepared(Path(folder), TREE) as world:
            world.start_enclave()
            sealed = world.seal_model(model)
            world.start_host([sealed])
            share_processors(world)
            world.wait_until_serving()
            measured = measure(world)
    return report(measured)


def share_processors(world: LocalDeployment) -> None:
    """Give the enclave the first half of the processors, and everybody else the others."""
    processors = sorted(os.sched_getaffinity(0))
    half = max(1, len(processors) // 2)
    others = processors[half:] or processors
    enclave = int(world.enclave.ready["pid"]) if world.enclave else 0
    host = world.host.pid if world.host else 0
    shares = dict.fromkeys((enclave, *descendants(enclave)), processors[:half])
    for pid, share in {**shares, host: others, os.getpid(): others}.items():
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), share)


def measure(world: LocalDeployment) -> Measured:
    """Send the three loads, one after the other."""
    unloaded = closed(world.target, sealed_requests(world, UNLOADED), at_once=1)
    closed(world.target, sealed_requests(world, PLACES), at_once=PLACES)  # connections, threads
    capacity = closed(world.target, sealed_requests(world, AT_CAPACITY), at_once=PLACES)
    rate = TIMES * len(capacity.answered) / capacity.wall_s
    requests = sealed_requests(world, int(rate * SECONDS))
    seen_before = len(world.relay_tap.recorded())
    overload = offered(world.target, requests, rate)
    wire = delivered(world, requests, seen_before)
    return Measured(unloaded, capacity, overload, wire, not_ok(overload, requests))


def delivered(world: LocalDeployment, requests: list[Request], start: int) -> list[bytes]:
    """The request ids that passed the wire between host and enclave, as often as they did."""
    wire = world.relay_tap.recorded()[start:]
    found = []
    for commitment in {request.commitment for request in requests}:
        at = wire.find(commitment)
        while at >= 0:
            begin = at - Request.COMMITMENT_AT + Request.ID_AT
            found.append(wire[begin : begin + Request.ID_BYTES])
            at = wire.find(commitment, at + 1)
    return found


def counted(load: Load, delivered: list[bytes]) -> dict[str, int]:
    """How the calls of ``load`` ended, at the client's end and on the wire to the enclave."""
    answered, on_wire = set(load.answered), set(delivered)
    return {
        "sent": len(load.sent),
        "answered": len(answered),
        "refused": len(load.refused),
        "lost": len(load.sent) - len(load.answered) - len(load.refused),
        "answered and not delivered": len(answered - on_wire),
        "delivered and not answered": len(on_wire - answered),
        "delivered twice": len(delivered) - len(on_wire),
        "refused for another reason": sum(c is not Code.OVERLOADED for c in load.refused.values()),
        "refused without a hint": load.without_hint,
    }


def report(measured: Measured) -> int:
    """Print what was measured; return 1 if a target is missed."""
    unloaded, capacity, overload = measured.unloaded, measured.capacity, measured.overload
    ratios = [
        Ratio("accepted p99 / p99 at capacity", overload.p99_ms / capacity.p99_ms, 2),
        Ratio("refused p50 / unloaded p50", overload.refused_p50_ms / unloaded.p50_ms, 2),
    ]
    counts = counted(overload, measured.delivered)
    counts["answered with a sealed refusal"] = measured.refused_inside
    wrong = [count for name, count in counts.items() if name not in _EXPECTED and count]
    figures = {
        "unloaded p50 ms": unloaded.p50_ms,
        "capacity per s": len(capacity.answered) / capacity.wall_s,
        "p99 at capacity ms": capacity.p99_ms,
        "offered per s": len(overload.sent) / overload.wall_s,
        "answered per s": len(overload.answered) / overload.wall_s,
        "accepted p50 ms": overload.p50_ms,
        "accepted p99 ms": overload.p99_ms,
        "refused p50 ms": overload.refused_p50_ms,
        "refused p99 ms": statistics.quantiles(overload.refused_ms, n=100)[98],
    }
    _print(figures, counts, ratios)
    return 0 if all(ratio.met for ratio in ratios) and not wrong else 1


def _print(figures: dict[str, float], counts: dict[str, int], ratios: list[Ratio]) -> None:
    if "--json" in sys.argv[1:]:
        judged = [
            {"name": r.name, "value": round(r.value, 3), "target": r.target, "met": r.met}
            for r in ratios
        ]
        rounded = {name: round(value, 2) for name, value in figures.items()}
        print(json.dumps({"bench": "overload", **rounded, "counts": counts, "ratios": judged}))
        return
    print(f"overload: {TIMES} times the capacity for {SECONDS:g} s")
    for name, value in (figures | counts).items():
        print(f"  {name:<34} {value:9.1f}")
    for r in ratios:
        verdict = "met" if r.met else "MISSED"
        print(f"  {r.name:<50} {r.value:6.2f}   at most {r.target:g}: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
