"""The stack as a person meets it: up, verified, used, restarted, down and up again."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Self

import numpy as np
import onnxruntime
import pytest

from casemate.errors import CasemateError, Code
from tests.support.deployment import DATA

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casemate.client import Client
    from tests.support.compose import Stack

SERVICES = ("nsm", "kms", "enclave", "host")
ROWS = DATA.features[:16]
# What a client may hear while a service restarts; anything else is a defect.
NOBODY_ANSWERED = {Code.HOST_UNREACHABLE, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}
STALE = {Code.UNKNOWN_INSTANCE, Code.UNKNOWN_KEY, Code.STALE_SESSION, Code.OPEN_FAILED}
NOT_YET = {Code.UNKNOWN_MODEL, Code.NOT_CONFIGURED, Code.OVERLOADED}
# Identical bytes were sent again and the first had arrived, with whoever was to answer (SPEC 11.5).
PERHAPS_RUN = {Code.REPLAYED}
_BACK_S = 180


@pytest.fixture(scope="module")
def expected() -> dict[str, bytes]:
    """What plain onnxruntime says of the same rows."""
    plain = onnxruntime.InferenceSession(DATA.onnx, providers=["CPUExecutionProvider"])
    names = ["label", "probabilities"]
    outputs = plain.run(names, {"features": ROWS})
    return {name: array.tobytes() for name, array in zip(names, outputs, strict=True)}


class Load:
    """Clients that never stop asking; counts answers, compares each, remembers the longest wait."""

    def __init__(
        self, connect: Callable[[], Client], expected: dict[str, bytes], clients: int = 4
    ) -> None:
        self._connect = connect
        self._expected = expected
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work) for _ in range(clients)]
        self.answers = 0
        self.answered: set[int] = set()  # which clients have begun
        self.wrong = 0
        self.codes: Counter[str] = Counter()
        self.longest_s = 0.0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        with self._connect() as client:
            asked = time.monotonic()
            while not self._stop.is_set():
                try:
                    result = client.infer("wdbc", {"features": ROWS}, timeout_s=30)
                except CasemateError as error:
                    with self._lock:
                        self.codes[str(error.code)] += 1
                    self._stop.wait(0.05)
                    continue
                right = {n: a.tobytes() for n, a in result.outputs.items()} == self._expected
                with self._lock:
                    self.answers += 1
                    self.answered.add(threading.get_ident())
                    self.wrong += not right
                    self.longest_s = max(self.longest_s, time.monotonic() - asked)
                asked = time.monotonic()
                self._stop.wait(0.01)

    def await_answers(self, count: int) -> None:
        """Wait until ``count`` more requests were answered, and every client had an answer."""
        deadline, target = time.monotonic() + _BACK_S, self.answers + count
        while self.answers < target or len(self.answered) < len(self._threads):
            assert time.monotonic() < deadline, f"no answers for {_BACK_S} s; {self.codes}"
            time.sleep(0.05)


def test_up_leaves_every_service_healthy_and_every_job_done(stack: Stack) -> None:
    for service in SERVICES:
        stack.wait_healthy(service)
    for job in ("parties", "seal"):
        state = stack.inspect(job)["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 0)


def test_the_client_container_verifies_every_step(stack: Stack) -> None:
    done = stack.client()
    assert done.returncode == 0, done.stderr
    steps = [line for line in done.stdout.splitlines() if line.startswith("  ✓")]
    assert [int(line.split()[1]) for line in steps] == list(range(1, 19))
    assert "evidence verified" in done.stdout
    assert "form         container" in done.stdout


def test_the_client_container_gets_a_sealed_answer(stack: Stack) -> None:
    done = stack.client(
        *("infer", "host:8443", "wdbc", "--policy", "trust.toml", "--caller-key", "key.pem"),
        *("--input", "features=example.csv"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"]["probabilities"]["shape"] == [20, 2]


def test_key_mode_kms_works_under_the_real_endpoint_name(stack: Stack, clinic: Path) -> None:
    """The clinic's data key comes from its own KMS key, whose policy names this release."""
    arn = (clinic / "key-arn").read_text().strip()
    lines = (clinic / "aws.env").read_text().splitlines()
    settings = [item for line in lines for item in ("--env", line)]
    done = stack.compose(
        *("run", "--rm", "--no-deps", *settings, "client"),
        *("infer", "host:8443", "wdbc", "--policy", "trust.toml", "--caller-key", "key.pem"),
        *("--input", "features=example.csv", "--kms-key", arn),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "wdbc"


def test_from_this_machine_answers_equal_plain_onnxruntimes(
    connect: Callable[[], Client], expected: dict[str, bytes]
) -> None:
    with connect() as client:
        result = client.infer("wdbc", {"features": ROWS})
    assert {name: array.tobytes() for name, array in result.outputs.items()} == expected
    assert np.isfinite(result.outputs["probabilities"]).all()


def test_from_this_machine_small_requests_travel_in_frames(
    stack: Stack, connect: Callable[[], Client]
) -> None:
    """The second published port leads to the host, under the number that it offers."""
    script = """
import urllib.request
page = urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=60).read().decode()
name = "casemate_framed_connections "
print(*(line.removeprefix(name) for line in page.splitlines() if line.startswith(name)))
"""
    with connect() as client:
        deadline = time.monotonic() + _BACK_S
        # One for calls that meet; a lone call may have made another.
        while not float(stack.python("host", script).stdout):
            assert time.monotonic() < deadline
            for _ in range(10):
                client.infer("wdbc", {"features": ROWS})


@pytest.mark.parametrize("how", ["restart", "kill"])
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_restarts_under_load_comes_back_and_no_answer_is_wrong(
    stack: Stack,
    connect: Callable[[], Client],
    expected: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    service: str,
    how: str,
) -> None:
    started = stack.inspect(service)["State"]["StartedAt"]
    with Load(connect, expected) as load:
        load.await_answers(20)
        if how == "restart":
            stack.compose("restart", service)
        else:  # as a crash: what the engine does on its own is the restart policy
            stack.crash(service)
        while stack.inspect(service)["State"]["StartedAt"] == started:
            time.sleep(0.1)
        stack.wait_healthy(service)
        stack.wait_healthy("host")
        load.await_answers(40)
    with capsys.disabled():
        print(
            f"\n{how} {service}: {load.answers} answers, {load.wrong} wrong, refused "
            f"{dict(load.codes)}, longest wait {load.longest_s:.2f} s"
        )
    assert load.wrong == 0
    assert set(load.codes) <= {str(c) for c in NOBODY_ANSWERED | STALE | NOT_YET | PERHAPS_RUN}
    if service in {"nsm", "kms"}:
        assert not load.codes  # neither is in the path of a request of who has verified the enclave


def test_the_sealed_model_survives_down_and_up(
    stack: Stack,
    connect: Callable[[], Client],
    tmp_path: Path,
) -> None:
    def sealed() -> str:
        path = stack.copy("seal", "/vendor/wdbc-1.sealed", tmp_path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    before = sealed()
    stack.compose("--profile", "observe", "down")
    stack.up()
    assert sealed() == before
    with connect() as client:
        assert client.verify().log[0].name == "wdbc"
