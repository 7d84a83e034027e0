"""The first code of the enclave: it fixes what can be imported and then hands over.

Started as ``python -I -S -X pycache_prefix=/nonexistent /app/boot.py ARGUMENTS`` in a staged tree,
it imports from three places only, all of them measured (SPEC 4): the interpreter's own library,
``packages``, and ``app`` where it lies itself.
"""

import os
import sys

# The environment comes from the host and is measured nowhere, so nothing may read it: not Python,
# not OpenSSL, not the C library. These two are the only variables, and both must be set before the
# first import: onnxruntime starts a telemetry thread, OpenBLAS a pool of threads.
_ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}


def _refuse(reason: str) -> None:
    sys.stderr.write(f'{{"event":"BOOT_REFUSED","reason":"{reason}"}}\n')
    raise SystemExit(2)


def check_interpreter() -> None:
    """End the process unless the interpreter ignores everything outside the staged tree."""
    if not sys.flags.isolated:
        _refuse("not isolated: -I")
    if not sys.flags.no_site:
        _refuse("site packages: -S")
    # A forged __pycache__ beside a measured file would run instead of it.
    if sys.pycache_prefix is None or os.path.lexists(sys.pycache_prefix):
        _refuse("bytecode cache: -X pycache_prefix=/nonexistent")


def restrict_imports() -> None:
    """Leave exactly the interpreter's library, ``packages`` and ``app`` on the import path."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib is an import
    library = [path for path in sys.path if path.startswith(f"{sys.base_prefix.rstrip('/')}/")]
    sys.path[:] = [*library, f"{root.rstrip('/')}/packages", f"{root.rstrip('/')}/app"]
    sys.dont_write_bytecode = True


def restrict_environment() -> None:
    """Drop every variable the process was given, then set the two that it needs."""
    os.environ.clear()
    os.environ.update(_ENVIRONMENT)


if __name__ == "__main__":
    check_interpreter()
    restrict_imports()
    restrict_environment()

    from casemate_enclave.__main__ import main

    raise SystemExit(main())
