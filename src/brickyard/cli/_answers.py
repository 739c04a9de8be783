"""Answers to many images: read a few at a time, and what cannot be read is left out and told of."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickyard.base._errors import BrickyardError
from brickyard.base._messages import shown, told
from brickyard.base._sides import is_picture
from brickyard.cli._asked import Asked
from brickyard.cli._output import table

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

TOGETHER = 32  # images that are answered at once
MOST_BYTES = 64 << 20  # of these
MOST_TOLD = 20  # images that are left out, by name

Draw = Callable[[str, "Tensor", str], None]


@dataclass
class Answers:
    """What a classifier says to images.

    Attributes:
        classifier: The component or assembly.
        top: How many classes to name per image.
        found: The answers, as JSON values.
        left_out: The images that could not be read, and why.
    """

    classifier: Any
    top: int
    found: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[tuple[str, BrickyardError]] = field(default_factory=list)

    def take(self, images: Iterable[Asked], draw: Draw | None = None) -> None:
        """Answer all images, a few at a time, so that memory does not grow with their number but by the answers.

        Args:
            images: The images.
            draw: Is told of each picture, by its title, and of the answer.

        Raises:
            BrickyardError: None could be read; the reason of the first one.
        """
        for some in self._together(images, keep=draw is not None):
            for _, group in groupby(some, lambda one: (one[1].shape, one[1].dtype)):
                self._answer(list(group), draw)
        if not self.found and self.left_out:
            raise self.left_out[0][1]

    def _together(self, images: Iterable[Asked], keep: bool) -> Iterator[list[tuple[str, Tensor, Tensor | None]]]:
        """Titles, images as the classifier takes them, and as they are where these are kept."""
        held: list[tuple[str, Tensor, Tensor | None]] = []
        size = 0
        for image in images:
            try:
                whole = image.read()
                one = self._brought(whole)
            except BrickyardError as error:
                self.left_out.append((image.title, error))
                continue
            held.append((image.title, one, whole if keep else None))
            size += one.nbytes + (whole.nbytes if keep else 0)
            if len(held) >= TOGETHER or size > MOST_BYTES:
                yield held
                held, size = [], 0
        if held:
            yield held

    def _brought(self, image: Tensor) -> Tensor:
        """A picture at the one size that the classifier's parts take, if that is one."""
        import torch

        from brickyard.inputs._preprocessing import sized

        ways = {how.frame: how for how in self.classifier.preprocessings}
        alone = len(ways) == 1 and image.dtype == torch.uint8 and is_picture(self.classifier.input_shape)
        return sized(image, *ways.values()) if alone else image

    def _answer(self, group: Sequence[tuple[str, Tensor, Tensor | None]], draw: Draw | None) -> None:
        """Answer images of one shape; one by one where that fails, to find which of them cannot be used."""
        import torch

        try:
            said = self._asked(torch.stack([one for _, one, _ in group]))
        except BrickyardError as error:
            if len(group) == 1:
                self.left_out.append((group[0][0], error))
            else:
                for one in group:
                    self._answer([one], draw)
            return
        for (title, _, whole), own in zip(group, said, strict=True):
            self.found.append(self._told(title, own))
            if draw is not None and whole is not None:
                self._drawn(draw, title, whole)

    def _asked(self, images: Tensor) -> Sequence[Any]:
        """What the model says to images of one shape, one by one, as `_told` takes it."""
        judged = self.classifier.judge(images)
        return list(zip(judged.probabilities, judged.verdicts(), strict=True))

    def _drawn(self, draw: Draw, title: str, whole: Tensor) -> None:
        """Draw the last answer on its image."""
        draw(title, whole, ", ".join(filter(None, self._cells(self.found[-1])[1:3])))

    def _told(self, title: str, said: Any) -> dict[str, Any]:
        """An answer as data."""
        from brickyard.component._predictor import REJECT

        chances, verdict = said
        names = (*self.classifier.classes, REJECT)
        best = chances.topk(min(self.top, len(chances)))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        classes = [{"name": names[k], "probability": round(p, 6)} for p, k in pairs]
        several = not self.classifier.outputs.exclusive
        known = {"strangeness": verdict.strangeness, "none": verdict.none, "sure": verdict.sure}
        return {"image": title, "classes": classes, **known, **({"answer": list(verdict.answer)} if several else {})}

    # -- what is said

    def _cells(self, answer: dict[str, Any]) -> list[str]:
        """An answer as cells of a table: the image, the answer, how sure it is, and the best classes."""
        strange = answer["strangeness"] is not None and answer["strangeness"] > 1
        chosen = ", ".join(answer["answer"]) if "answer" in answer else answer["classes"][0]["name"]
        none = "none of the classes" if "answer" in answer else "none of these"
        sure = {None: "", True: "sure", False: "not sure"}[answer["sure"]]
        if answer["none"]:
            chosen, sure = none, "unlike all of its classes" if strange else ""
        best = ", ".join(f"{one['name']} {one['probability']:.1%}" for one in answer["classes"])
        return [answer["image"], chosen, sure, best]

    @property
    def text(self) -> str:
        """All answers as a table."""
        rows = [["image", "answer", "", "best classes"], *map(self._cells, self.found)]
        kept = [k for k in range(4) if k != 2 or any(row[2] for row in rows)]
        return table([[row[k] for k in kept] for row in rows])

    @property
    def csv(self) -> str:
        """All answers as CSV."""
        text = io.StringIO()
        most = max((len(answer["classes"]) for answer in self.found), default=0)
        names = [name for k in range(1, most + 1) for name in (f"class {k}", f"probability {k}")]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "answer", "sure", "strangeness", *names])
        for answer in self.found:
            best = [value for one in answer["classes"] for value in (one["name"], one["probability"])]
            row = [*self._cells(answer)[:3], answer["strangeness"], *best]
            writer.writerow([shown(cell, keep="") if isinstance(cell, str) else cell for cell in row])
        return text.getvalue()

    @property
    def losses(self) -> list[str]:
        """What was left out, a line each."""
        if not self.left_out:
            return []
        count = len(self.left_out) + len(self.found)
        lines = [f"{len(self.left_out):,} of {count:,} images could not be used, and are left out:"]
        lines += [f"  {told(title, 200)}: {told(error)}" for title, error in self.left_out[:MOST_TOLD]]
        more = len(self.left_out) - MOST_TOLD
        return [*lines, f"  and {more:,} more"] if more > 0 else lines

    @property
    def value(self) -> dict[str, Any]:
        """All of it, as JSON."""
        lost = [{"image": title, "code": error.code, "why": str(error)} for title, error in self.left_out]
        return {"predictions": self.found, "left_out": lost}


# -- drawing -----------------------------------------------------------------------------------------------

SMALLEST, LARGEST = 320, 1024  # sides of a picture with its answer, in pixels
LETTERS = 12  # smallest size of letters


class Drawing:
    """Writes pictures with their answers below them to a folder.

    Args:
        folder: The folder; it is made.
        force: Whether files that are there may be replaced.

    Attributes:
        files: What was written.
    """

    def __init__(self, folder: Path, force: bool) -> None:
        self.folder, self.force = folder, force
        self.files: list[Path] = []
        self._taken: set[str] = set()

    def __call__(self, title: str, image: Tensor, text: str) -> None:
        """Write a picture (channels, height, width) with a text below it."""
        self.write(title, drawn(image, text))

    def write(self, title: str, picture: Image.Image) -> None:
        """Write a picture as it is."""
        from brickyard.runtime._progress import speaks
        from brickyard.storage._atomic import write_content

        content = io.BytesIO()
        picture.save(content, "PNG")
        path = self.folder / f"{self._name(title)}.png"
        if speaks():
            write_content(path, content.getvalue(), overwrite=self.force)
        self.files.append(path)

    def _name(self, title: str) -> str:
        """A name that no other picture has, of plain letters."""
        stem = re.sub(r"[^\w.\[\]-]+", "_", Path(title.partition("?")[0]).stem, flags=re.ASCII).strip("._")[:80]
        stem = {"-": "picture", "": "picture"}.get(stem, stem)
        name, number = stem, 2
        while name.casefold() in self._taken:
            name, number = f"{stem}-{number}", number + 1
        self._taken.add(name.casefold())
        return name


def drawn(image: Tensor, text: str) -> Image.Image:
    """A picture (channels, height, width), uint8 or in [0, 1], with a text below it."""
    from PIL import Image, ImageDraw, ImageFont

    from brickyard.reports._drawn_boxes import as_picture

    picture = as_picture(image)
    longest = max(picture.size)
    scale = LARGEST / longest if longest > LARGEST else max(1, SMALLEST // longest)
    sides = tuple(max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((sides[0], sides[1]), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    width, text = max(picture.width, SMALLEST // 2), shown(text, keep="")
    letters = max(LETTERS, width // 18)
    font: Any = ImageFont.load_default(letters)
    while letters > LETTERS and font.getlength(text) > width - 12:
        letters -= 1
        font = ImageFont.load_default(letters)
    while len(text) > 1 and font.getlength(text) > width - 12:
        text = text.removesuffix("...")[:-1].rstrip() + "..."
        if text == "...":
            break
    whole = Image.new("RGB", (width, picture.height + letters + 12), (24, 28, 36))
    whole.paste(picture, ((width - picture.width) // 2, 0))
    ImageDraw.Draw(whole).text((6, picture.height + 4), text, fill=(255, 255, 255), font=font)
    return whole
