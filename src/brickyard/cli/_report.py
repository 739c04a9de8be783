"""Commands that create pictures and pages: routes, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brickyard.base._errors import OptionError
from brickyard.cli._options import DATA_HELP, SOURCE_HELP, Force, Json, Names, Output, Size, SourceSpec, Split, Weights
from brickyard.cli._output import emit, loaded
from brickyard.sources._resolve import check_free, data_of, fitted, preprocessing_of, source_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brickyard.evaluation._faithfulness import Faithfulness


MaxImages = Annotated[int | None, typer.Option(help="Use at most this many images per --data.", min=1)]


def routes(
    source: SourceSpec,
    relevance: Annotated[
        Path, typer.Option("--relevance", help="Use relevances written by `locate`.", show_default=False)
    ],
    output: Output,
    classes: Annotated[
        str, typer.Option("--classes", help='Draw up to six classes: "cat,dog" or "0-2".', show_default=False)
    ],
    data: Annotated[
        str | None, typer.Option("--data", help=f"Also measure the routes on these test images: {DATA_HELP}")
    ] = None,
    weights: Weights = None,
    names: Names = None,
    size: Size = None,
    split: Split = "test",
    max_images: MaxImages = None,
    seeds: Annotated[int, typer.Option(help="Compare with this many random routes.", min=1)] = 5,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw the decision routes of classes (.svg or .png). With --data, also measure them."""
    from dataclasses import asdict

    from brickyard.base._classes import parse_classes
    from brickyard.evaluation._faithfulness import faithfulness
    from brickyard.relevance._relevance import Relevance
    from brickyard.reports._route_picture import draw
    from brickyard.reports._routes import routes as find

    check_free(output, force, source, weights, relevance)
    if output.suffix not in (".png", ".svg"):
        raise OptionError("option-suffix", f"the picture's name must end in .png or .svg, got {output.name!r}")
    known: Any = loaded(relevance, Relevance)
    origin = source_of(source, weights, names, preprocessing_of(None, None, size) or known.preprocessing)
    known.graph(origin.model)  # refuses another source
    chosen = parse_classes([classes], known.classes)
    found = find(known, chosen)
    rows: tuple[Faithfulness, ...] = ()
    if data is not None:
        images = fitted(data_of(data, known.preprocessing, split, max_images), known.classes)
        rows = faithfulness(origin.model, known, chosen, images, seeds=seeds)
    draw(found, output, rows, overwrite=force)
    value = {
        "source": found.source,
        "classes": list(found.classes),
        "relevant": [
            {
                "axis": station.axis,
                "layer": station.label,
                "size": station.size,
                "channels": [station.relevant(owner) for owner in range(len(found.classes))],
            }
            for station in found.stations
        ],
        "links": len(found.links),
        "left_out": found.left_out,
        "faithfulness": [asdict(row) for row in rows],
    }
    emit(value, as_json, "\n".join([*([_measured(rows)] if rows else []), str(output)]))


def _measured(rows: Sequence[Faithfulness]) -> str:
    """Format the faithfulness of routes as a table."""
    lines: list[list[str]] = []
    for row in rows:
        title = f"{row.name}: {row.kept:,} of {row.channels:,} channels"
        lines.append([title, f"own images ({row.images:,})", f"others ({row.other_images:,})", "AUROC"])
        for name, answers in row.cases():
            figures = (answers.hits, answers.others, answers.auroc)
            lines.append([f"  {name}", *("" if value is None else f"{value:.1f}" for value in figures)])
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def report(
    files: Annotated[list[Path], typer.Argument(help="Component, assembly and relevance files.", show_default=False)],
    output: Output,
    data: Annotated[
        list[str] | None, typer.Option("--data", help=f"Test images, once in total or once per part: {DATA_HELP}")
    ] = None,
    relevance: Annotated[
        list[Path] | None, typer.Option("--relevance", help="Add heat maps and routes of these relevances.")
    ] = None,
    source: Annotated[list[str] | None, typer.Option("--source", help=f"Compare with a source: {SOURCE_HELP}")] = None,
    weights: Annotated[
        list[Path] | None, typer.Option("--weights", help="Read weights from this file, once per --source.")
    ] = None,
    split: Split = "test",
    max_images: MaxImages = None,
    faithful: Annotated[
        bool, typer.Option("--faithfulness", help="Also measure routes; needs --source and exactly one --data. Slow.")
    ] = False,
    latency: Annotated[bool, typer.Option("--latency", help="Measure latency.")] = False,
    title: Annotated[str, typer.Option(help="Set the page title.")] = "Brickyard report",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write an HTML report on files. It shows scores, sizes, channels, relevances, routes and origins."""
    from brickyard.assembly._assembly import Assembly
    from brickyard.relevance._relevance import Relevance
    from brickyard.reports._page import write_report

    check_free(output, force, *files, *(relevance or []), *(source or []), *(weights or []))
    paths = [*files, *(relevance or [])]
    items: list[Any] = [loaded(path) for path in files]
    items += [loaded(path, Relevance) for path in relevance or []]
    parts = [_parts(item) for item in items]
    count = sum(map(len, parts))
    if data and len(data) not in (1, count):
        raise OptionError("option-count", f"the files have {count} parts in total; give --data once, or {count} times")
    if faithful and not (source and data and len(data) == 1):
        raise OptionError(
            "option-requires-option",
            "--faithfulness needs --source, and --data exactly once; give both, or leave it out",
        )
    specs = list(data or [])
    specs = specs if len(specs) == count else specs * count
    images: list[Any] = []
    for item, own in zip(items, parts, strict=True):
        mine, specs = specs[: len(own)], specs[len(own) :]
        found = [
            fitted(data_of(spec, part.preprocessing, split, max_images), part.source.classes)
            for spec, part in zip(mine, own, strict=False)
        ]
        if isinstance(item, Relevance) and faithful and data:
            found = [fitted(data_of(data[0], item.preprocessing, split, max_images), item.classes)]
        images.append((found if isinstance(item, Assembly) else found[0]) if found else None)
    if weights and len(weights) != len(source or []):
        raise OptionError(
            "option-count", f"--weights was given {len(weights)} times for {len(source or [])} sources; once per source"
        )
    how = next((getattr(part[0], "preprocessing", None) for part in parts if part), None)
    places: list[Path | None] = list(weights or []) or [None] * len(source or [])
    models = [source_of(spec, place, None, how).model for spec, place in zip(source or [], places, strict=True)]
    names = [path.name for path in paths]
    write_report(output, items, names=names, data=images, sources=models, title=title, latency=latency, overwrite=force)
    size = output.stat().st_size
    emit({"report": str(output), "items": names, "bytes": size}, as_json, f"{output} ({size / 1e6:.2f} MB)")


def _parts(item: Any) -> tuple[Any, ...]:
    """The manifests of an item's components."""
    manifest = getattr(item, "manifest", None)
    return () if manifest is None else tuple(manifest.parts)
