"""Questions of one connection, and calls that share a stream: each bound and each ending off.

SPEC 9.2.1 in the enclave, 9.6.2 and 11 at the client.
"""

from __future__ import annotations

from functools import partial

from tests.mutants.mutant import Mutant

_turns = partial(
    Mutant,
    file="turns.py",
    tests=("tests/unit/enclave/test_turns.py",),
    package="enclave/casemate_enclave",
)
_crew = partial(
    Mutant,
    file="crew.py",
    tests=("tests/unit/enclave/test_turns.py",),
    package="enclave/casemate_enclave",
)
_large = partial(
    Mutant,
    file="soft_limit.py",
    tests=("tests/unit/enclave/test_soft_limit.py",),
    package="enclave/casemate_enclave",
)
_left = partial(
    Mutant,
    file="left_to_models.py",
    tests=("tests/unit/enclave/test_offers.py", "tests/integration/test_together.py"),
    package="enclave/casemate_enclave",
)
_polled = partial(
    Mutant,
    file="polled_call.py",
    tests=("tests/unit/client/test_call_stream.py", "tests/unit/client/test_polled_call.py"),
    package="casemate/client",
)
_loop = partial(
    Mutant,
    file="aio_call_stream.py",
    tests=("tests/unit/client/test_call_stream.py",),
    package="casemate/client",
)
_loop_book = partial(
    Mutant,
    file="aio_call_book.py",
    tests=("tests/unit/client/test_call_stream.py", "tests/unit/client/test_aio_call_book.py"),
    package="casemate/client",
)
_deadline = partial(
    Mutant, file="steps.py", tests=("tests/unit/client/test_client.py",), package="casemate/client"
)
_accelerator = partial(
    Mutant,
    file="accelerators.py",
    tests=("tests/unit/enclave/test_accelerators.py",),
    package="enclave/casemate_enclave",
)

# fmt: off
MUTANTS = (
    _turns("turns: threads are bounded", old="if placed and not self._crew.join():", new="if False:"),
    _large("large: so many at once", old="return len(self._until) < self._most", new="return True"),
    _large("large: who stays does not count", old="if until > now:", new="if True:"),
    _large("large: nobody waits for ever", old="if now < end and not self._has_room(now):", new="if not self._has_room(now):"),
    _large("large: who leaves lets another in", old="            if self._waiting:\n                self._rouse_next(time.monotonic())\n", new=""),
    _large("large: who comes late counts", old="                self._until[place] = now + self._hold_s\n                self._rouse_next(now)\n", new="                self._rouse_next(now)\n"),
    _crew("turns: the crew is finite", old="            if not self._left:\n                return False\n            self._left -= 1\n", new=""),
    _turns("turns: places are given back", old="        if placed:\n            self._crew.leave()\n", new=""),
    _turns("turns: who stands by is counted", old="            if self._idle > len(self._tasks) or self._hire():\n                return False\n", new="            if self._idle >= len(self._tasks) or self._hire():\n                return False\n"),
    _turns("turns: spare threads end", old="        if self._idle < _SPARE or now", new="        if True or now"),
    _turns("turns: waiting is bounded", old="if len(self._tasks) < limits.NUMBERED_WAITING:", new="if True:"),
    _turns("turns: a deadline for each", old="now + budget / 1000, context", new="now + 1e6, context"),
    _turns("turns: given up", old="        context.cancel()\n        with self._posted:\n", new="        with self._posted:\n"),
    _turns("turns: given up while waiting", old="        if waiting:\n            self._refuse(frame.number, Code.DEADLINE_EXCEEDED", new="        if False:\n            self._refuse(frame.number, Code.DEADLINE_EXCEEDED"),
    _turns("turns: given up before it ran", old="                self._tasks.remove(task)\n        if waiting:", new="                pass\n        if waiting:"),
    _turns("turns: a cancel frame is empty", old="        if frame.payload:\n            raise", new="        if False:\n            raise"),
    _turns("turns: the host is gone", old="            if not self._finishing():\n                self._abandon()\n", new=""),
    _turns("turns: all have ended", old="            self._left.wait_for(lambda: not self._others)\n", new="            pass\n"),
    _turns("turns: nothing after a cut frame", old="        self._abandon()\n        self._link.hang_up()\n", new="        self._abandon()\n"),
    _left("left: counted", old="        self._add(len(questions))  # before any of them comes back\n", new=""),
    _left("left: the rest is another's", old="        rest = [question for question in questions if question not in taken]\n", new="        rest = list[Q]()\n"),
    _polled("polled: not offered", old="        except (ImportError, AttributeError, KeyError, TypeError) as error:", new="        except ZeroDivisionError as error:"),
    _polled("polled: nothing after the end", old="            if not self._ended and self._call.operate((operation,), None):", new="            if self._call.operate((operation,), None):"),
    _polled("polled: events are counted", old="                self._due += 1\n", new="                pass\n"),
    _polled("polled: each takes one away", old="            self._due -= 1\n", new="            self._due = max(0, self._due - 2)\n"),
    _polled("polled: the next message", old="            self._receive()\n            return Event(kind, message)\n", new="            return Event(kind, message)\n"),
    _polled("polled: the host's side ended", old="                return Event(Kind.OTHER)\n", new="                return Event(kind)\n"),
    _polled("polled: its status", old="_STATUS.get(operation.code(), grpc.StatusCode.UNKNOWN)", new="grpc.StatusCode.OK"),
    _polled("polled: what came with it", old="tuple(operation.trailing_metadata() or ())", new="()"),
    _polled("polled: interrupted", old="                self._due, self._ended = 0, True\n", new="                pass\n"),
    _loop("loop: large ones by themselves", old="        if len(request) > limits.CALL_STREAM_REQUEST_MAX:\n            return None\n", new=""),
    _loop("loop: nothing before the host's word", old="        if not self._taking:\n            return None\n", new=""),
    _loop_book("loop: its deadline", old="            if question.until <= now:\n", new="            if question.until + 100 <= now:\n"),
    _loop_book("loop: an earlier deadline", old="        if until < self._look_at:\n", new="        if self._look is None:\n"),
    _loop_book("loop: the next deadline", old="        self._look_next(max(first, now + _GRAIN_S))\n", new=""),
    _loop_book("loop: the host is told", old="            if self.give_up(number):\n                self._wake()\n", new="            pass\n"),
    _loop("loop: ended when the host wants it", old="                if self._book.answered(message):", new="                if self._book.answered(message) and False:"),
    _loop("loop: its end is this side's, too", old="                    await self._call.done_writing()\n", new=""),
    _loop("loop: with it all end", old="            self._book.fail(failure)\n", new=""),
    _loop("loop: rules are kept", old="        except BrokenError as error:\n", new="        except ZeroDivisionError as error:\n"),
    _loop("loop: not again at once", old="            refusal = error.code() if sender is None else None\n", new=""),
    _deadline("timeout: finite", old="math.isfinite(timeout_s) and timeout_s >= 0", new="timeout_s >= 0"),
    _deadline("timeout: not negative", old="math.isfinite(timeout_s) and timeout_s >= 0", new="math.isfinite(timeout_s)"),
    _deadline("timeout: of a type", old="    except (TypeError, OverflowError):\n        usable = False\n", new="    except OverflowError:\n        usable = False\n"),
    _deadline("timeout: of a size", old="    except (TypeError, OverflowError):\n        usable = False\n", new="    except TypeError:\n        usable = False\n"),
    _deadline("timeout: refused", old="    if not usable:\n", new="    if False:\n"),
    _deadline("timeout: clocks end", old="time.monotonic() + min(timeout_s, _LONGEST_S)", new="time.monotonic() + timeout_s"),
    _accelerator("accelerator: code", old="code=bool(named)", new="code=True"),
    _accelerator("accelerator: devices", old="gpu=bool(named & _ON_GPU)", new="gpu=bool(named)"),
    _accelerator("accelerator: its library", old="if (libraries / file).is_file())", new=")"),
    _accelerator("accelerator: those that are there", old="if name in there or name not in _LIBRARIES]", new="]"),
    _accelerator("accelerator: whole names", old="_GPU_NODE.fullmatch(name)", new="_GPU_NODE.match(name)"),
    _accelerator("accelerator: known sizes", old="all(isinstance(size, int) for size in shape)", new="True"),
    _accelerator("accelerator: known ranks", old="all(shape and all(", new="all(all("),
    _accelerator("accelerator: sized by values", old="return known and not _SIZED_BY_VALUES.intersection(operators)", new="return known"),
    _accelerator("accelerator: a GPU's memory", old='            "gpu_mem_limit": str(contents * limits.MODEL_LOAD_FACTOR + run_bytes),\n', new=""),
    _accelerator("accelerator: no shorter numbers", old='            "use_tf32": "0",\n', new=""),
    _accelerator("accelerator: accuracy", old='"precision": "ACCURACY", ', new=""),
    _accelerator("accelerator: threads", old='"num_of_threads": str(threads)', new='"num_of_threads": "64"'),
    _accelerator("accelerator: no files", old='        os.environ["CUDA_CACHE_DISABLE"] = "1"  # it would write files\n', new=""),
    _accelerator("accelerator: libraries once", old="        onnxruntime.preload_dlls()\n", new="        pass\n"),
    _accelerator("accelerator: memory beside", old="return limits.WORKER_GPU_DATA if self.gpu else", new="return"),
)
