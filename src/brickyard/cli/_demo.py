"""The demo: two sources, two components and one classifier assembled without training, all offline."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from brickyard._files import load
from brickyard.assembly._assemble import assemble
from brickyard.assembly._assembly import Assembly
from brickyard.axes._graph import trace
from brickyard.base._errors import FileError, OptionError
from brickyard.base._options import Budget
from brickyard.base._records import Preprocessing
from brickyard.component._component import Component
from brickyard.component._disassemble import disassemble
from brickyard.evaluation._evaluate import evaluate
from brickyard.evaluation._scores import Scores
from brickyard.inputs._datasets import ImageData, load_data
from brickyard.relevance._locate import locate
from brickyard.relevance._relevance import Relevance
from brickyard.sources._loading import Source, save_source
from brickyard.storage._atomic import make_folder, write_content
from brickyard.training._sources import build_seeded, train

Say = Callable[[object], None]
HOW = Preprocessing(size=(16, 16), mean=(0.305,), std=(0.376,))
SIZE = (1, 16, 16)
WIDTH = 0.5
PLAIN, RESIDUAL = range(7), range(3, 10)
SHARE = 0.5


def run_demo(folder: str | Path, *, say: Say = print) -> dict[str, Any]:
    """Train two digit classifiers, cut three classes out of each, assemble them into one classifier, and score it.

    Args:
        folder: Output folder; files of an earlier demo are replaced.
        say: Called with each text to show.

    Returns:
        All scores, and the names of the files written.

    Raises:
        FileError: The folder cannot be created, or a file cannot be written.
    """
    folder = Path(folder)
    make_folder(folder, "choose another with -o")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # tiny networks: more threads wait for each other, and round differently
        return _run(folder, say)
    finally:
        torch.set_num_threads(threads)


def _run(folder: Path, say: Say) -> dict[str, Any]:
    started = time.perf_counter()
    digits, test = load_data("digits"), load_data("digits", split="test")
    say("1. Train two sources on scikit-learn's digits; each learns only seven of the ten classes.")
    first = _source("cnn", PLAIN, digits, folder / "plain.source.safetensors", say)
    second = _source("resnet20", RESIDUAL, digits, folder / "residual.source.safetensors", say)

    graph = trace(first.model, torch.zeros(2, *SIZE))
    say("\n   Channel axes of the first source (the channels of an axis are cut together):")
    say("\n".join(f"   {line}" for line in str(graph).splitlines()))

    say(f"\n2. Cut 0, 1, 2 out of the first and 7, 8, 9 out of the second, each with {SHARE:.0%} of the FLOPs.")
    left, relevance, left_scores = _component(first, PLAIN, ["0", "1", "2"], digits, test, folder, say)
    right, _, right_scores = _component(second, RESIDUAL, ["7", "8", "9"], digits, test, folder, say)

    say("\n3. Assemble one classifier without training, and score it on held-out images.")
    training, held_out = ([data.renumbered(list(range_)) for range_ in (PLAIN, RESIDUAL)] for data in (digits, test))
    scores: dict[str, Scores] = {}
    for scaling in ("none", "logit-mean", "joint-head"):
        few = scaling == "joint-head"
        whole = assemble([left, right], scaling=scaling, images=training if few else None, shots=5 if few else None)
        scores[scaling] = evaluate(whole, held_out, source=[first.model, second.model])
        if scaling == "none":
            path = whole.save(folder / "digits-012789.safetensors", overwrite=True)
            _check(whole, path, test)
    say(scores["none"])
    for scaling in ("logit-mean", "joint-head"):
        shots = ", 5 labelled images per class" if scaling == "joint-head" else ""
        say(f"assembled accuracy with scaling {scaling}{shots}: {scores[scaling].row('assembled').accuracy:.1f}")

    picture = _routes(relevance, folder / "routes.png", say)
    files = ["plain.source", "residual.source", "digits-012", "digits-789", "digits-012789"]
    result: dict[str, Any] = {
        "components": [left_scores.as_dict(), right_scores.as_dict()],
        "assembled": {name: value.as_dict() for name, value in scores.items()},
        "seconds": round(time.perf_counter() - started, 1),
        "files": [f"{name}.safetensors" for name in files] + ([picture.name] if picture else []),
    }
    text = json.dumps(result, indent=1) + "\n"
    write_content(folder / "scores.json", text, overwrite=True)
    written = "".join(f"\n   {name}" for name in [*result["files"], "scores.json"])
    say(f"\nDone in {result['seconds']} s. In {folder}:{written}")
    return result


def _source(name: str, classes: range, digits: ImageData, path: Path, say: Say) -> Source:
    images = digits.renumbered(list(classes))
    model = build_seeded(name, len(classes), WIDTH, channels=1)
    found = train(model, images, preprocessing=HOW, epochs=10, lr=0.05, batch_size=32)
    source = Source(model, name, images.classes, HOW, SIZE)
    options = {"width": WIDTH, "channels": 1}
    save_source(path, source, arch=name, options=options, scores={"train_accuracy": found}, overwrite=True)
    say(f"   {name}: digits {classes.start}-{classes.stop - 1}, {found:.1%} accuracy on {len(images)} training images")
    return source


def _component(
    source: Source, classes: range, task: list[str], digits: ImageData, test: ImageData, folder: Path, say: Say
) -> tuple[Component, Relevance, Scores]:
    images, held_out = (data.renumbered(list(classes)) for data in (digits, test))
    relevance = locate(source.model, images, preprocessing=HOW, name=source.name)
    component = disassemble(source.model, relevance, task=task, budget=Budget(flops=SHARE))
    scores = evaluate(component, held_out, source=source.model)
    component = component.with_scores({"digits test": scores.as_dict()})
    component.save(folder / f"digits-{''.join(task)}.safetensors", overwrite=True)
    say(f"\n{scores}")
    return component, relevance, scores


def _check(whole: Assembly, path: Path, test: ImageData) -> None:
    """Check that the written file gives the same outputs as the model in memory."""
    again = load(path)
    with torch.inference_mode():
        same = isinstance(again, Assembly) and torch.equal(again(test.images), whole(test.images))
    if not same:
        raise FileError("file-damaged", f"{path} reads back differently from what was written; please report this")


def _routes(relevance: Relevance, path: Path, say: Say) -> Path | None:
    from brickyard.reports._route_picture import draw
    from brickyard.reports._routes import routes

    try:
        return draw(routes(relevance, ["0", "1"]), path, overwrite=True)
    except OptionError as error:  # matplotlib is an extra
        say(f"no picture was drawn: {error}")
        return None
