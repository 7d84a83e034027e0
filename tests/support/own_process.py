"""A measure of a process is taken in one of its own: in the tests' many share one.

There, what earlier tests left takes and gives back memory, descriptors and threads at any time, and
a measured thing may find a place that others gave up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOT = Path(__file__).resolve().parents[2]
_CALL = """
import importlib, json, sys
module, name, arguments = sys.argv[1:]
result = getattr(importlib.import_module(module), name)(*json.loads(arguments))
print(json.dumps(result))
"""


def in_own_process(measure: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - JSON
    """Call ``measure``, a function of a module, there; return what it returns, by way of JSON."""
    done = subprocess.run(
        [sys.executable, "-c", _CALL, measure.__module__, measure.__name__, json.dumps(arguments)],
        check=False,
        capture_output=True,
        text=True,
        cwd=_ROOT,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        timeout=600,  # a test has 900
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
