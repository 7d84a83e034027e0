"""`make demo`: the main path and three refusals; exits non-zero if any step deviates."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click
import structlog

from casemate.errors import CasemateError
from casemate_devkit.demo import attacks, scenes
from casemate_devkit.demo.story import Deviation, Story
from casemate_devkit.errors import DevkitError
from casemate_devkit.local import LocalDeployment

_REPOSITORY = Path(__file__).resolve().parents[3]


def main() -> int:
    """Tell the story; return the exit code."""
    parser = argparse.ArgumentParser(prog="casemate-demo", description=__doc__)
    parser.add_argument("--tree", type=Path, default=_REPOSITORY / ".stage/tree")
    parser.add_argument("--data", type=Path, default=_REPOSITORY / "examples/wdbc")
    parser.add_argument("--keep", action="store_true", help="leave the services running")
    arguments = parser.parse_args()
    # One attack runs an egress proxy in this process; its log is no part of the story.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    base = Path(tempfile.mkdtemp(prefix="casemate-demo-"))
    return run(base, arguments.tree, arguments.data, keep=arguments.keep)


def run(base: Path, tree: Path, folder: Path, *, keep: bool) -> int:
    """Run every scene below ``base``; return 0 if each did what it promises."""
    story, started = Story(), time.monotonic()
    click.secho("Casemate: confidential inference, demonstrated on this machine", bold=True)
    try:
        with LocalDeployment(base, tree) as world:
            sealed = play(story, world, scenes.Data.load(folder))
            if keep:
                world.restart_host_untapped([sealed])
                scenes.how_to_call(story, world, folder)
                world.leave_running()
    except (Deviation, CasemateError, DevkitError) as error:
        click.secho(f"\nThe demonstration failed: {error}", fg="red", err=True)
        click.echo(f"Logs are in {base}", err=True)
        return 1
    if not keep:
        shutil.rmtree(base)
    elapsed = time.monotonic() - started
    click.secho(f"\nAll {story.checks} checks passed in {elapsed:.1f} s.", fg="green", bold=True)
    return 0


def play(story: Story, world: LocalDeployment, data: scenes.Data) -> Path:
    """Play the scenes in order; return the sealed model's path."""
    scenes.parties(story, world)
    measurement = scenes.measure(story, world)
    scenes.policies(story, world, measurement)
    sealed = scenes.seal(story, world, data)
    scenes.denied(story, world, sealed)
    scenes.start(story, world, sealed)
    scenes.verify(story, world)
    answers = scenes.infer(story, world, data)
    scenes.search(story, world, data, answers)
    attacks.changed_code(story, world, sealed)
    attacks.another_key(story, world, data)
    attacks.replay(story, world, data)
    return sealed


if __name__ == "__main__":
    sys.exit(main())
