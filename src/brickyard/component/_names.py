"""Other names for the classes of what was cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brickyard.base._checks import other_names
from brickyard.base._classes import check_class_name, check_distinct
from brickyard.base._errors import TaskError
from brickyard.base._messages import brief, near
from brickyard.base._records import AssemblyManifest, ComponentManifest


def renamed_component(manifest: ComponentManifest, names: Mapping[str, str]) -> ComponentManifest:
    """The manifest of the same component whose classes have other names.

    Args:
        manifest: The component's.
        names: New names by old ones; classes that are left out keep theirs.

    Raises:
        TaskError: An old name is none of the classes, or a new one cannot be used.
        OptionError: They are not names by names.
    """
    classes, known = _changed(manifest.classes, names), manifest.source.classes
    check_distinct(list(zip(classes, manifest.groups, strict=True)), known)
    plain = classes == tuple(known[k] for k in manifest.task)
    return manifest.model_copy(update={"classes": classes, "members": () if plain else manifest.groups})


def renamed_assembly(manifest: AssemblyManifest, names: Mapping[str, str]) -> AssemblyManifest:
    """The manifest of the same assembly whose classes, and those of its parts, have other names."""
    classes = _changed(manifest.classes, names)
    check_distinct([(name, ()) for name in classes], ())
    parts = []
    for part, places in zip(manifest.parts, manifest.places, strict=True):
        owned = [(name, places[lead]) for name, lead in zip(part.classes, part.leads, strict=True)]
        own = {old: classes[k] for old, k in owned if k >= 0 and classes[k] != manifest.classes[k]}
        parts.append(renamed_component(part, own))
    return manifest.model_copy(update={"classes": classes, "parts": tuple(parts)})


def read_names(texts: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """New names by old ones, each pair written as "old=new".

    An equals sign in a class name is no end of it.

    Raises:
        OptionError: A text is not written so.
    """
    found: dict[str, str] = {}
    for text in texts:
        old = next((name for name in classes if text.startswith(f"{name}=")), None)
        found |= {old: text[len(old) + 1 :]} if old is not None else other_names(text, "names")
    return found


def _changed(classes: Sequence[str], names: Any) -> tuple[str, ...]:
    found = other_names(names, "names")
    for old, new in found.items():
        if old not in classes:
            raise TaskError(
                "task-unknown-class",
                f"there is no class {brief(old)} to be renamed; classes: {', '.join(classes[:8])}{near(old, classes)}",
            )
        check_class_name(new, f"class {brief(old)}")
    return tuple(found.get(name, name) for name in classes)
