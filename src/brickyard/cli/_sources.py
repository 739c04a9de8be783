"""The sources command, which lists what can be loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

from brickyard.cli._output import Result, table
from brickyard.runtime._progress import say

if TYPE_CHECKING:
    from brickyard.sources._catalogue import Kind

FEW = 12  # names of a kind that are listed unasked


def sources(
    search: Annotated[
        list[str] | None,
        Argument(help="Words to find in names, such as resnet 50 or timm:vit; all must be there."),
    ] = None,
) -> Result:
    """List what can be loaded as a source, by kind. With words, list all names that hold them."""
    from brickyard.sources._catalogue import kinds, suggestions

    words = [word.casefold() for word in search or ()]
    every = kinds()
    found = {kind.name: [spec for spec in kind.specs if _holds(kind, spec, words)] for kind in every}
    listed = [{"kind": kind.name, "how": kind.how, "names": found[kind.name]} for kind in every]
    value: dict[str, Any] = {"search": list(search or ()), "kinds": listed}
    lines: list[str] = []
    if not words:
        counts = [[kind.name, f"{len(kind.names):,}", kind.how] for kind in every]
        lines = [table([["kind", "names", "how to give one"], *counts], right=(1,)), ""]
        say("list names with a word: brickyard sources resnet, or brickyard sources timm: for all of a kind")
    for kind in every:
        if found[kind.name] and (words or len(kind.names) <= FEW):
            lines += [f"{kind.name}: {kind.how}", *(f"  {name}" for name in found[kind.name])]
    if words and not lines:
        meant = suggestions(" ".join(search or ()))
        say("no source has all of these words in its name" + (f"; did you mean {' or '.join(meant)}?" if meant else ""))
    return Result(value, "\n".join(lines).rstrip())


def _holds(kind: Kind, spec: str, words: list[str]) -> bool:
    text = f"{kind.name}: {spec}".casefold()
    return all(word in text for word in words)
