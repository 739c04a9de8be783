"""Commands that make pictures and pages: routes, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brickyard.commands.common import (
    DATA_HELP,
    Force,
    Json,
    Names,
    Output,
    Size,
    SourceSpec,
    Weights,
    check_free,
    data_of,
    emit,
    fitted,
    loaded,
    preprocessing_of,
    source_of,
)
from brickyard.errors import OptionError

if TYPE_CHECKING:
    pass

Split = Annotated[str, typer.Option(help="Split of the data where its text names none.")]
MaxImages = Annotated[int | None, typer.Option(help="Use at most so many images of each.", min=1)]


def routes(
    source: SourceSpec,
    relevance: Annotated[Path, typer.Option("--relevance", help="Relevances that `locate` wrote.", show_default=False)],
    output: Output,
    classes: Annotated[
        str, typer.Option("--classes", help='Up to six classes: "cat,dog" or "0-2".', show_default=False)
    ],
    data: Annotated[str | None, typer.Option("--data", help=f"Measure with these test images: {DATA_HELP}")] = None,
    weights: Weights = None,
    names: Names = None,
    size: Size = None,
    split: Split = "test",
    max_images: MaxImages = None,
    seeds: Annotated[int, typer.Option(help="Random routes to compare with.", min=1)] = 5,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw the decision routes of some classes, as .svg or .png; with images, measure them too."""
    from dataclasses import asdict

    from brickyard.datasets import parse_classes
    from brickyard.faithful import Faithfulness, faithfulness
    from brickyard.picturing import draw
    from brickyard.relevance import Relevance
    from brickyard.routes import routes as find

    check_free(output, force)
    if output.suffix not in (".png", ".svg"):
        raise OptionError(f"a picture {output.name!r} was asked for; use a name that ends in .png or .svg")
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
    emit(value, as_json, "\n".join([*map(_line, rows), str(output)]))


def _line(row: Any) -> str:
    cases = [
        f"{name} {answers.hits:.1f}" + ("" if answers.others is None else f" ({answers.others:.1f})")
        for name, answers in row.cases()
    ]
    return f"{row.name}: {row.kept:,} of {row.channels:,} channels; {', '.join(cases)} % of its (of other) images"
