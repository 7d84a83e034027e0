"""Generates the committed message classes from the .proto files beside this script.

`python protos/generate.py` writes them into the package `casemate`; with `--check` it writes
nothing and fails if what is committed differs. No service stubs are generated: the host must not
decode, so it registers handlers that take and give bytes.
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
ROOT = PROTOS.parent
SUFFIXES = ("_pb2.py", "_pb2.pyi")


def generate(output: Path) -> list[Path]:
    """Run protoc over every .proto file; give what it wrote, relative to `output`."""
    # Imported here and by name: it has no type information, and only this function needs it.
    protoc = importlib.import_module("grpc_tools.protoc")
    sources = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))
    arguments = ["protoc", f"-I{PROTOS}", f"--python_out={output}", f"--pyi_out={output}", *sources]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed")
    return [
        Path(source.removesuffix(".proto") + suffix) for source in sources for suffix in SUFFIXES
    ]


def drifted(fresh: Path, expected: list[Path]) -> list[Path]:
    """Give the files that are missing, differ from `fresh`, or have no .proto file any more."""
    differing = [
        path
        for path in expected
        if not (ROOT / path).is_file() or (ROOT / path).read_bytes() != (fresh / path).read_bytes()
    ]
    committed = {
        path.relative_to(ROOT)
        for suffix in SUFFIXES
        for path in (ROOT / "casemate").rglob(f"*{suffix}")
    }
    return sorted({*differing, *(committed - set(expected))})


def main() -> None:
    """Generate, or check."""
    parser = argparse.ArgumentParser(description="Generate the message classes from protos/.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check: bool = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        expected = generate(fresh)
        stale = drifted(fresh, expected)
        if check:
            if stale:
                names = ", ".join(path.as_posix() for path in stale)
                sys.exit(f"generated code differs from protos/ (run `make protos`): {names}")
            return
        for path in stale:
            if path not in expected:
                (ROOT / path).unlink()
                continue
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_bytes((fresh / path).read_bytes())


if __name__ == "__main__":
    main()
