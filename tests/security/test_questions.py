"""Several questions in one request (SPEC 5.10), played against the real processes."""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.client import AsyncClient
from casemate.errors import CasemateError, Code
from casemate.tensors import to_request
from casemate_devkit.local import MODEL
from tests.support.attacker import genuine, refusal, start_session
from tests.support.picking import POISON, TABLE, WIDTH, became, loaded, message, picking

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casemate.envelope.sealing import OpenedAnswer, SealedCall
    from casemate_devkit.local import LocalDeployment
    from tests.support.attacker import EnclaveSocket, Session

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("still_serves")]
VERSION = 510
NAMED = f"{MODEL}:{VERSION}"


@pytest.fixture(scope="module")
def world(
    deployment: LocalDeployment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalDeployment]:
    with loaded(deployment, tmp_path_factory.mktemp("picking"), VERSION):
        yield deployment


def sealed(session: Session, messages: Sequence[bytes], **changed: object) -> SealedCall:
    first, *others = messages
    named: dict[str, object] = {"model": MODEL, "version": VERSION, "digest": None, **changed}
    return session.keys.seal(
        message=first,
        others=[[other] for other in others],
        **named,  # type: ignore[arg-type]
    )


def ask(world: LocalDeployment, session: Session, messages: Sequence[bytes]) -> OpenedAnswer:
    call = sealed(session, messages)
    return call.open(*genuine(world).request(call.header, call.ciphertext))


def refused(enclave: EnclaveSocket, call: SealedCall) -> Code:
    return refusal(partial(enclave.request, call.header, call.ciphertext))


def test_c2_a_poisoned_question_spoils_none_that_share_its_request(world: LocalDeployment) -> None:
    """Tasks of one client, whose questions travel and run together."""

    async def everybody() -> list[object]:
        async with AsyncClient(
            world.target, world.trust_policy(), caller_key=world.clinic.signing_key
        ) as client:
            await client.infer(NAMED, picking(0), outputs=["picked"])
            before = genuine(world).counters()["requests"]

            async def one(caller: int) -> list[object]:
                wrong: list[object] = []
                for turn in range(12):
                    poisoned = caller % 5 == turn % 5
                    index = POISON if poisoned else (caller + turn) % 3
                    try:
                        answer = await client.infer(
                            NAMED, picking(index), outputs=["picked"], timeout_s=100
                        )
                        right = not poisoned and answer.outputs["picked"].tolist() == [TABLE[index]]
                    except CasemateError as error:
                        right = poisoned and error.code is Code.MODEL_FAILED
                    if not right:
                        wrong.append((caller, turn))
                return wrong

            wrong = [each for some in await asyncio.gather(*map(one, range(20))) for each in some]
            asked = genuine(world).counters()["requests"] - before
            assert asked < 20 * 12 / 2, "they did not share requests"
            return wrong

    assert asyncio.run(everybody()) == []


def test_c3_more_questions_than_a_request_may_hold_are_refused(world: LocalDeployment) -> None:
    """More parts than there may be are not even looked at; more than the model takes, refused."""
    enclave, session = genuine(world), start_session(world)
    for count in (33, 5000):
        call = sealed(session, [message(0)] * count)
        assert refused(enclave, call) is Code.OPEN_FAILED
    answer = ask(world, session, [message(1)])
    taken = answer.trailer.questions or 0
    assert taken == 24  # rows, of which one run has so many
    assert [*map(became, ask(world, session, [message(1)] * taken).messages)] == [20.0] * taken
    answer = ask(world, session, [message(1)] * (taken + 1))
    assert (answer.trailer.status, answer.messages) == (Code.INVALID_REQUEST, [])


def test_h3_c9_a_request_of_several_questions_runs_once(world: LocalDeployment) -> None:
    enclave = genuine(world)
    for mode in ("hpke", "kms"):
        call = sealed(start_session(world, mode=mode), [message(index) for index in range(3)])
        answer = call.open(*enclave.request(call.header, call.ciphertext))
        assert [*map(became, answer.messages)] == TABLE
        for _ in range(3):
            assert refused(enclave, call) is Code.REPLAYED


def test_h4_another_requests_answers_answer_none_of_its_questions(world: LocalDeployment) -> None:
    """Nor do those to as many questions of the same session, or to one question."""
    enclave, session = genuine(world), start_session(world)
    calls = [sealed(session, [message(0), message(at)]) for at in (1, 2)]
    calls.append(sealed(session, [message(0)]))
    answers = [enclave.request(call.header, call.ciphertext) for call in calls]
    for at, call in enumerate(calls):
        for other, answer in enumerate(answers):
            if at != other:
                assert refusal(partial(call.open, *answer)) is Code.ANSWER_OPEN_FAILED
        assert call.open(*answers[at]).trailer.status is Code.OK


def test_h14_answers_to_as_many_questions_have_one_length(world: LocalDeployment) -> None:
    """Whatever became of which, and of the whole."""
    enclave, session = genuine(world), start_session(world)
    stranger = start_session(world, caller=Ed25519PrivateKey.generate())
    good, bad = message(1), to_request({"x": np.ones((1, WIDTH), np.float32)})
    several: list[tuple[Session, list[bytes], dict[str, object]]] = [
        (session, [good] * 8, {}),
        (session, [message(POISON)] + [good] * 7, {}),
        (session, [good] * 7 + [bad], {}),
        (session, [bad] * 8, {}),
        (session, [good] * 8, {"digest": secrets.token_bytes(48)}),
        (session, [good] * 8, {"receipt": True}),
        (stranger, [good] * 8, {}),
    ]
    lengths = set()
    statuses = []
    for who, messages, changed in several:
        call = sealed(who, messages, **changed)
        header, ciphertext = enclave.request(call.header, call.ciphertext)
        lengths.add(len(ciphertext))
        statuses.append(call.open(header, ciphertext).trailer.status)
    assert len(lengths) == 1
    assert len(set(statuses)) == 4


def test_a_caller_that_the_model_does_not_list_gets_no_answer(world: LocalDeployment) -> None:
    stranger = start_session(world, caller=Ed25519PrivateKey.generate())
    answer = ask(world, stranger, [message(0), message(1)])
    assert (answer.trailer.status, answer.messages) == (Code.CALLER_REFUSED, [])
