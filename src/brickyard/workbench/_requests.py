"""What requests bring: JSON and forms, bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import Request

from brickyard.base._errors import DataError, OptionError
from brickyard.workbench._limits import Limits

PLAN_BYTES = 1 << 16


def form_of(request: Request, limits: Limits) -> Any:
    """A request's form. One that is not of kind multipart/form-data can be slow to read: it has to be short."""
    kind, size = request.headers.get("content-type", "").lower(), request.headers.get("content-length")
    if not kind.startswith("multipart/form-data") and (size is None or int(size) > 4 * PLAN_BYTES):
        raise OptionError(
            "option-plan-invalid", "the request must be multipart/form-data; use the workbench's own page"
        )
    return request.form(max_files=limits.files, max_fields=1)


def json_of(content: bytes, most: int = PLAN_BYTES) -> Any:
    """JSON of at most so many bytes.

    Raises:
        OptionError: It is none, or longer.
    """
    if len(content) > most:
        raise OptionError("option-plan-invalid", "the plan is too long")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise OptionError("option-plan-invalid", "the plan is not JSON") from None


async def content_of(item: Any, limits: Limits) -> tuple[str, bytes]:
    """Name and bytes of an upload; the name is only ever shown."""
    name = Path(str(item.filename or "picture").replace("\\", "/")).name[:80] or "picture"
    content: bytes = await item.read(limits.file_bytes + 1)
    if len(content) > limits.file_bytes:
        raise DataError(
            "data-image-too-large", f"{name!r} is too large; the limit is {limits.file_bytes >> 20} MiB per picture"
        )
    return name, content
