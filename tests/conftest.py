"""Settings and the running deployment that tests share."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support.deployment import FORMS, choose_form, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_devkit.local import LocalDeployment

# No deadline: a slow moment of a shared machine is no bug, and pytest-timeout ends what hangs.
# In CI the examples are the same in every run, so that a failure is the change's and not chance's.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

BOOT_TIMEOUT_S = 4000  # seconds for a test that boots machines, each in two tries of 15 minutes
BEGUN = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--form vm` runs every deployment's enclave as a machine, `--within S` what it can in time.

    The first is for `make qemu`, the second for `.ci/run` on a machine that others are using.
    """
    parser.addoption("--form", choices=sorted(FORMS), default="process")
    parser.addoption(
        "--within", type=float, metavar="S", help="from then on skip what starts processes"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose the form before any fixture starts an enclave."""
    choose_form(config.getoption("--form"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a form of machines, keep the tests that start an enclave, and give a boot its time.

    The others have no form: this run would repeat them. One whose subject is the process says so
    with the mark ``process_form``, and is reported as skipped, with its reason. That no test is in
    the wrong place is unit/test_forms.py's.

    What starts processes goes last where time may run out for it.
    """
    if config.getoption("--within") is not None:
        items.sort(key=_starts_processes)
    if config.getoption("--form") == "process":
        return
    formed = [item for item in items if _has_form(item)]
    config.hook.pytest_deselected(items=sorted({*items} - {*formed}, key=lambda item: item.nodeid))
    items[:] = formed
    for item in items:
        item.add_marker(pytest.mark.timeout(BOOT_TIMEOUT_S), append=False)
        if mark := item.get_closest_marker("process_form"):
            item.add_marker(pytest.mark.skip(reason=f"process form only: {mark.args[0]}"))


@pytest.hookimpl(tryfirst=True)  # before its fixtures start anything
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out, by name of its file, what starts processes and comes too late (`--within`)."""
    within = item.config.getoption("--within")
    if within is not None and _starts_processes(item) and time.monotonic() - BEGUN > within:
        pytest.skip(f"out of time: {item.path.name}")


def _starts_processes(item: pytest.Item) -> bool:
    return item.get_closest_marker("integration") is not None


def _has_form(item: pytest.Item) -> bool:
    started = "tree" in getattr(item, "fixturenames", ())
    return started or item.get_closest_marker("process_form") is not None


@pytest.fixture(scope="session")
def tree() -> Path:
    """The staged tree that `make stage` built, or the one that CASEMATE_TREE names."""
    built = Path(__file__).resolve().parents[1] / ".stage/tree"
    found = Path(os.environ.get("CASEMATE_TREE", built))
    assert (found / "app/boot.py").is_file(), "no staged tree: run the tests with `make test`"
    return found


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A private directory whose path is short enough for unix sockets below it."""
    with tempfile.TemporaryDirectory(prefix="cm-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def deployment(tree: Path) -> Iterator[LocalDeployment]:
    """The demonstration's deployment, serving; shared by tests that leave it serving."""
    with tempfile.TemporaryDirectory(prefix="cm-") as folder, running(Path(folder), tree) as world:
        yield world
