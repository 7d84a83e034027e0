"""Running a model: the seam, and onnxruntime behind it."""

from __future__ import annotations

import math
import os
import re
import time
from typing import TYPE_CHECKING, Any, Protocol

from casemate.attestation.configuration import CPU
from casemate.errors import CasemateError, Code
from casemate_enclave import accelerators
from casemate_enclave.declarations import check_declarations
from casemate_enclave.memory import give_back_memory
from casemate_enclave.onnx_outline import ITSELF, outline
from casemate_enclave.onnx_scan import external_locations
from casemate_enclave.refusals import Failure, Refusal, RefusedError, RunError
from casemate_enclave.watchdog import Watchdog

# It starts its telemetry when it is imported, so the switch has to be set before.
if os.environ.get("ORT_DISABLE_TELEMETRY") != "1":
    raise ImportError("ORT_DISABLE_TELEMETRY=1 must be set before onnxruntime is imported")

import numpy as np
import onnxruntime

from casemate_enclave.bfloat16 import run_carried

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from casemate.sealed_model import ModelContents, ModelHeader
    from casemate.wire import Buffer
    from casemate_enclave.cancellation import Cancellation
    from casemate_enclave.runs import Pipelined, Run
    from casemate_enclave.watchdog import Terminable

    Tensors = Mapping[str, np.ndarray[Any, Any]]
    Meanwhile = Callable[[], None] | None

_SILENT = 4  # fatal only: messages name tensors and quote shapes
# A path in a sealed file may be any text, and to onnxruntime some are no files:
# "*/_ORT_MEM_ADDR_/*" is the process's own memory, from the address given as offset.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*", re.ASCII)

# Weights of files in memory are used there, and copied only if they are not aligned.
_LENT = "session.use_external_initializer_file_buffers_directly"
_ARENA = "BFCArena"  # in the texts of its allocator's failures
_AS_REQUESTED = 1  # OrtArenaCfg: grow by what is asked for, not to the next power of two
_DEFAULT = -1


# y is x, one FP32: the smallest model there is.
_SMALLEST = bytes.fromhex(
    "0808 3a37 0a10 0a0178 120179 22084964656e74697479 120167"
    "5a0f 0a0178 120a 0a08 0801 1204 0a020801 620f 0a0179 120a 0a08 0801 1204 0a020801"
    "4204 0a00 100d"
)


def warm_up() -> None:
    """Have onnxruntime make once what every session needs, in a process that forks others."""
    onnxruntime.InferenceSession(_SMALLEST, session_options((), 1), providers=[CPU])


class Stop(Protocol):
    """Ends what is between ``begin`` and ``end`` when nobody waits for it any more."""

    def begin(self, run: Terminable) -> None:
        """Have ``run`` ended from now on."""
        ...

    def end(self, run: Terminable) -> None:
        """Leave ``run`` alone from now on."""
        ...


class LoadedModel(Protocol):
    """A model that can run; safe to use from several threads."""

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None = None,
        *,
        meanwhile: Meanwhile = None,
    ) -> Tensors:
        """Return the named outputs; ``deadline`` in seconds of ``time.monotonic``.

        ``outputs`` may be any of the model's, declared or not; ``cancellation`` ends the run early.
        ``meanwhile`` is work that may be done, once, while another process runs the model.
        Raises RequestError: DEADLINE_EXCEEDED, or MODEL_FAILED with a text that quotes nothing.
        """
        ...


class LastingModel(LoadedModel, Protocol):
    """A model whose process may end and be started again."""

    @property
    def ready(self) -> bool:
        """False while it is out of service."""
        ...

    def admit(self, owner: bytes | None) -> None:
        """Raise RequestError(UNAVAILABLE) if it is out of service for this asker alone."""
        ...

    @property
    def quick(self) -> bool:
        """Whether its runs are so short that others may wait for one."""
        ...

    def begin(
        self,
        runs: Sequence[Run],
        *,
        patient: bool = False,
        ended: Callable[[], None] | None = None,
    ) -> Pipelined | None:
        """Begin of ``runs`` those that its process takes at once, if any, or one of any size.

        Does not wait for its process, unless ``patient``. ``ended`` is called once all that began
        have come back. Never raises.
        """
        ...

    def repeat(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None,
    ) -> Tensors:
        """Run with no other run beside it, after the process ended during a first time."""
        ...


class ModelRuntime(Protocol):
    """Makes models runnable."""

    def load(self, contents: ModelContents, header: ModelHeader) -> LastingModel:
        """Load verified contents; raises ModelError(MODEL_REJECTED) if ``header`` differs."""
        ...


class OnnxRuntime:
    """onnxruntime with the configured providers, from memory only: no file, no custom operators.

    All runs together take at most ``run_bytes`` of memory for tensors; one beyond that fails and
    the others go on. A run uses ``threads`` threads.
    """

    def __init__(self, providers: Sequence[str], *, run_bytes: int, threads: int) -> None:
        """Raises CasemateError(MALFORMED) if this onnxruntime lacks one of ``providers``."""
        onnxruntime.set_default_logger_severity(_SILENT)
        for provider in providers:
            if provider not in accelerators.usable(onnxruntime.get_available_providers()):
                detail = f"providers: this enclave's onnxruntime has no {provider}"
                raise CasemateError(Code.MALFORMED, detail)
        _share_memory(run_bytes)
        self._providers = list(providers)
        self._run_bytes = run_bytes
        self._accelerated = accelerators.needs_of(providers) != accelerators.NONE
        self._threads = threads
        self._watchdog = Watchdog()

    def load(self, contents: ModelContents, header: ModelHeader) -> OnnxModel:
        """Load the first entry as the model, the others as its external data.

        onnxruntime reads a model without external data from its file, if it can open that. Else its
        weights, and external data, are used where they lie, or copied once if they lie unaligned.
        """
        files = contents.views()
        model, *others = files
        _check_locations(external_locations(files[model]), others)
        source: str | bytes | None = contents.location
        if self._accelerated:  # with bytes no provider looks for files beside a path
            source = bytes(files[model])
        elif source is None:
            source, files[ITSELF] = outline(files[model]), files[model]
        del files[model]
        try:
            # The fallback would try again and print why, which may quote the model.
            session = onnxruntime.InferenceSession(
                source,
                self._options(list(files.items())),
                providers=accelerators.settings_of(
                    self._providers,
                    threads=self._threads,
                    run_bytes=self._run_bytes,
                    contents=sum(contents.lengths.values()),
                ),
                enable_fallback=False,
            )
        except Exception:  # noqa: BLE001 - its exceptions share no base and quote the model
            raise RefusedError(Refusal.RUNTIME) from None
        # It would keep the contents for a session anew with other providers: each model twice.
        session._model_bytes = None  # noqa: SLF001
        if session.get_providers() != self._providers:
            raise RefusedError(Refusal.PROVIDERS)
        check_declarations(header, session)
        give_back_memory()
        carried = any(spec.datatype == "BF16" for spec in (*header.inputs, *header.outputs))
        on_accelerators = self._placed(session) if self._accelerated else 0
        return OnnxModel(session, self._watchdog, on_accelerators, files, carried=carried)

    def _placed(self, session: onnxruntime.InferenceSession) -> int:
        """The share of nodes on accelerators, in percent; refuses what one of them must not run.

        Where onnxruntime placed them: that a provider is in the session's list says nothing.
        """
        placed: dict[str, list[str]] = {}
        for part in session.get_provider_graph_assignment_info():
            placed.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
        if operators := placed.get(accelerators.OPENVINO):
            shapes = [node.shape for node in (*session.get_inputs(), *session.get_outputs())]
            if not accelerators.fixed(shapes, operators):
                raise RefusedError(Refusal.VARIABLE)
        total = sum(map(len, placed.values()))
        return math.ceil(100 * (total - len(placed.get(CPU, []))) / max(1, total))

    def _options(self, files: Sequence[tuple[str, Buffer]]) -> onnxruntime.SessionOptions:
        options = session_options(files, self._threads)
        if not self._accelerated:
            options.add_session_config_entry(_LENT, "1")
        else:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options


class OnnxModel:
    """A session; ``on_accelerators`` is the share of its nodes that run there, in percent.

    ``lent`` is memory that the session uses, to be kept for as long.
    """

    ready = True
    quick = False

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        watchdog: Watchdog,
        on_accelerators: int,
        lent: object,
        *,
        carried: bool,
    ) -> None:
        self.on_accelerators = on_accelerators
        self._session = session
        self._lent = lent
        self._carried = carried
        self._watchdog = watchdog

    def admit(self, owner: bytes | None) -> None:
        """As ``LastingModel``: it outlives nothing that anybody could end."""

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        deadline: float,
        cancellation: Stop | None = None,
        *,
        meanwhile: Meanwhile = None,  # noqa: ARG002 - the model runs on this thread
    ) -> Tensors:
        """Run; raises RunError. Inputs that are not aligned are copied."""
        options = onnxruntime.RunOptions()
        options.log_severity_level = _SILENT
        watched = self._watchdog.begin(deadline, options)
        try:
            if cancellation is not None:
                cancellation.begin(options)
            values = self._values(_aligned(inputs), outputs, options)
        except Exception as error:  # noqa: BLE001 - as in load
            if options.terminate or time.monotonic() >= deadline:
                raise RunError(Failure.STOPPED) from None
            # onnxruntime's own text quotes names, shapes and values.
            memory = _ARENA in str(error)
            raise RunError(Failure.MEMORY if memory else Failure.FAILED) from None
        finally:
            self._watchdog.end(watched)
            if cancellation is not None:
                cancellation.end(options)
        return dict(zip(outputs, values, strict=True))

    def begin(
        self,
        _runs: Sequence[Run],
        *,
        patient: bool = False,
        ended: Callable[[], None] | None = None,
    ) -> None:
        """Nothing: it runs on the thread of whoever asks."""

    def repeat(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None,
    ) -> Tensors:
        """As ``run``."""
        return self.run(inputs, outputs, deadline, cancellation)

    def _values(
        self, inputs: Tensors, outputs: Sequence[str], options: onnxruntime.RunOptions
    ) -> Sequence[np.ndarray[Any, Any]]:
        if self._carried:
            return run_carried(self._session, inputs, outputs, options)
        # Below what checks the inputs' names once more: they are the declared ones.
        values: Sequence[np.ndarray[Any, Any]] = self._session._sess.run(  # noqa: SLF001
            outputs, inputs, options
        )
        return values


def _aligned(inputs: Tensors) -> Tensors:
    """Copy what is not aligned, as the runtime takes it that everything is; in workers it is."""
    if not [array for array in inputs.values() if not array.flags.aligned]:
        return inputs
    return {name: np.require(array, requirements="A") for name, array in inputs.items()}


def _share_memory(run_bytes: int) -> None:
    """Bound what all sessions made from now on allocate for tensors together."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    arena = onnxruntime.OrtArenaCfg(run_bytes, _AS_REQUESTED, _DEFAULT, _DEFAULT)
    onnxruntime.create_and_register_allocator(memory, arena)


def session_options(
    others: Sequence[tuple[str, Buffer]], threads: int
) -> onnxruntime.SessionOptions:
    """Say how models run: ``others`` are files of external data, a run uses ``threads``.

    The files have to stay until the session is made.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    # With one thread onnxruntime starts none: requests already run side by side.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A thread that waits for work would spin, at the expense of every other request.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    # The other format, flatbuffers, would pass by the scan for external data.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if others:
        names, contents = zip(*others, strict=True)
        options.add_external_initializers_from_files_in_memory(
            names, contents, [len(c) for c in contents]
        )
    return options


def _check_locations(locations: set[str], files: Collection[str]) -> None:
    for location in locations:
        if location not in files or not _PLAIN_PATH.fullmatch(location):
            raise RefusedError(Refusal.OUTSIDE)
