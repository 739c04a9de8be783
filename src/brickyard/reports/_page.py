"""The page: what is shown of components, assemblies and relevances, section by section."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from brickyard._version import __version__
from brickyard.assembly._assembly import Assembly
from brickyard.assembly._labelled import shared_signals
from brickyard.base._checks import given_path
from brickyard.base._errors import OptionError
from brickyard.base._messages import tidy
from brickyard.base._records import ComponentManifest, Preprocessing
from brickyard.component._component import Component
from brickyard.component._predictor import run_images
from brickyard.evaluation._evaluate import evaluate
from brickyard.evaluation._faithfulness import Faithfulness, faithfulness
from brickyard.evaluation._scores import Scores
from brickyard.inputs._batches import Images
from brickyard.network._identity import fingerprint
from brickyard.network._network import kind
from brickyard.relevance._allocation import normalised
from brickyard.relevance._relevance import Relevance
from brickyard.reports._figures import Point, heat_map, points, routes_figure
from brickyard.reports._markup import Child, Html, joined, short, table, tag
from brickyard.reports._routes import MOST_CLASSES, Routes, routes
from brickyard.reports._style import POLICY, SCRIPT, STYLE
from brickyard.runtime._profiling import count_flops, count_parameters
from brickyard.storage._atomic import write_content

Item = Component | Assembly | Relevance

CELLS = 1_200_000  # of all heat maps together: about a byte each in the page
WIDE, NARROW = 512, 24  # columns of one heat map, at most and at least
MOST_MATRIX = 20  # classes in a confusion matrix
MOST_ROWS = 400  # rows of a table
MOST_NAMES = 40  # classes in a heat map
MOST_MAPS = 400
LINKS = 4000  # curves of all routes together


@dataclass
class _Entry:
    """One item, with what was found out about it."""

    number: int
    name: str
    item: Item
    scores: dict[str, Scores] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    confusion: tuple[tuple[str, ...], Tensor] | None = None
    routes: Routes | None = None
    why_no_routes: str = ""
    faithful: tuple[Faithfulness, ...] = ()

    @property
    def kind(self) -> str:
        return {Component: "component", Assembly: "assembly", Relevance: "relevances"}[type(self.item)]

    @property
    def parts(self) -> tuple[ComponentManifest, ...]:
        if isinstance(self.item, Relevance):
            return ()
        return self.item.manifest.parts

    @property
    def title(self) -> Html:
        return joined(f"{self.number}. ", short(self.name))


def report(
    items: Sequence[Item],
    *,
    names: Sequence[str] | None = None,
    data: Sequence[Any] | None = None,
    sources: Sequence[nn.Module] = (),
    title: str = "Brickyard report",
    latency: bool = False,
) -> str:
    """Write a page about components, assemblies and relevances.

    The page is one HTML text that loads nothing. Without `data` it shows the scores that the files remember.

    Args:
        items: What the page is about.
        names: What to call them, one an item; default: "component 1" and so on.
        data: One entry an item, or None: labelled test images, as `evaluate` takes them, to score it with. For
            relevances whose source is given: images to measure their routes with.
        sources: Sources; each is used for the parts and relevances that came from it.
        title: The page's title.
        latency: Measure times too; the page is then another one every time.

    Returns:
        The page.

    Raises:
        OptionError: An item is of another kind, or names or data are not one an item.
        DataError: Images cannot be used.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.reports import report
        >>> from brickyard.testing import chain
        >>> data = torch.rand(40, 3, 8, 8), torch.arange(40) % 4
        >>> relevance = by.locate(chain(), data)
        >>> component = by.disassemble(chain(), relevance, task=["1", "3"])
        >>> page = report([component, relevance], data=[data, None], sources=[chain()])
        >>> page.startswith("<!doctype html>"), "Decision routes" in page
        (True, True)
    """
    entries = _entries(items, names, data)
    known = {fingerprint(source): source for source in sources}
    given = list(data) if data is not None else [None] * len(entries)
    for entry, images in zip(entries, given, strict=True):
        if isinstance(entry.item, Relevance):
            _find_routes(entry, entries, images, known.get(entry.item.source_sha256))
        else:
            _score(entry, entry.item, images, known, latency)
    return _page(title, entries)


def write_report(
    path: str | Path,
    items: Sequence[Item],
    *,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Write `report` to a file, atomically.

    Raises:
        FileError: The file exists and `overwrite` is false, or cannot be written.
    """
    path = given_path(path, "the file to write")
    write_content(path, report(items, **options), overwrite=overwrite)
    return path


# -- what is found out ---------------------------------------------------------------------------------------


def _entries(items: Sequence[Item], names: Sequence[str] | None, data: Sequence[Any] | None) -> list[_Entry]:
    if not isinstance(items, list | tuple) or not items:
        raise OptionError(
            "option-type",
            f"a report about {_given(items)} was asked for; give a list of components, assemblies and relevances",
        )
    for what, values in (("names", names), ("data", data)):
        if values is not None and len(values) != len(items):
            raise OptionError(
                "option-count", f"{len(values)} {what} were given for {len(items)} items; give one an item"
            )
    entries: list[_Entry] = []
    for place, item in enumerate(items):
        if not isinstance(item, Component | Assembly | Relevance):
            raise OptionError(
                "option-wrong-object",
                f"a report shows components, assemblies and relevances; a {type(item).__name__} was given",
            )
        entry = _Entry(place + 1, "", item)
        entry.name = names[place] if names is not None else f"{entry.kind} {place + 1}"
        entries.append(entry)
    return entries


def _given(items: object) -> str:
    return "nothing" if items is None or isinstance(items, list | tuple) else f"a {type(items).__name__}"


def _score(entry: _Entry, item: Component | Assembly, images: Any, known: dict[str, nn.Module], latency: bool) -> None:
    for name, value in item.manifest.scores.items():
        try:
            entry.scores[f"from the file: {name}"] = Scores.model_validate(value)
        except ValidationError:
            entry.other[name] = tidy(json.dumps(value, ensure_ascii=False), 300)
    if images is None:
        return
    own = [known.get(part.source.sha256) for part in entry.parts]
    source = own if isinstance(item, Assembly) else own[0]
    entry.scores = {"measured for this page": evaluate(item, images, source=source, latency=latency), **entry.scores}
    entry.confusion = _confusion(item, images)


def _confusion(item: Component | Assembly, data: Any) -> tuple[tuple[str, ...], Tensor] | None:
    """Class names, and how many images of each class (rows) are answered as each (columns); as `evaluate` counts."""
    classes = item.classes
    if len(classes) < 2 or not item.outputs.exclusive:
        return None
    if isinstance(item, Assembly):
        seen = shared_signals(item, data, features=item.gate is not None, batch_size=128)
        target, answers = seen.targets, item.scaled(*seen.signals).argmax(1)
    else:
        task = list(item.manifest.task)
        images = Images(data, item.manifest.preprocessing, "the images to score")
        labels = images.all_labels()
        chosen = torch.nonzero(torch.isin(labels, torch.tensor(task))).flatten().tolist()
        like = kind(item)
        with torch.inference_mode():
            found = [run_images(item, x, images.what).cpu() for x, _ in images.batches(chosen, 128, like)]
        answers = torch.cat(found)[:, : len(task)].argmax(1)
        target = torch.tensor([task.index(k) for k in labels[chosen].tolist()])
    counts = torch.bincount(target * len(classes) + answers.cpu(), minlength=len(classes) ** 2)
    return classes, counts.reshape(len(classes), len(classes))


def _find_routes(entry: _Entry, entries: Sequence[_Entry], images: Any, source: nn.Module | None) -> None:
    relevance = entry.item
    assert isinstance(relevance, Relevance)
    if relevance.sums is None:
        entry.why_no_routes = "The contributions were not kept in this file; locate with keep_sums=True to see routes."
        return
    tasks = [k for other in entries for p in other.parts if p.source.sha256 == relevance.source_sha256 for k in p.task]
    wanted = [k for k in dict.fromkeys(tasks) if k in relevance.task] or list(relevance.task)[:3]
    chosen = wanted[:MOST_CLASSES]
    among = sum(isinstance(other.item, Relevance) for other in entries)
    entry.routes = routes(relevance, chosen, most_links=min(1500, LINKS // among))
    if images is not None and source is not None:
        entry.faithful = faithfulness(source, relevance, chosen, images)


# -- the page ------------------------------------------------------------------------------------------------


def _page(title: str, entries: Sequence[_Entry]) -> str:
    sections = [
        ("overview", "What is here", _overview(entries)),
        ("scores", "Scores", _scores(entries)),
        ("size", "Accuracy against size", _size(entries)),
        ("confusion", "What is taken for what", _confusions(entries)),
        ("routes", "Decision routes", _routes(entries)),
        ("kept", "Channels kept", _kept(entries)),
        ("relevance", "Relevance of channels", _heat_maps(entries)),
        ("origin", "Where it came from", _origins(entries)),
    ]
    shown = [(name, heading, body) for name, heading, body in sections if body]
    links = [tag("li", tag("a", heading, href=f"#{name}")) for name, heading, _ in shown]
    counts = [(sum(e.kind == kind for e in entries), kind) for kind in ("component", "assembly", "relevances")]
    words = [f"{count} {_COUNTED[kind][count > 1]}" for count, kind in counts if count]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", tidy(title, 120)),
        tag("style", Html(STYLE)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the content", class_="skip", href="#content"),
        tag("header", tag("h1", tidy(title, 120)), tag("p", f"{', '.join(words)}.", class_="dim")),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag(
            "main",
            *[
                tag(
                    "section",
                    tag("h2", heading, id=f"{name}-title"),
                    body,
                    id=name,
                    aria_labelledby=f"{name}-title",
                )
                for name, heading, body in shown
            ],
            id="content",
        ),
        tag("footer", tag("p", f"Made by Brickyard {__version__}. This page loads nothing.", class_="dim")),
        tag("script", Html(SCRIPT)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


_COUNTED = {
    "component": ("component", "components"),
    "assembly": ("assembly", "assemblies"),
    "relevances": ("set of relevances", "sets of relevances"),
}


def _names(names: Sequence[str], most: int = 12) -> Html:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return joined([[", " if place else "", short(name, 32)] for place, name in enumerate(names[:most])], more)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _parameters(entry: _Entry) -> int:
    assert isinstance(entry.item, Component | Assembly)
    return count_parameters(entry.item)


def _overview(entries: Sequence[_Entry]) -> Html:
    rows: list[list[Child]] = []
    for entry in entries:
        if isinstance(entry.item, Relevance):
            located = tuple(entry.item.classes[k] for k in entry.item.task)
            rows.append([entry.title, "relevances", _names(located), "", ""])
            continue
        parameters = _parameters(entry)
        whole = sum({p.source.sha256: p.source.parameters for p in entry.parts}.values())
        flops = sum(part.selection.flops for part in entry.parts)
        if isinstance(entry.item, Component):
            flops = count_flops(entry.item.network, entry.item.manifest.input_shape)
        every = sum({p.source.sha256: p.source.flops for p in entry.parts}.values())
        rows.append(
            [
                entry.title,
                entry.kind,
                _names(entry.item.classes),
                f"{parameters:,} ({_share(parameters, whole)})",
                f"{flops:,} ({_share(flops, every)})",
            ]
        )
    header = ["file", "kind", "classes", "parameters", "FLOPs"]
    header, rows = _without_blanks(header, rows)
    return table("In brackets: share of the sources that it came from.", header, rows, numbers=False)


def _scores(entries: Sequence[_Entry]) -> Html:
    parts: list[Child] = []
    for entry in entries:
        if isinstance(entry.item, Relevance):
            continue
        parts.append(tag("h3", entry.title))
        for name, scores in entry.scores.items():
            header, *rows = scores.cells() if scores.rows else [[]]
            header, rows = _without_blanks(["row", *header[1:]], rows)
            caption = joined(short(name), ": ", short(scores.title, 120))
            parts.append(table(caption, header, [[short(cell, 40) for cell in row] for row in rows[:MOST_ROWS]]))
            parts += [tag("p", tidy(note, 300), class_="dim") for note in scores.notes[:10]]
            parts.append(_per_class(scores))
        for name, text in entry.other.items():
            parts.append(tag("p", short(name), ": ", text, class_="dim"))
        if not entry.scores and not entry.other:
            parts.append(tag("p", "No scores: the file remembers none, and no test images were given.", class_="dim"))
    if not parts:
        return Html("")
    text = "Accuracy in percent with one standard error. Base: the source with all its classes competing. Restricted: "
    text += "the source with only the task's classes competing, the fair baseline; drop is counted from it, and for an "
    text += "assembly from oracle, where each image is sent to the right part."
    return joined(tag("p", text, class_="dim"), parts)


def _without_blanks(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> tuple[list[Any], list[list[Any]]]:
    """A table without the columns that have nothing in any row."""
    kept = [place for place in range(len(header)) if place == 0 or any(row[place] != "" for row in rows)]
    return [header[place] for place in kept], [[row[place] for place in kept] for row in rows]


def _per_class(scores: Scores) -> Html:
    if not scores.per_class:
        return Html("")
    ordered = sorted(scores.per_class.items(), key=lambda pair: pair[1]) if len(scores.per_class) > MOST_ROWS else None
    shown = ordered[:MOST_ROWS] if ordered else list(scores.per_class.items())
    rows = [[short(name), f"{value:.1f}", _bar(value)] for name, value in shown]
    caption = "Accuracy by class, in percent" + (f": the {MOST_ROWS} lowest" if ordered else "")
    return tag("details", tag("summary", "By class"), table(caption, ["class", "accuracy", ""], rows))


def _bar(percent: float, mark: float | None = None, kind: str | None = None) -> Html:
    """A bar, for the eye only: the number stands beside it."""
    width = f"--w:{min(100.0, max(0.0, percent)):.1f}%"
    line = None if mark is None else tag("b", style=f"--o:{min(100.0, max(0.0, mark)):.1f}%")
    return tag("span", tag("i", style=width), line, class_=f"bar {kind}" if kind else "bar", aria_hidden="true")


def _size(entries: Sequence[_Entry]) -> Html:
    found: list[Point] = []
    for entry in entries:
        for scores in list(entry.scores.values())[:1]:
            for row in scores.rows:
                own = row.name in ("component", "assembled")
                parameters = row.parameters or (_parameters(entry) if own else 0)
                if (own or row.name == "base") and parameters > 0 and 0 <= row.accuracy <= 100:
                    found.append(Point(entry.number, entry.name, parameters, row.accuracy, min(row.error, 100.0), own))
    return points(found) if any(point.own for point in found) else Html("")


def _confusions(entries: Sequence[_Entry]) -> Html:
    parts: list[Child] = []
    for entry in entries:
        if entry.confusion is None:
            continue
        classes, counts = entry.confusion
        heading = tag("h3", entry.title)
        total = counts.sum(1)
        if len(classes) > MOST_MATRIX:
            wrong = counts.clone()
            wrong.fill_diagonal_(0)
            most = wrong.flatten().topk(min(30, wrong.numel()))
            rows: list[Sequence[Child]] = []
            for count, place in zip(most.values.tolist(), most.indices.tolist(), strict=True):
                true, said = divmod(place, len(classes))
                if count:
                    rows.append([short(classes[true]), short(classes[said]), count, _share(count, int(total[true]))])
            header: list[Child] = ["class", "answered as", "images", "share of the class"]
            what = table(f"The most frequent confusions among {len(classes)} classes", header, rows)
            parts.append(tag("div", heading, what))
            continue
        rows = []
        for row, name in enumerate(classes):
            cells = [
                _Cell(f"{int(counts[row, column])}", int(counts[row, column]) / max(1, int(total[row])), row == column)
                for column in range(len(classes))
            ]
            rows.append([short(name, 24), *cells])
        parts.append(tag("div", heading, _matrix([short(name, 24) for name in classes], rows)))
    return tag("div", *parts, class_="side") if parts else Html("")


@dataclass(frozen=True)
class _Cell:
    text: str
    share: float
    right: bool


def _matrix(names: Sequence[Html], rows: Sequence[Sequence[Any]]) -> Html:
    head = tag("thead", tag("tr", tag("th", "class", scope="col"), *[tag("th", name, scope="col") for name in names]))
    lines = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            *[
                tag("td", cell.text, class_="right" if cell.right else None, style=f"--w:{100 * cell.share:.0f}%")
                for cell in cells
            ],
        )
        for name, *cells in rows
    ]
    caption = tag("caption", "Images: rows are right, columns answered")
    inner = tag("table", caption, head, tag("tbody", *lines), class_="confusion")
    return tag("div", inner, class_="wide", tabindex="0", role="group", aria_label="table; scrolls sideways")


def _routes(entries: Sequence[_Entry]) -> Html:
    parts: list[Child] = []
    for entry in entries:
        if not isinstance(entry.item, Relevance):
            continue
        parts.append(tag("h3", entry.title))
        found = entry.routes
        if found is None:
            parts.append(tag("p", entry.why_no_routes, class_="dim"))
            continue
        located = len(entry.item.task)
        if len(found.classes) < located:
            parts.append(tag("p", f"{len(found.classes)} of {located} located classes are shown.", class_="dim"))
        parts.append(routes_figure(found))
        parts.append(_route_table(found))
        if entry.faithful:
            parts.append(_faithful_table(entry.faithful))
    return joined(parts)


def _route_table(found: Routes) -> Html:
    own = list(range(len(found.classes)))
    rows: list[list[Child]] = []
    seen: set[str] = set()
    for station in found.stations:
        if station.axis in seen:
            continue
        seen.add(station.axis)
        alone = [sum(len(b.channels) for b in station.bundles if b.owners == (k,)) for k in own]
        shared = sum(len(b.channels) for b in station.bundles if len(b.owners) > 1)
        idle = sum(len(b.channels) for b in station.bundles if not b.owners)
        cells = [f"{station.relevant(k)} ({alone[k]})" for k in own]
        rows.append([short(station.axis, 40), station.size, *cells, shared, idle])
    header: list[Child] = ["axis", "channels", *[short(name, 24) for name in found.classes], "shared", "unused"]
    caption = "Relevant channels of each class (in brackets: its own, that no other class shown needs)"
    more = tag("p", f"{len(rows) - MOST_ROWS} more axes are left out.", class_="dim") if len(rows) > MOST_ROWS else None
    return tag("details", tag("summary", "The numbers"), table(caption, header, rows[:MOST_ROWS]), more)


def _faithful_table(found: Sequence[Faithfulness]) -> Html:
    parts: list[Child] = [tag("h4", "Is it the route that decides?")]
    text = "The source, its channels partly at zero. Hits: images of the class that are answered as it, all classes of "
    text += (
        "the source competing. Others: images of other classes that are answered as it, the mark on the bar. AUROC: "
    )
    text += "how well the class's output tells its images from others, 50 is by chance. Random: as many channels of "
    text += f"every axis, mean of {found[0].seeds} draws."
    parts.append(tag("p", text, class_="dim"))
    tables: list[Html] = []
    for place, row in enumerate(found):
        caption = joined(short(row.name), f": {row.kept:,} of {row.channels:,} channels; {row.images:,} images, ")
        rows = [
            [
                name,
                f"{answers.hits:.1f}",
                "" if answers.others is None else f"{answers.others:.1f}",
                "" if answers.auroc is None else f"{answers.auroc:.1f}",
                _bar(answers.hits, answers.others, "grey" if "random" in name else f"k{place}"),
            ]
            for name, answers in row.cases()
        ]
        tables.append(
            table(
                joined(caption, f"{row.other_images:,} of others"),
                ["network", "hits, %", "others, %", "AUROC", ""],
                rows,
            )
        )
    return joined(parts, tag("div", *tables, class_="side"))


def _kept(entries: Sequence[_Entry]) -> Html:
    parts: list[Child] = []
    for entry in entries:
        for place, part in enumerate(entry.parts):
            more = f", part {place}" if len(entry.parts) > 1 else ""
            kept, size = (sum(v) for v in zip(*[(len(a.kept), a.size) for a in part.axes.values()], strict=True))
            rows: list[list[Child]] = []
            for name, axis in list(part.axes.items())[:MOST_ROWS]:
                share = 100 * len(axis.kept) / axis.size
                note = " pinned" if axis.pinned else ""
                rows.append([short(name, 40), f"{len(axis.kept)} of {axis.size}{note}", _bar(share)])
            left = len(part.axes) - len(rows)
            head = joined(entry.title, f"{more}: {kept:,} of {size:,} channels on {len(part.axes)} axes, for ")
            caption = "Channels kept on each axis" + (f"; {left} more axes are left out" if left else "")
            parts.append(
                tag(
                    "details",
                    tag("summary", head, _names(part.classes, 6)),
                    table(caption, ["axis", "kept", ""], rows),
                    open=len(parts) < 2 and len(rows) <= 30,
                )
            )
    return joined(parts)


def _heat_maps(entries: Sequence[_Entry]) -> Html:
    found = [entry for entry in entries if isinstance(entry.item, Relevance)]
    total = sum(len(e.item.axes) + len(e.item.layers) for e in found if isinstance(e.item, Relevance))
    parts: list[Child] = []
    for entry in found:
        relevance = entry.item
        assert isinstance(relevance, Relevance)
        shown = list(relevance.task)[:MOST_NAMES]
        names = [relevance.classes[k] for k in shown]
        columns = max(NARROW, min(WIDE, CELLS // max(1, min(total, MOST_MAPS * len(found)) * len(shown))))
        parts.append(tag("h3", entry.title))
        notes = "A row is a class, a column a channel; the stronger the colour, the more."
        if len(shown) < len(relevance.task):
            notes += f" The first {len(shown)} of {len(relevance.task)} classes are shown."
        if any(size > columns for _, size in relevance.axes.values()):
            notes += f" Axes of more than {columns} channels are drawn in runs of channels, by their highest."
        parts.append(tag("p", notes, class_="dim"))
        axes = [name for name in relevance.axes if _differs(relevance.axis(name)[shown])][: MOST_MAPS // 2]
        maps = [
            heat_map(relevance.axis(name)[shown].double().numpy(), names, f"axis {tidy(name, 60)}", columns)
            for name in axes
        ]
        few = len(maps) <= 16
        left = len(relevance.axes) - len(axes)
        title = f"Relevance of {len(axes)} axes" + (f" ({left} more: alike throughout, or too many)" if left else "")
        parts.append(tag("details", tag("summary", title), *maps, open=few))
        if relevance.sums is not None:
            layers = list(relevance.layers)[: MOST_MAPS // 2]
            maps = [_layer_map(relevance, layer, shown, names, columns) for layer in layers]
            title = f"Relative contributions to {len(layers)} layers, mean over their outputs"
            parts.append(tag("details", tag("summary", title), *maps))
    return joined(parts)


def _differs(values: Tensor) -> bool:
    return bool((values != values.flatten()[0]).any())


def _layer_map(relevance: Relevance, layer: str, shown: Sequence[int], names: Sequence[str], columns: int) -> Html:
    sums = relevance.sum(layer)
    values: NDArray[np.float64] = np.stack([normalised(sums[k].double()).mean(0).numpy() for k in shown])
    return heat_map(values, names, f"inputs of layer {tidy(layer, 60)}", columns, float(values.max()) or 1.0)


def _origins(entries: Sequence[_Entry]) -> Html:
    parts: list[Child] = []
    for entry in entries:
        parts.append(tag("h3", entry.title))
        if isinstance(entry.item, Relevance):
            parts.append(_relevance_origin(entry.item))
            continue
        if isinstance(entry.item, Assembly):
            parts.append(_assembly_origin(entry.item))
        for place, part in enumerate(entry.parts):
            if len(entry.parts) > 1:
                parts.append(tag("h4", f"Part {place}"))
            parts.append(_part_origin(part))
    return joined(parts)


def _list(pairs: Sequence[tuple[str, Child]]) -> Html:
    return tag("dl", *[[tag("dt", name), tag("dd", value)] for name, value in pairs])


def _part_origin(part: ComponentManifest) -> Html:
    source, chosen, heal = part.source, part.selection, part.heal
    pairs: list[tuple[str, Child]] = [
        (
            "source",
            joined(short(source.name, 80), f", {len(source.classes)} classes, {source.parameters:,} parameters"),
        ),
        ("weights", f"sha256 {source.sha256[:12]}…"),
        ("classes", joined(_names(part.classes), " and reject" if part.reject else "")),
    ]
    if part.located is not None:
        pairs.append(("located with", _images(part.located.choose, sum(part.located.images), part.located.data)))
    if chosen.budget is not None:
        words = [f"{tidy(str(key), 24)} {tidy(str(value), 24)}" for key, value in list(chosen.budget.items())[:12]]
        pairs.append(("budget", ", ".join(words)))
    if chosen.thresholds is not None:
        words = [f"{tidy(name, 24)} {value:g}" for name, value in list(chosen.thresholds.items())[:12]]
        pairs.append(("thresholds", ", ".join(words)))
    healed = "none"
    if heal.method != "none":
        healed = f"{heal.method}, {heal.images:,} images, {heal.layers} layers"
        healed += f", ridge {heal.ridge:g}" if heal.ridge is not None else ""
    pairs.append(("heal", healed))
    pairs += [("note", tidy(note, 200)) for note in heal.notes[:6]]
    if part.pinned:
        pinned = ", ".join(f"{tidy(p.axis, 32)} ({tidy(p.reason, 80)})" for p in part.pinned[:6])
        pairs.append(("kept whole", pinned + (f" and {len(part.pinned) - 6} more" if len(part.pinned) > 6 else "")))
    versions = part.versions
    pairs += [
        ("images become", _preprocessing(part.preprocessing)),
        ("made with", tidy(f"Brickyard {versions.brickyard}, torch {versions.torch}, Python {versions.python}", 120)),
        ("made on", tidy(part.created, 40)),
    ]
    return _list(pairs)


def _assembly_origin(item: Assembly) -> Html:
    manifest = item.manifest
    scaling = manifest.scaling
    labelled = f", {scaling.images:,} labelled images" if scaling.images else ""
    pairs: list[tuple[str, Child]] = [
        ("form", manifest.form),
        ("scaling", joined(short(scaling.name), labelled)),
        ("classes", _names(manifest.classes)),
    ]
    pairs += [("note", tidy(note, 200)) for note in (*manifest.notes, *scaling.notes)[:6]]
    return _list(pairs)


def _relevance_origin(item: Relevance) -> Html:
    thresholds = ", ".join(f"{name} {value:g}" for name, value in item.thresholds.as_dict().items())
    return _list(
        [
            ("source", joined(short(item.source_name, 80), f", {len(item.classes)} classes")),
            ("weights", f"sha256 {item.source_sha256[:12]}…"),
            ("located", _names(tuple(item.classes[k] for k in item.task))),
            ("located with", _images(item.record.choose, sum(item.record.images), item.record.data)),
            ("thresholds", thresholds),
            ("images become", _preprocessing(item.preprocessing)),
        ]
    )


def _images(choose: str, count: int, data: str) -> Html:
    return joined(f"{count:,} images ({choose})", [" of ", short(data, 80)] if data else "")


def _preprocessing(how: Preprocessing) -> str:
    words = []
    if how.size is not None:
        words.append(f"{how.size[0]}x{how.size[1]} ({how.fit})")
    if how.channels is not None:
        words.append("grey" if how.channels == 1 else "colour")
    if how.mean is not None and how.std is not None:
        words.append(f"mean {_numbers(how.mean)}, std {_numbers(how.std)}")
    return "; ".join(words) or "as they are"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values[:8])
