"""Score tables: rows that print as text and can be written as JSON or CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from brickyard.base._frozen import Frozen
from brickyard.base._messages import json_text, shown, told

MOST_NAMED = 12  # classes without images, by name


class Row(Frozen):
    """One row of a score table. Accuracies, AUROC, drops and errors are in percent (points).

    Attributes:
        name: base, restricted, component, oracle or assembled.
        images: Number of images scored.
        accuracy: Share of images answered correctly; `error` is one standard error.
        class_accuracy: Mean over classes; `class_error` is one standard error.
        drop: Points below the reference row; `drop_error` is paired over images.
        auroc: Area under the ROC curve of a single class against the others; `auroc_error` is one standard error.
        auroc_drop: Points of AUROC below the restricted source; `auroc_drop_error` is paired over images.
        mean_ap: Mean over classes of the average precision, where an image may belong to several classes.
        f1: Mean over classes of the F1 score, where an image may belong to several classes.
        parameters: Number of parameters.
        flops: Floating-point operations per image, two per multiply-add.
        latency: Milliseconds per batch (median, low, high) with batch, threads and runs.
    """

    name: str
    images: int
    accuracy: float
    error: float
    class_accuracy: float
    class_error: float
    drop: float | None = None
    drop_error: float | None = None
    auroc: float | None = None
    auroc_error: float | None = None
    auroc_drop: float | None = None
    auroc_drop_error: float | None = None
    mean_ap: float | None = None
    f1: float | None = None
    parameters: int | None = None
    flops: int | None = None
    latency: dict[str, float] | None = None


class Overlap(Frozen):
    """How many of the images given for scoring were used to locate, heal or scale.

    Attributes:
        given: How many were given.
        used: How many of them were used.
        left_out: How many of these were not scored.
        unknown: How many images were used of which it is not known which they are.
    """

    given: int
    used: int
    left_out: int
    unknown: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of it; nothing where no image was used."""
        found: list[str] = []
        if self.used:
            said = f"{self.used:,} of {self.given:,} images were used to locate, heal or scale"
            kept = ", and are scored too: figures on such images are too good"
            out = ", and are left out (--including-calibration scores them too)"
            found.append(said + (out if self.left_out else kept))
        if self.unknown:
            many = f"{self.unknown:,} {'more ' if self.used else ''}images"
            found.append(f"{many} were used to locate, heal or scale, and it is not known which: some may be scored")
        return tuple(found)


class ScoreTable(Frozen):
    """What tables of scores share, whatever their rows tell.

    Attributes:
        title: What was scored.
        rows: The rows.
        notes: What is to be said of them.
    """

    title: str
    rows: tuple[Any, ...]
    notes: tuple[str, ...] = ()

    def cells(self) -> list[list[str]]:
        """The table as text: a header, and one list per row."""
        raise NotImplementedError

    def laid_out(self) -> list[str]:
        """The table in lines, with what to give for a drop where there is none."""
        table = self.cells()
        if all(row.drop is None for row in self.rows):
            table[-1][table[0].index("drop")] = "needs --source"
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        ]

    @property
    def told_of(self) -> str:
        """What the images are called."""
        return str(getattr(self, "data", "")) or "test images"

    def as_dict(self) -> dict[str, Any]:
        """All values, ready for JSON."""
        return self.model_dump(mode="json")

    def remembered(self) -> dict[str, Any]:
        """The values to keep with a model, under the name of the images: all but times, which are of one machine.

        Example:
            >>> from brickyard.evaluation._scores import Scores
            >>> list(Scores(title="six digits", rows=(), data="digits/test").remembered())
            ['digits/test']
        """
        rows = tuple(row.model_copy(update={"latency": None}) for row in self.rows)
        return {self.told_of: self.model_copy(update={"rows": rows}).as_dict()}

    def to_json(self, path: str | Path, *, overwrite: bool = True) -> Path:
        """Write all values as JSON.

        Raises:
            FileError: The file exists and `overwrite` is false, or cannot be written.
        """
        return write_text(path, json_text(self.as_dict(), 1) + "\n", overwrite)


class Scores(ScoreTable):
    """A score table.

    Attributes:
        title: What was scored.
        rows: The rows.
        notes: What is to be said of them.
        per_class: Accuracy of each class that has scored images, in percent.
        per_class_images: How many of the scored images are of each class; empty in tables that did not count them.
        other_classes: For each part, how many of its images were left out since they are of none of the classes.
        counted: What the images are called: images or nodes.
        data: What the images are called; "" where they have no name.
        data_sha256: A hash of the images and their labels, in whatever order and form they were given.
        overlap: How many of the images were used to locate, heal or scale.

    Example:
        >>> from brickyard.evaluation._scores import Row, Scores
        >>> row = Row(name="component", images=100, accuracy=90, error=3, class_accuracy=90, class_error=3)
        >>> print(Scores(title="digits", rows=(row,)))
        digits
                   accuracy  class mean  drop            parameters  FLOPs  latency
        component  90.0±3.0  90.0±3.0    needs --source
        scored on 100 images
    """

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    per_class: dict[str, float] = {}
    per_class_images: dict[str, int] = {}
    other_classes: tuple[int, ...] = ()
    counted: str = "images"
    data: str = ""
    data_sha256: str = ""
    overlap: Overlap | None = None

    def row(self, name: str) -> Row:
        """Return the row with this name.

        Raises:
            KeyError: There is no such row.
        """
        return {row.name: row for row in reversed(self.rows)}[name]

    @property
    def images(self) -> int:
        """How many images were scored."""
        return max((row.images for row in self.rows), default=0)

    @property
    def untried(self) -> tuple[str, ...]:
        """The classes of which no image was scored."""
        return tuple(name for name, count in self.per_class_images.items() if not count)

    @property
    def scope(self) -> str:
        """How many images were scored, and the classes without any, in a sentence.

        Example:
            >>> from brickyard.evaluation._scores import Row, Scores
            >>> row = Row(name="assembled", images=6, accuracy=100, error=0, class_accuracy=100, class_error=0)
            >>> Scores(title="birds", rows=(row,), per_class_images={"heron": 6, "rail": 0}).scope
            'scored on 6 images; no image of rail: whether it is recognised was not tried'
        """
        said, names = f"scored on {self.images:,} {self.counted}", self.untried
        if not names:
            return said
        more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
        which = f"{', '.join(told(name, 60) for name in names[:MOST_NAMED])}{more}"
        verb = "it is" if len(names) == 1 else "they are"
        return f"{said}; no {self.counted[:-1]} of {which}: whether {verb} recognised was not tried"

    @property
    def brief(self) -> str:
        """The figures of what was scored, in one line: those of the last row.

        Example:
            >>> from brickyard.evaluation._scores import Row, Scores
            >>> row = Row(name="component", images=80, accuracy=90, error=3, class_accuracy=90, class_error=3, drop=1.5)
            >>> Scores(title="digits", rows=(row,)).brief
            'accuracy 90.0±3.0, drop +1.5±0.0, on 80 images'
        """
        if not self.rows:
            return f"no {self.counted} scored"
        row = self.rows[-1]
        figures = {
            "accuracy": _points(row.accuracy, row.error),
            "drop": _points(row.drop, row.drop_error, "+"),
            "AUROC": _points(row.auroc, row.auroc_error),
            "mAP": "" if row.mean_ap is None else f"{row.mean_ap:.1f}",
        }
        known = [f"{name} {text}" for name, text in figures.items() if text]
        return f"{', '.join(known)}, on {row.images:,} {self.counted}"

    def to_csv(self, path: str | Path, *, overwrite: bool = True) -> Path:
        """Write the rows as CSV.

        Raises:
            FileError: The file exists and `overwrite` is false, or cannot be written.
        """
        text = io.StringIO()
        fields = [name for name in Row.model_fields if name != "latency"]
        writer = csv.DictWriter(text, [*fields, "latency_ms"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({**row.model_dump(), "latency_ms": (row.latency or {}).get("median_ms")})
        return write_text(path, text.getvalue(), overwrite)

    def cells(self) -> list[list[str]]:
        """The table as text: a header, and one list per row."""
        with_auroc, with_several = (
            any(getattr(row, name) is not None for row in self.rows) for name in ("auroc", "mean_ap")
        )
        more = [*(["AUROC", "AUROC drop"] if with_auroc else []), *(["mAP", "F1"] if with_several else [])]
        whole, table = self.rows[0], [["", "accuracy", "class mean", "drop", *more, "parameters", "FLOPs", "latency"]]
        for row in self.rows:
            cells = [row.name, _points(row.accuracy, row.error), _points(row.class_accuracy, row.class_error)]
            cells.append(_points(row.drop, row.drop_error, "+"))
            if with_auroc:
                drop = _points(row.auroc_drop, row.auroc_drop_error, "+")
                cells += [_points(row.auroc, row.auroc_error), drop]
            if with_several:
                cells += ["" if value is None else f"{value:.1f}" for value in (row.mean_ap, row.f1)]
            cells += [_with_share(row.parameters, whole.parameters), _with_share(row.flops, whole.flops)]
            mine, its = ((one.latency or {}).get("median_ms") for one in (row, whole))
            share = f" ({mine / its:.2f}x)" if mine and its and row is not whole else ""
            table.append([*cells, "" if mine is None else f"{mine:.2f} ms{share}"])
        return table

    def __str__(self) -> str:
        lines = self.laid_out()
        timed = next((row.latency for row in self.rows if row.latency), None)
        if timed:
            lines.append(
                f"latency: median of {timed['runs']:.0f}, batch {timed['batch']:.0f}, {timed['threads']:.0f} threads"
            )
        if self.rows and self.scope not in self.notes:
            lines.append(self.scope)
        return "\n".join(shown(line, keep="") for line in [self.title, *lines, *self.notes])


def _points(value: float | None, error: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.1f}±{error or 0:.1f}"


def _with_share(value: int | None, whole: int | None) -> str:
    if value is None:
        return ""
    return _short(value) + (f" ({value / whole:.0%})" if whole and value != whole else "")


def _short(value: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)


def write_text(path: str | Path, text: str, overwrite: bool) -> Path:
    from brickyard.storage._atomic import write_content

    write_content(Path(path), text, overwrite=overwrite)
    return Path(path)
