"""Model cards: the README.md of a component or an assembly, as shown on model hubs.

A card contains only facts from manifests and score tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from pydantic import TypeAdapter, ValidationError

from brickyard.assembly._assembly import Assembly
from brickyard.base._doubts import doubts
from brickyard.base._errors import OptionError
from brickyard.base._records import AssemblyManifest, ComponentManifest
from brickyard.component._component import Component
from brickyard.component._describe import agreement_text, decision_text, merged_text, selection_text, share_text
from brickyard.evaluation._detectors import DetectorRow, DetectorScores
from brickyard.evaluation._scores import Row, Scores
from brickyard.reports._templates import card_environment, markdown

Table = Scores | DetectorScores
MOST_PER_CLASS = 100


def model_card(
    model: Component | Assembly,
    scores: Table | Mapping[str, Table] | None = None,
    license: str | None = None,
    *,
    title: str | None = None,
    file: str = "model.safetensors",
    data: str | None = None,
    names: Sequence[str] = (),
) -> str:
    r"""Write a model card in Hugging Face format: YAML front matter followed by Markdown.

    Args:
        model: The component or assembly.
        scores: Its score table, or several by name; the metrics of the front matter come from the last one. Default:
            those that its file has.
        license: An identifier such as "apache-2.0"; default: the card says that no license is stated.
        title: The heading; default: a description of the model.
        file: Name of the model file, for the usage example.
        data: Name of the scored images; default: the data that the parts were located with, "held-out".
        names: Names of the parts.

    Returns:
        The text of a README.md; identical for identical arguments.

    Raises:
        OptionError: `model` is neither a component nor an assembly, or the number of names is not that of the parts.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.reports._cards import model_card
        >>> from brickyard.testing import chain
        >>> images = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> component = by.disassemble(chain(), by.locate(chain(), images), task=["1", "3"])
        >>> print(model_card(component).split("\n# ")[1].splitlines()[0])
        2 classes of Sequential
    """
    if not isinstance(model, Component | Assembly):
        raise OptionError("option-wrong-object", f"a card needs a component or an assembly, got {type(model).__name__}")
    manifest = model.manifest
    parts = manifest.parts
    if names and len(names) != len(parts):
        raise OptionError(
            "option-count", f"{len(names)} names were given for {len(parts)} parts; give one per part, or none"
        )
    tables = {"": scores} if isinstance(scores, Table) else dict(scores or stored(manifest)[0])
    title = title or _title(manifest)
    template = card_environment().get_template("card.md.jinja")
    found: str = template.render(
        title=title,
        front_matter=Markup(_front_matter(title, parts, tables, license, data)),
        assembly=manifest if isinstance(manifest, AssemblyManifest) else None,
        classes=manifest.classes,
        several=not model.outputs.exclusive,
        detects=parts[0].boxes is not None,
        doubts=doubts(manifest),
        decided=decision_text(manifest, 50),
        parts=parts,
        described=[_described(part, names[k] if names else f"Part {k}") for k, part in enumerate(parts)],
        size=_size(parts),
        file=file,
        data=data,
        tables=[_table(name, table) for name, table in tables.items()],
        rows={row.name for table in tables.values() for row in table.rows},
        timed=any(row.latency for table in tables.values() for row in table.rows),
        versions=list(dict.fromkeys((part.versions.brickyard, part.versions.torch) for part in parts)),
        pinned=sum(len(part.pinned) for part in parts),
        license=license,
    )
    return found


_TABLE: TypeAdapter[Table] = TypeAdapter(Table)


def stored(manifest: ComponentManifest | AssemblyManifest) -> tuple[dict[str, Table], dict[str, Any]]:
    """The score tables that a manifest has, by name, and what it has as scores that is no such table."""
    tables: dict[str, Table] = {}
    others: dict[str, Any] = {}
    for name, value in manifest.scores.items():
        try:
            tables[name] = _TABLE.validate_python(value)
        except ValidationError:
            others[name] = value
    return tables, others


def score_table(scores: Table) -> str:
    """Format a score table as Markdown."""
    header, *rows = scores.cells()
    kept = [k for k in range(len(header)) if k == 0 or any(row[k] for row in rows)]
    header[0] = "row"
    lines = [" | ".join(markdown(row[k]) for k in kept) for row in (header, *rows)]
    return "\n".join([f"| {lines[0]} |", "|" + "---|" * len(kept), *(f"| {line} |" for line in lines[1:])])


def _title(manifest: ComponentManifest | AssemblyManifest) -> str:
    count = f"{len(manifest.classes)} class{'es' if len(manifest.classes) > 1 else ''}"
    if isinstance(manifest, AssemblyManifest):
        sources = dict.fromkeys(part.source.name for part in manifest.parts)
        return f"{count} from {len(manifest.parts)} components of {' and '.join(sources)}"
    return f"{count} of {manifest.source.name}"


def _front_matter(
    title: str, parts: Sequence[ComponentManifest], tables: Mapping[str, Table], license: str | None, data: str | None
) -> str:
    import yaml

    kind = "image-classification" if parts[0].boxes is None else "object-detection"
    value: dict[str, Any] = {
        "library_name": "brickyard",
        "pipeline_tag": kind,
        "tags": ["brickyard", kind, "model-disassembling", "model-assembling"],
    }
    if license:
        value["license"] = license
    if tables:
        row = list(tables.values())[-1].rows[-1]  # the model itself
        name = data or list(tables.values())[-1].data or _located_with(parts)
        result = {
            "task": {"type": kind, "name": kind.replace("-", " ").capitalize()},
            "dataset": {"type": _slug(name), "name": name},
            "metrics": _metrics(row),
        }
        value["model-index"] = [{"name": title, "results": [result]}]
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
    if not text.replace("\n", "").isprintable():  # YAML takes marks that turn the direction of writing for letters
        text = yaml.safe_dump(value, sort_keys=False, width=1000)
    return text


def _metrics(row: Row | DetectorRow) -> list[dict[str, Any]]:
    if isinstance(row, DetectorRow):
        found = [("map", "mAP50 (%)", row.map50), ("map", "mAP50:95 (%)", row.map50_95)]
    else:
        found = [("accuracy", "accuracy (%)", row.accuracy), ("accuracy", "mean over classes (%)", row.class_accuracy)]
        found += [] if row.auroc is None else [("roc_auc", "AUROC (%)", row.auroc)]
    return [{"type": kind, "name": name, "value": round(value, 4)} for kind, name, value in found]


def _located_with(parts: Sequence[ComponentManifest]) -> str:
    found = dict.fromkeys(part.located.data for part in parts if part.located and part.located.data)
    return (" and ".join(found) or "images") + ", held-out"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "images"


def _size(parts: Sequence[ComponentManifest]) -> str:
    """Describe the resizing of images if all parts do the same; "" otherwise, or if there is none."""
    how = parts[0].preprocessing
    ways = [part.preprocessing for part in parts]
    if how.size is None or len({(way.size, way.channels, way.fit == "letterbox") for way in ways}) > 1:
        return ""
    done = "letterboxed" if how.fit == "letterbox" else "converted"
    return f"{done} to {how.size[0]}x{how.size[1]}{ {1: ' greyscale', 3: ' colour'}.get(how.channels or 0, '') }"


def _described(part: ComponentManifest, name: str) -> tuple[str, ComponentManifest, str, dict[str, str]]:
    """Describe a part: its name, how its channels were selected, and its share of its source."""
    shares = {
        key: share_text(getattr(part.selection, key), getattr(part.source, key)) for key in ("parameters", "flops")
    }
    return (
        name,
        part,
        selection_text(part),
        shares | {"agreement": agreement_text(part), "merged": merged_text(part, 50)},
    )


def _table(name: str, scores: Table) -> dict[str, Any]:
    return {
        "name": name,
        "markdown": Markup(score_table(scores)),
        "images": scores.images,
        "timed": next((row.latency for row in scores.rows if row.latency), None),
        "notes": scores.notes,
        "per_class": _per_class(scores) if isinstance(scores, DetectorScores) else "",
    }


def _per_class(scores: DetectorScores) -> Markup:
    """The precision of each class as Markdown, the lowest ones where there are many."""
    rows = sorted(scores.per_class.items(), key=lambda pair: pair[1])[:MOST_PER_CLASS]
    lines = [f"| {markdown(name)} | {value:.1f} | {scores.objects.get(name, 0):,} |" for name, value in rows]
    return Markup("\n".join(["| class | AP50 | objects |", "|---|---|---|", *lines])) if rows else Markup("")
