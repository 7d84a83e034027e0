"""`casemate-admin`: what is wrong with its arguments is said, in one line and as wrong usage."""

from __future__ import annotations

import pytest

from casemate_host.admin import main

USAGE = 2


@pytest.mark.parametrize(
    "arguments",
    [
        *(["drain", seconds] for seconds in ("nan", "inf", "-1", "3601", "1e30", "soon")),
        *(["unload", "wdbc", version] for version in ("0", "-1", "4294967296", "first")),
        *(["replace", "wdbc.sealed", version] for version in ("0", "-1", "4294967296")),
    ],
)
def test_arguments_out_of_bounds_are_wrong_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == USAGE
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith(f"casemate-admin {arguments[0]}: error: argument")
