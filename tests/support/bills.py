"""Bills of materials, by the judgement of CycloneDX's own schema."""

from __future__ import annotations

import json
from typing import Any


def valid(data: bytes) -> dict[str, Any]:
    """What the official schema has no objection to."""
    # Two files need it, and it takes a third of the time in which each worker imports all of them.
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode())
    assert error is None, error
    document: dict[str, Any] = json.loads(data)
    return document
