"""What files may say, as a JSON Schema."""

from __future__ import annotations

from typing import Any

from brickyard.base._records import FORMAT_VERSION, AssemblyFile, ComponentFile, RelevanceFile
from brickyard.base._refined import RefinedFile


def file_schema() -> dict[str, Any]:
    """Return the JSON Schema of a file's text, whatever it holds."""
    from pydantic import TypeAdapter

    kinds = (ComponentFile, AssemblyFile, RefinedFile, RelevanceFile)
    schema = TypeAdapter(ComponentFile | AssemblyFile | RefinedFile | RelevanceFile).json_schema()
    for kind in kinds:
        entry = schema["$defs"][kind.__name__]
        entry["properties"]["format"] = {
            "const": FORMAT_VERSION,
            "title": "Format version",
            "type": "integer",
        }
        entry["required"] = ["format", *entry.get("required", [])]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Brickyard file", **schema}
