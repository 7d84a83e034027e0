"""`casemate seal-model` of a model that answers piece by piece (SPEC 8.9)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import click

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate.sealed_model import LoopState, ModelLoop

if TYPE_CHECKING:
    from collections.abc import Callable

_OPTIONS = (
    click.option(
        "--loop-state",
        multiple=True,
        metavar="OUTPUT=INPUT",
        help="The model is a step: this output is that input of the next. May be repeated.",
    ),
    click.option("--loop-stop", help="BOOL output that ends the loop."),
    click.option(
        "--loop-steps",
        type=click.IntRange(1, limits.LOOP_STEPS_MAX),
        help="The most steps of a loop.",
    ),
    click.option(
        "--loop-interval",
        type=click.IntRange(0, limits.LOOP_INTERVAL_MAX),
        default=0,
        show_default=True,
        help="Milliseconds between two pieces, so that their times tell nothing.",
    ),
)


def loop_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that describe a loop, and pass it on as ``loop``."""

    @functools.wraps(command)
    def run(
        *,
        loop_state: tuple[str, ...],
        loop_stop: str | None,
        loop_steps: int | None,
        loop_interval: int,
        **named: object,
    ) -> None:
        command(loop=loop_of(loop_state, loop_stop, loop_steps, loop_interval), **named)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


def loop_of(
    states: tuple[str, ...], stop: str | None, steps: int | None, interval: int
) -> ModelLoop | None:
    """Return the loop that the options describe; raises CasemateError (INVALID_ARGUMENT)."""
    if not states:
        if stop is not None or steps is not None or interval:
            raise CasemateError(Code.INVALID_ARGUMENT, "a loop needs --loop-state OUTPUT=INPUT")
        return None
    if steps is None:
        raise CasemateError(Code.INVALID_ARGUMENT, "a loop needs --loop-steps")
    return ModelLoop(tuple(map(_state, states)), stop, steps, interval)


def _state(text: str) -> LoopState:
    output, separator, name = text.partition("=")
    if not (output and separator and name):
        raise CasemateError(Code.INVALID_ARGUMENT, f"not OUTPUT=INPUT: {text!r}")
    return LoopState(output, name)
