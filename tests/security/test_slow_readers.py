"""Clients of streams that take no answers, against the real processes (THREATS.md: C3)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

from casemate.channel import connect
from casemate.errors import Code
from casemate.tensors import TensorSpec, to_request
from casemate_devkit.local import MODEL
from tests.support import onnx_bytes
from tests.support.attacker import TIMEOUT_S, genuine, start_session
from tests.support.streams import speak
from tests.support.vendor_models import seal

if TYPE_CHECKING:
    from casemate_devkit.local import LocalDeployment

pytestmark = pytest.mark.integration
ZEROS = 31


def test_c3_who_reads_no_answers_holds_no_place_of_a_quick_model(
    deployment: LocalDeployment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """More streams than the model has places, each with more answers than its connection takes."""
    enclave = genuine(deployment)
    content = seal(
        *(deployment, tmp_path_factory.mktemp("model"), onnx_bytes.zeros()),
        version=ZEROS,
        inputs=(TensorSpec("n", "INT64", (1,)),),
        outputs=(TensorSpec("y", "FP32", (0,)),),
    )
    enclave.load(content)
    session = start_session(deployment)
    message = to_request({"n": np.array([7_000], np.int64)})  # 28,000 bytes: together with others
    assert session.ask(enclave, message, version=ZEROS).trailer.status is Code.OK
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            channel = stack.enter_context(connect(enclave.address, TIMEOUT_S))
            channel.settimeout(1)
            spoken = speak(channel, session.keys, version=ZEROS, budget=600_000).begin()
            with contextlib.suppress(TimeoutError):  # once it is full
                for _ in range(20):
                    units = [chunk for _ in range(32) for chunk in spoken.call.question([message])]
                    spoken.send(units)
        for _ in range(20):
            assert session.ask(enclave, message, version=ZEROS).trailer.status is Code.OK
    enclave.unload(MODEL, ZEROS)
