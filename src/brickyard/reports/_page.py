"""HTML reports on components, assemblies and relevances."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from brickyard._version import __version__
from brickyard.base._checks import given_path
from brickyard.base._notebook import COLOURS
from brickyard.network._identity import fingerprint
from brickyard.network._untouched import guarded
from brickyard.relevance._relevance import Relevance
from brickyard.reports._entries import PICTURES, Entry, Item, entries_of, find_routes, score
from brickyard.reports._sections import SECTIONS
from brickyard.reports._summary import headline
from brickyard.reports._templates import page_environment
from brickyard.storage._atomic import write_content


@guarded
def report(
    items: Sequence[Item],
    *,
    names: Sequence[str] | None = None,
    data: Sequence[Any] | None = None,
    sources: Sequence[nn.Module] = (),
    title: str = "Brickyard report",
    latency: bool = False,
    including_calibration: bool = False,
) -> str:
    """Create an HTML report on components, assemblies and relevances.

    The report is a single, self-contained HTML page. Without `data`, it shows the scores stored in the files.

    Args:
        items: Components, assemblies and relevances.
        names: Display names, one per item; default: "component 1" and so on.
        data: One entry per item, or None: labelled test images for scoring it, as for `evaluate`;
            for detectors, images with boxes. For relevances whose
            source is given: images for measuring their routes.
        sources: Sources; each is used for the parts and relevances derived from it.
        title: Title of the page.
        latency: Also measure latency; the page then differs each time.
        including_calibration: Also score images that were used to locate, heal or scale; they are left out otherwise.

    Returns:
        The HTML text.

    Raises:
        OptionError: An item has the wrong type, or names or data do not have one entry per item.
        DataError: The images cannot be used.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.reports import report
        >>> from brickyard.testing import chain
        >>> data, test = ((torch.rand(40, 3, 8, 8), torch.arange(40) % 4) for _ in range(2))
        >>> relevance = by.locate(chain(), data)
        >>> component = by.disassemble(chain(), relevance, task=["1", "3"])
        >>> page = report([component, relevance], data=[test, None], sources=[chain()])
        >>> page.startswith("<!doctype html>"), "Decision routes" in page
        (True, True)
    """
    entries = entries_of(items, names, data)
    known = {fingerprint(source): source for source in sources}
    most_bytes = PICTURES // max(1, sum(entry.images is not None for entry in entries))
    for entry in entries:
        if isinstance(entry.item, Relevance):
            find_routes(entry, entry.item, entries, known.get(entry.item.source_sha256), including_calibration)
        else:
            options = {"latency": latency, "including_calibration": including_calibration}
            score(entry, entry.item, known, most_bytes, **options)
    return _page(title, entries)


@guarded
def write_report(path: str | Path, items: Sequence[Item], *, overwrite: bool = False, **options: Any) -> Path:
    """Write `report` to a file, atomically.

    Raises:
        FileError: The file exists and `overwrite` is false, or cannot be written.
    """
    path = given_path(path, "the file to write")
    write_content(path, report(items, **options), overwrite=overwrite)
    return path


_COUNTED = {
    "component": ("component", "components"),
    "assembly": ("assembly", "assemblies"),
    "relevance": ("set of relevances", "sets of relevances"),
}


def _page(title: str, entries: Sequence[Entry]) -> str:
    """Render the page. It loads nothing and runs only its own script, whatever the files contain."""
    counts = [(sum(entry.kind == kind for entry in entries), words) for kind, words in _COUNTED.items()]
    sections = [{"id": name, "heading": heading, "found": make(entries)} for name, heading, make in SECTIONS]
    templates = page_environment()
    script = templates.get_template("script.js").render()
    page = templates.get_template("page.html.jinja").render(
        page_title=title,
        counted=", ".join(f"{count} {words[count > 1]}" for count, words in counts if count),
        lead=headline(entries),
        sections=[section for section in sections if section["found"]],
        colours=COLOURS,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
    )
    return f"{page}\n"
