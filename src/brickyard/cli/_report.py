"""Commands that create pictures and pages: routes, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from brickyard.base._boxes import check_no_boxes
from brickyard.base._errors import OptionError
from brickyard.cli import _options as words
from brickyard.cli._options import DATA_HELP, SOURCE_HELP, Force, Output, with_options
from brickyard.cli._output import Result, loaded, table
from brickyard.sources import _resolve as resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brickyard.evaluation._faithfulness import Faithfulness


@with_options(words.PreprocessingOptions, only=("size",))
def routes(
    source: words.SourceSpec,
    relevance: Annotated[Path, Option(help="Use relevances written by `locate`.")],
    output: Output,
    classes: Annotated[str, Option(help='Draw up to six classes: "cat,dog" or "0-2".')],
    data: Annotated[str | None, Option(help=f"Also measure the routes on these test images: {DATA_HELP}")] = None,
    weights: words.Weights = None,
    names: words.Names = None,
    split: words.Split = "test",
    max_images: words.MaxImages = None,
    seeds: Annotated[int, Option(help="Compare with this many random routes.", min=1)] = 5,
    including: words.Including = False,
    force: Force = False,
    **options: Any,
) -> Result:
    """Draw the decision routes of classes (.svg or .png). With --data, also measure them."""
    from dataclasses import asdict

    from brickyard.base._classes import parse_classes
    from brickyard.evaluation._faithfulness import faithfulness
    from brickyard.relevance._relevance import Relevance
    from brickyard.reports._route_picture import check_suffix, draw
    from brickyard.reports._routes import routes as find

    resolve.check_free(output, force, source, weights, relevance)
    check_suffix(output)
    known: Any = loaded(relevance, Relevance)
    how = resolve.preprocessing_of(**options) or known.preprocessing
    which: dict[str, Any] = {"input_shape": known.input_shape, "output_name": known.record.output, "boxes": known.boxes}
    which["tell"] = False
    if data is not None:
        check_no_boxes(known, "measuring routes", "leave --data out to draw them alone")
    origin = resolve.source_of(source, weights, names, how, **which)
    known.graph(origin.model)  # refuses another source
    chosen = parse_classes([classes], known.classes)
    found = find(known, chosen)
    rows: tuple[Faithfulness, ...] = ()
    if data is not None:
        kind: Any = {"outputs": known.outputs, "shape": known.input_shape}
        images = resolve.fitted(resolve.data_of(data, known.preprocessing, split, max_images, **kind), known.classes)
        rows = faithfulness(origin.model, known, chosen, images, seeds=seeds, including_calibration=including)
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
    return Result(value, "\n".join([*_measured(rows), str(output)]))


def _measured(rows: Sequence[Faithfulness]) -> list[str]:
    """Format the faithfulness of routes as a table."""
    lines: list[list[str]] = []
    for row in rows:
        title = f"{row.name}: {row.kept:,} of {row.channels:,} channels"
        lines.append([title, f"own images ({row.images:,})", f"others ({row.other_images:,})", "AUROC"])
        for name, answers in row.cases():
            figures = (answers.hits, answers.others, answers.auroc)
            lines.append([f"  {name}", *("" if value is None else f"{value:.1f}" for value in figures)])
    return [table(lines)] if lines else []


def report(
    files: Annotated[list[Path], Argument(help="Component, assembly and relevance files.")],
    output: Output,
    data: Annotated[list[str] | None, Option(help=f"Test images, once in total or once per part: {DATA_HELP}")] = None,
    relevance: Annotated[list[Path] | None, Option(help="Add heat maps and routes of these relevances.")] = None,
    source: Annotated[list[str] | None, Option(help=f"Compare with a source: {SOURCE_HELP}")] = None,
    weights: words.AllWeights = None,
    split: words.Split = "test",
    max_images: words.MaxImages = None,
    faithful: Annotated[
        bool, Option("--faithfulness", help="Also measure routes; needs --source and exactly one --data. Slow.")
    ] = False,
    latency: Annotated[bool, Option("--latency", help="Measure latency.")] = False,
    including: words.Including = False,
    title: Annotated[str, Option(help="Set the page title.")] = "Brickyard report",
    force: Force = False,
) -> Result:
    """Write an HTML report on files. It shows scores, sizes, channels, relevances, routes and origins."""
    from brickyard.assembly._assembly import Assembly
    from brickyard.component._component import Component
    from brickyard.relevance._relevance import Relevance
    from brickyard.reports._page import write_report

    paths, specs = [*files, *(relevance or [])], source or []
    resolve.check_free(output, force, *paths, *specs, *(weights or []))
    items: list[Any] = [loaded(path, Component, Assembly, Relevance) for path in files] + [
        loaded(path, Relevance) for path in relevance or []
    ]
    if faithful and not (source and data and len(data) == 1):
        raise OptionError("option-requires-option", "--faithfulness needs --source and exactly one --data; give both")
    parts: list[Any] = [() if isinstance(item, Relevance) else item.manifest.parts for item in items]
    every = [part for own in parts for part in own]
    found = iter(_data_of_parts(data, paths, items, split, max_images) if data else [])
    images: list[Any] = []
    for item, own in zip(items, parts, strict=True):
        if isinstance(item, Relevance):
            raw = None
            if faithful and data:
                kind: Any = {"outputs": item.outputs, "shape": item.input_shape}
                raw = resolve.data_of(data[0], item.preprocessing, split, max_images, **kind)
            images.append(None if raw is None else resolve.fitted(raw, item.classes))
        else:
            mine = [next(found) for _ in own] if data else []
            known = any(one is not None for one in mine)
            alone = not isinstance(item, Assembly) or own[0].boxes is not None
            images.append(None if not known else mine[0] if alone else mine)
    networks = resolve.models_of(specs, weights or [], [every[0] if every else None] * len(specs))
    names = [path.name for path in paths]
    measured = {"latency": latency, "including_calibration": including}
    write_report(output, items, names=names, data=images, sources=networks, title=title, overwrite=force, **measured)
    size = output.stat().st_size
    return Result({"report": str(output), "items": names, "bytes": size}, f"{output} ({size / 1e6:.2f} MB)")


def _data_of_parts(
    specs: Sequence[str], paths: Sequence[Path], items: Sequence[Any], split: str, most: int | None
) -> list[Any]:
    """The images of each part of the files; a detector's, those with boxes, which it has once for all its parts."""
    from brickyard.cli._look import boxes_to_score

    models = [(path.name, item) for path, item in zip(paths, items, strict=True) if hasattr(item, "manifest")]
    count = sum(len(item.manifest.parts) for _, item in models)
    if len(specs) not in (1, count):
        why = f"{count} parts need --data once, or {count} times, got {len(specs)}"
        raise OptionError("option-count", f"{why}; give it once, or once per part")
    each = iter(specs if len(specs) == count else list(specs) * count)
    asked = [(name, item, [next(each) for _ in item.manifest.parts]) for name, item in models]
    plain = [row for row in asked if row[1].manifest.parts[0].boxes is None]
    texts = list(specs) if len(specs) == 1 else [spec for *_, own in plain for spec in own]
    known = [(name, item.manifest) for name, item, _ in plain]
    rest = iter(resolve.labelled_images(texts, known, "--data", split, most, shared=True) if plain else [])
    found: list[Any] = []
    for _, item, own in asked:
        boxes = boxes_to_score(list(dict.fromkeys(own)), item, split, most)
        found += boxes * len(own) or [next(rest) for _ in own]
    return found
