"""Many pictures at once: one short answer each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.component._predictor import Verdict
from brickyard.workbench import _pictures as pictures
from brickyard.workbench._bench import Bench, Kept

MOST = 32  # pictures that are computed with at once
NUMBERS = 6_000_000  # in these pictures


def rows(bench: Bench, name: str, shown: Sequence[tuple[str, bytes]]) -> list[dict[str, Any]]:
    """What a classifier says to each of many pictures, in a few words; or why one cannot be read."""
    with bench.at_work(name) as kept:
        found: list[dict[str, Any]] = [{"picture": title[:80]} for title, _ in shown]
        readable: list[int] = []
        for place, (title, content) in enumerate(shown):
            try:
                pictures.checked(content, title, bench.limits)
                readable.append(place)
            except DataError as error:
                found[place] |= {"error": str(error), "code": error.code}
        pictures.check_all((shown[place] for place in readable), bench.limits)
        for places, images in _batches(bench, kept, shown, readable, found):
            for place, answer in zip(places, _said(kept, images), strict=True):
                found[place] |= answer
    return found


def _batches(
    bench: Bench, kept: Kept, shown: Sequence[tuple[str, bytes]], readable: Sequence[int], found: list[dict[str, Any]]
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Pictures that can be decoded, a few at a time, with their places."""
    end = time.monotonic() + bench.limits.work_seconds
    places: list[int] = []
    images: list[Tensor] = []
    for place in readable:
        try:
            images.append(bench.picture(*shown[place], kept.assembly.manifest.parts, end))
        except DataError as error:
            if error.code == "data-type":  # no picture at all can be asked about
                raise
            found[place] |= {"error": str(error), "code": error.code}
            continue
        places.append(place)
        if len(places) == MOST or sum(image.numel() for image in images) > NUMBERS:
            yield places, images
            places, images = [], []
    if places:
        yield places, images


def _said(kept: Kept, images: list[Tensor]) -> list[dict[str, Any]]:
    judged = kept.assembly.judge(images)
    return [
        _row(kept, chances, verdict) for chances, verdict in zip(judged.probabilities, judged.verdicts(), strict=True)
    ]


def _row(kept: Kept, chances: Tensor, verdict: Verdict) -> dict[str, Any]:
    names = kept.assembly.classes
    best = int(chances[: len(names)].argmax())
    several = not kept.assembly.outputs.exclusive
    return {
        "answer": list(verdict.answer) if several else [] if verdict.none else [names[best]],
        "best": names[best],
        "probability": float(chances[best]),
        "none": verdict.none,
        "sure": verdict.sure,
        "strangeness": verdict.strangeness,
    }
