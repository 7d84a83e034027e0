"""The image in a machine: what its own device says of it, and by whose clock it lives."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from casemate.attestation import parse_document
from casemate.attestation.eif import measure_eif
from casemate.frames import FrameType
from casemate_devkit.forms import MachineForm
from casemate_devkit.local import MODEL
from casemate_devkit.vm.machine import WRONG_TIME
from tests.support.attacker import genuine, verified
from tests.support.deployment import DATA

if TYPE_CHECKING:
    from casemate_devkit.local import LocalDeployment

pytestmark = pytest.mark.integration
DAY = 24 * 60 * 60 * 1000


def test_the_registers_that_the_device_signs_are_the_images(deployment: LocalDeployment) -> None:
    assert isinstance(deployment.form, MachineForm)
    with deployment.form.image(deployment.tree).open("rb") as file:
        image = measure_eif(file, now=int(time.time() * 1000))
    document = verified(deployment).document
    shown = tuple(document.pcrs[index] for index in range(3))
    assert shown == (image.pcr0, image.pcr1, image.pcr2)
    assert document.pcrs[16] == deployment.release.pcr16


def test_the_enclave_says_that_it_is_a_machine(deployment: LocalDeployment) -> None:
    assert verified(deployment).instance.form == "vm"
    assert genuine(deployment).health()["form"] == "vm"


def test_h10_a_machine_whose_clock_is_decades_wrong_lives_by_the_devices_time(
    deployment: LocalDeployment,
) -> None:
    """The hypervisor set the clock to 2001. TLS and SigV4 to KMS, which read it, worked: a model is
    loaded, and its key came from KMS.
    """
    assert WRONG_TIME.startswith("2001-")
    evidence = verified(deployment)
    assert abs(evidence.instance.boot_time - time.time() * 1000) < DAY
    assert evidence.log[0].name == MODEL  # the first; other tests load more
    with deployment.client(kms=True) as client:
        client.infer(MODEL, {"features": DATA.features[:4]}, timeout_s=120, repeatable=True)


def test_each_document_is_the_devices_own(deployment: LocalDeployment) -> None:
    """Made for each nonce by the module behind /dev/nsm, by the one way that Linux has to it."""
    enclave = genuine(deployment)
    documents = [
        parse_document(enclave.evidence(bytes([number]) * 32).attestation_document)
        for number in (1, 2)
    ]
    assert [document.nonce for document in documents] == [b"\x01" * 32, b"\x02" * 32]
    assert documents[0].module_id == documents[1].module_id
    assert enclave.ask(FrameType.HEALTH)
