"""What the enclave can say in the clear is a closed set (THREATS H16)."""

import io
import json

from casemate.errors import Code
from casemate_enclave.events import Counter, Event, Journal


def test_an_event_is_one_line_of_enumerated_names_and_numbers() -> None:
    stream = io.StringIO()
    journal = Journal(stream)
    journal.emit(Event.MODEL_REFUSED, code=Code.MODEL_REJECTED)
    journal.emit(Event.STARTED, count=7)
    first, second = stream.getvalue().splitlines()
    assert json.loads(first) == {"event": "MODEL_REFUSED", "code": "MODEL_REJECTED"}
    assert json.loads(second) == {"event": "STARTED", "count": 7}


def test_counters_are_a_closed_set() -> None:
    journal = Journal(io.StringIO())
    assert set(journal.counters()) == {str(counter) for counter in Counter}
    journal.count(Counter.REQUESTS)
    assert journal.counters()["requests"] == 1
    assert set(journal.counters()) == {str(counter) for counter in Counter}


def test_no_counter_tells_a_sealed_status() -> None:
    sealed = {"unknown_model", "digest", "caller", "invalid", "failed", "ok"}
    for counter in Counter:
        assert not any(word in counter.split("_") for word in sealed)


def test_a_broken_pipe_to_the_host_breaks_nothing_else() -> None:
    stream = io.StringIO()
    journal = Journal(stream)
    stream.close()
    journal.emit(Event.STARTED)
