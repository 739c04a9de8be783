"""What a detector's component finds in many images, as text, CSV, JSON and drawings."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from brickyard.base._messages import shown
from brickyard.cli._answers import Answers, Drawing
from brickyard.cli._output import table

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

SIDES = ("left", "top", "right", "bottom")


class Objects(Answers):
    """What a detector's component finds in images.

    Args:
        component: The component.
        how: Options of `Component.detect` that were given.
    """

    def __init__(self, component: Any, how: Mapping[str, Any]) -> None:
        super().__init__(component, top=0)
        self.how = dict(how)

    def _brought(self, image: Tensor) -> Tensor:
        return image  # boxes are told in pixels of the image as it is

    def _asked(self, images: Tensor) -> Sequence[Any]:
        return list(self.classifier.detect(images, **self.how))

    def _told(self, title: str, said: Any) -> dict[str, Any]:
        rows = zip(said.labels.tolist(), said.scores.tolist(), said.boxes.tolist(), strict=True)
        objects = [
            {"class": self.classifier.classes[k], "score": round(score, 6), "box": [round(side, 2) for side in box]}
            for k, score, box in rows
        ]
        return {"image": title, "objects": objects}

    def _drawn(self, draw: Any, title: str, whole: Tensor) -> None:
        if isinstance(draw, Drawing):
            draw.write(title, boxed(whole, self.found[-1]["objects"], self.classifier.classes))

    @property
    def text(self) -> str:
        """All boxes as a table, by falling score in each image."""
        rows = [["image", "class", "score", *SIDES]]
        for image, objects in ((answer["image"], answer["objects"]) for answer in self.found):
            rows += [
                [image if k == 0 else "", one["class"], f"{one['score']:.1%}", *(f"{side:.0f}" for side in one["box"])]
                for k, one in enumerate(objects)
            ]
            rows += [] if objects else [[image, "nothing found", *[""] * 5]]
        return table(rows)

    @property
    def csv(self) -> str:
        """All boxes as CSV, a line each; an image without any has a line with its name alone."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "class", "score", *SIDES])
        for answer in self.found:
            name = shown(answer["image"], keep="")
            rows = [[name, shown(one["class"], keep=""), one["score"], *one["box"]] for one in answer["objects"]]
            writer.writerows(rows or [[name, *[""] * 6]])
        return text.getvalue()


def boxed(image: Tensor, objects: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Image.Image:
    """A picture (channels, height, width), uint8 or in [0, 1], with boxes, classes and scores on it."""
    from brickyard.reports._drawn_boxes import as_picture, draw_boxes, said_of

    texts = [said_of(one["class"], one["score"]) for one in objects]
    return draw_boxes(
        as_picture(image), [one["box"] for one in objects], texts, [names.index(one["class"]) for one in objects]
    )
