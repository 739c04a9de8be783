"""Model cards: what a component or an assembly is, as the README.md that model hubs show.

A card says only what manifests and score tables say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from brickyard.assembly._assembly import Assembly
from brickyard.base._errors import OptionError
from brickyard.base._records import AssemblyManifest, ComponentManifest
from brickyard.component._component import Component
from brickyard.component._describe import share_text
from brickyard.evaluation._scores import Row, Scores

MOST_CLASSES = 50
ROWS = {
    "base": "the source, all its classes competing",
    "restricted": "the source, only the task's classes competing: the fair baseline",
    "component": "the component",
    "oracle": "each image sent to the right component: the upper bound",
    "assembled": "all classes of all parts competing",
}


def model_card(
    model: Component | Assembly,
    scores: Scores | Mapping[str, Scores] | None = None,
    license: str | None = None,
    *,
    title: str | None = None,
    file: str = "model.safetensors",
    data: str | None = None,
    names: Sequence[str] = (),
) -> str:
    r"""The card of a model, in the form of Hugging Face: YAML front matter, then Markdown.

    Args:
        model: What the card is of.
        scores: Its score table, or several by name: the last one is the model's own and gives the front matter's
            metrics.
        license: An identifier such as "apache-2.0"; without one the card says that none is stated.
        title: The heading; default: what the model is.
        file: The name of the model's file, for the code that shows how to use it.
        data: What the scored images are called; default: what the parts were located with, held-out images.
        names: What the parts are called.

    Returns:
        The text of a README.md; the same for the same arguments.

    Raises:
        OptionError: `model` is neither a component nor an assembly, or the names are not as many as the parts.

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
        raise OptionError(
            "option-wrong-object", f"a card is of a component or an assembly; a {type(model).__name__} was given"
        )
    manifest = model.manifest
    parts = manifest.parts
    if names and len(names) != len(parts):
        raise OptionError(
            "option-count", f"{len(names)} names were given for {len(parts)} parts; give one a part, or none"
        )
    tables = {"": scores} if isinstance(scores, Scores) else dict(scores or {})
    title = title or _title(manifest)
    lines = [
        _front_matter(title, parts, tables, license, data),
        f"# {_plain(title)}",
        "",
        *_what(manifest, parts),
        "",
        "## Classes",
        "",
        *_classes(manifest.classes),
        "",
        *_use(manifest, file),
        "",
        "## Scores",
        "",
        *_scores(tables, data),
        "## Where it came from",
        "",
        *_origin(parts, names),
        "",
        "## Limits",
        "",
        *(f"- {text}" for text in _limits(manifest, parts, tables)),
        "",
        "## Licence",
        "",
        f"{_plain(license)}." if license else "No licence is stated; those of the sources and their images apply.",
        "",
    ]
    return "\n".join(lines)


def score_table(scores: Scores) -> str:
    """A score table as Markdown."""
    header, *rows = scores.cells()
    kept = [k for k in range(len(header)) if k == 0 or any(row[k] for row in rows)]
    lines = ["| " + " | ".join(header[k] or "row" for k in kept) + " |", "|" + "---|" * len(kept)]
    lines += ["| " + " | ".join(row[k] for k in kept) + " |" for row in rows]
    return "\n".join(lines)


def _title(manifest: ComponentManifest | AssemblyManifest) -> str:
    count = f"{len(manifest.classes)} class{'es' if len(manifest.classes) > 1 else ''}"
    if isinstance(manifest, AssemblyManifest):
        sources = dict.fromkeys(part.source.name for part in manifest.parts)
        return f"{count} from {len(manifest.parts)} components of {' and '.join(sources)}"
    return f"{count} of {manifest.source.name}"


def _front_matter(
    title: str,
    parts: Sequence[ComponentManifest],
    tables: Mapping[str, Scores],
    license: str | None,
    data: str | None,
) -> str:
    import yaml

    value: dict[str, Any] = {
        "library_name": "brickyard",
        "pipeline_tag": "image-classification",
        "tags": ["brickyard", "image-classification", "model-disassembling", "model-assembling"],
    }
    if license:
        value["license"] = license
    if tables:
        row = _own(list(tables.values())[-1])
        name = data or _located_with(parts)
        metrics = [{"type": "accuracy", "name": "accuracy (%)", "value": round(row.accuracy, 4)}]
        metrics.append({"type": "accuracy", "name": "mean over classes (%)", "value": round(row.class_accuracy, 4)})
        if row.auroc is not None:
            metrics.append({"type": "roc_auc", "name": "AUROC (%)", "value": round(row.auroc, 4)})
        result = {
            "task": {"type": "image-classification", "name": "Image classification"},
            "dataset": {"type": _slug(name), "name": name},
            "metrics": metrics,
        }
        value["model-index"] = [{"name": title, "results": [result]}]
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---\n"


def _own(scores: Scores) -> Row:
    """The row of the model itself: the last."""
    return scores.rows[-1]


def _located_with(parts: Sequence[ComponentManifest]) -> str:
    found = dict.fromkeys(part.located.data for part in parts if part.located and part.located.data)
    return (" and ".join(found) or "images") + ", held-out"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "images"


def _what(manifest: ComponentManifest | AssemblyManifest, parts: Sequence[ComponentManifest]) -> list[str]:
    count = len(manifest.classes)
    if isinstance(manifest, AssemblyManifest):
        scaling = manifest.scaling
        used = f", fitted on {scaling.images} labelled images" if scaling.images else ""
        text = (
            f"An image classifier for {_many(count)}, put together from {len(parts)} components without training. "
            f"Each component was cut out of a trained classifier. Form: {manifest.form}. Scaling of the parts' "
            f"outputs: {scaling.name}{used}."
        )
    else:
        text = (
            f"A small image classifier for {_many(count)}, cut out of a classifier for {len(parts[0].source.classes)} "
            "without training."
        )
        if manifest.reject:
            text += ' One more output stands for "none of these".'
    how = parts[0].preprocessing
    sizes = {(part.preprocessing.size, part.preprocessing.channels) for part in parts}
    if len(sizes) == 1 and how.size is not None:
        grey = {1: "grey", 3: "colour"}.get(how.channels or 0, "")
        text += f" Pictures are brought to {how.size[0]}x{how.size[1]}{f' {grey}' if grey else ''} by the model itself."
    return [text]


def _many(count: int) -> str:
    return f"{count} classes" if count > 1 else "one class"


def _classes(classes: Sequence[str]) -> list[str]:
    shown = ", ".join(f"`{_plain(name, code=True)}`" for name in classes[:MOST_CLASSES])
    return [shown + (f" and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else "")]


def _use(manifest: ComponentManifest | AssemblyManifest, file: str) -> list[str]:
    return [
        "## Use",
        "",
        "```python",
        "import brickyard as by",
        "",
        f"model = by.load({json.dumps(_plain(file, code=True), ensure_ascii=False)})",
        'print(model.predict(["picture.png"]))  # the name of the class',
        'print(model.predict_proba(["picture.png"]))  # in the order of model.classes',
        "```",
        "",
        "The file is plain data: loading it runs none of its content, and needs no code of the sources.",
    ]


def _scores(tables: Mapping[str, Scores], data: str | None) -> list[str]:
    if not tables:
        return ["Nothing was measured.", ""]
    lines = [f"Scored on {_plain(data)}.", ""] if data else []
    lines += ["Accuracies in percent, ± one standard error.", ""]
    for name, scores in tables.items():
        if name:
            lines += [f"### {_plain(name)}", ""]
        lines += [score_table(scores), "", f"Images scored: {max(row.images for row in scores.rows):,}.", ""]
        timed = next((row.latency for row in scores.rows if row.latency), None)
        if timed:
            batch, threads = f"{timed['batch']:.0f}", f"{timed['threads']:.0f}"
            lines += [f"Latency: median of {timed['runs']:.0f}, batch {batch}, {threads} threads.", ""]
        if scores.notes:
            lines += [*(f"- {_plain(note)}" for note in scores.notes), ""]
    rows = dict.fromkeys(row.name for scores in tables.values() for row in scores.rows)
    known = [f"{name}: {ROWS[name]}" for name in rows if name in ROWS]
    return [*lines, "Rows: " + "; ".join(known) + ".", ""] if known else lines


def _origin(parts: Sequence[ComponentManifest], names: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for index, part in enumerate(parts):
        source, chosen = part.source, part.selection
        few = ", ".join(part.classes[:8]) + (f" and {len(part.classes) - 8} more" if len(part.classes) > 8 else "")
        parameters, flops = share_text(chosen.parameters, source.parameters), share_text(chosen.flops, source.flops)
        facts = [
            f"source: {_plain(source.name)}, {_many(len(source.classes))}",
            f"sha256 of the source's weights: `{source.sha256}`",
            f"size: {parameters} of the parameters, {flops} of the FLOPs of the source",
            f"chosen by: {_chosen(part)}",
            f"images located with: {_plain(_located(part))}",
            f"heal: {_heal(part)}",
        ]
        lines += [f"**{_plain(names[index] if names else f'Part {index}')}** ({_plain(few)})", ""]
        lines += [*(f"- {fact}" for fact in facts), ""]
    versions = dict.fromkeys((part.versions.brickyard, part.versions.torch) for part in parts)
    made = "; ".join(f"Brickyard {own}, PyTorch {torch}" for own, torch in versions)
    return [*lines, f"Made with {made}."]


def _located(part: ComponentManifest) -> str:
    if part.located is None:
        return "not known"
    how = {"confident": "the most confident", "random": "drawn at random", "all": "all"}[part.located.choose]
    data = f" of {part.located.data}" if part.located.data else ""
    return f"{sum(part.located.images)}{data}, {how}"


def _chosen(part: ComponentManifest) -> str:
    if part.selection.budget is not None:
        return "budget, " + ", ".join(f"{key} {_plain(str(value))}" for key, value in part.selection.budget.items())
    if part.selection.thresholds is not None:
        return "thresholds, " + ", ".join(f"{key} {value:g}" for key, value in part.selection.thresholds.items())
    return "hand"


def _heal(part: ComponentManifest) -> str:
    return "none" if part.heal.method == "none" else f"{part.heal.method}, {part.heal.images} images"


def _limits(
    manifest: ComponentManifest | AssemblyManifest, parts: Sequence[ComponentManifest], tables: Mapping[str, Scores]
) -> list[str]:
    found = []
    if isinstance(manifest, ComponentManifest) and manifest.reject:
        found.append(
            f"It can say that a picture is of none of its {_many(len(manifest.classes))}, as far as its source "
            "knew the other classes; of things that the source never saw it knows nothing."
        )
    else:
        found.append(
            f"It answers with one of its {_many(len(manifest.classes))} for every picture, also for pictures of "
            "something else."
        )
    found.append("It knows no more than its sources did, and repeats their mistakes and those of their images.")
    if len(parts) > 1:
        found.append("Its parts never saw each other's classes; their outputs are compared as the scaling says.")
    rows = {row.name for scores in tables.values() for row in scores.rows}
    if "restricted" in rows:
        found.append(
            "Compare with the row *restricted*. The row *base* has to tell all of the source's classes apart, and "
            "looks worse for that reason alone."
        )
    elif tables:
        found.append("The sources were not scored on the same classes: there is no fair baseline in the table.")
    missing = [] if tables else ["accuracy"]
    if not any(row.latency for scores in tables.values() for row in scores.rows):
        missing.append("latency")
    missing += ["calibration", "images from elsewhere or of other quality", "fairness towards groups of people"]
    found.append(f"Not measured: {', '.join(missing)}.")
    pinned = sum(len(part.pinned) for part in parts)
    if pinned:
        found.append(f"Channels of {pinned} axes could not be cut and were kept whole.")
    return found


def _plain(text: str, code: bool = False) -> str:
    """A text of someone else's in one line of Markdown, where it starts nothing."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if code:
        return text.replace("`", "'")
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)
