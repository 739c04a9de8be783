"""Detectors as ONNX: decoding and non-maximum suppression inside the graph, and its check against torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.assembly._assembly import Assembly
from brickyard.base._boxes import check_no_boxes
from brickyard.base._declare import checked
from brickyard.base._errors import OptionError
from brickyard.base._lazy import package
from brickyard.base._messages import first_line
from brickyard.base._options import BoxOptions
from brickyard.component._predictor import Predictor, run_images
from brickyard.export._int8 import session
from brickyard.export._onnx_modules import Entry, program, written
from brickyard.export._onnx_turns import Graph, inlined
from brickyard.inputs._preprocessing import to_picture
from brickyard.outputs._detections import CANDIDATES, Detections, overlaps, within

FOUND = ("boxes", "scores", "classes")
OUTPUT = "outputs"  # of a file that does not decode
TOLERANCE = 1e-5  # of outputs: of the largest one of a batch
NEAR = 1e-4  # of boxes: of the picture's longer side; and of scores
BORDER = 1e-3  # overlaps so near to the limit may be read either way
SHOWN = 100  # boxes that the check lets through where images are random


def check_boxes(model: Any, options: Mapping[str, Any], *, decode: bool = True, int8: bool = False) -> Form | None:
    """How the file of a detector finds boxes; None for a classifier.

    Raises:
        OptionError: An option cannot be used, or would have no effect.
    """
    values = checked(BoxOptions, options, "export_onnx")
    if not isinstance(model.outputs, Detections):
        if idle := [*options, *([] if decode else ["decode"])]:
            why = f"{', '.join(idle)} would have no effect: a classifier finds no boxes"
            raise OptionError("option-without-effect", f"{why}; leave it out")
        return None
    if isinstance(model, Assembly):
        check_no_boxes(model, "export_onnx of an assembly", "export each component by itself")
    if int8:
        why = "int8 is for classifiers: their answers are compared with those of the float32 file, and boxes are not"
        raise OptionError("option-conflict", f"{why} yet; leave it out (--int8)")
    if not decode and options:
        why = f"{', '.join(options)} would have no effect: with decode=False (--no-decode) the file finds no boxes"
        raise OptionError("option-without-effect", f"{why}; leave one of them out")
    return Form(values["score"], values["iou"], values["most"], decode)


class FromPicture(nn.Module):
    """Maps one raw image to all of a detector's boxes, and to the score of each class at each of them.

    Boxes are given twice: in pixels of the network's input, where overlaps are compared, and in those of the picture.
    """

    def __init__(self, model: Predictor) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kind = self.model.outputs
        assert isinstance(kind, Detections)
        boxes, scores = kind.bounded(self.model.logits(images))
        sides = images.shape[2], images.shape[3]
        high = torch.stack([torch.scalar_tensor(sides[k], dtype=boxes.dtype) for k in (1, 0, 1, 0)])
        placed = to_picture(boxes, sides, self.model.preprocessings[0]).clamp(min=0).minimum(high)
        low = boxes[..., :2]
        boxes = torch.cat([low, torch.maximum(low, boxes[..., 2:])], -1)  # ONNX would turn boxes without extent over
        scores = torch.where((boxes == boxes).all(-1, keepdim=True), scores, -1.0)  # as boxes of NaN are not found
        if scores[0].numel() > CANDIDATES:
            least = scores.flatten().topk(CANDIDATES).values.amin(0)
            scores = torch.where(scores >= least, scores, -1.0)
        return boxes, placed, scores.transpose(1, 2)


class FromRawOutputs(nn.Module):
    """Maps raw images to a detector's outputs."""

    def __init__(self, model: Predictor) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.model.logits(images)


@dataclass(frozen=True)
class _Answer:
    """What torch says of an image: boxes in pixels of the input and of the picture, and scores (places, classes)."""

    boxes: Tensor
    placed: Tensor
    scores: Tensor
    side: int


@dataclass(frozen=True)
class Form:
    """A detector's file: whether it finds boxes, and which."""

    score: float
    iou: float
    most: int
    decode: bool

    def about(self, model: Predictor) -> dict[str, Any]:
        """What the file says of it."""
        kind = model.outputs
        assert isinstance(kind, Detections)
        assert kind.boxes is not None
        if self.decode:
            return {"suppression": {"score": self.score, "iou": self.iou, "most": self.most}}
        return {"boxes": kind.boxes.of_task(len(model.classes)).model_dump(mode="json"), "sides": list(kind.sides)}

    def batches(self, entry: Entry, given: Sequence[Tensor]) -> list[Tensor]:
        """Images for the check: one by one where the file takes one."""
        if not self.decode:
            return [*entry.batches(), *given]
        singles = [one[None] for batch in given[1:] for one in batch]  # the first batch has one that comes again
        return [*(batch[:1] for batch in entry.batches()), *singles]

    def expected(self, plain: Predictor, images: Sequence[Tensor]) -> list[tuple[Tensor, Any]]:
        """Images with what torch says of them."""
        kind, how = plain.outputs, plain.preprocessings[0]
        assert isinstance(kind, Detections)
        found: list[tuple[Tensor, Any]] = []
        for batch in images:
            logits = run_images(plain.logits, batch, "the images for the check")
            if not self.decode:
                found.append((batch, logits))
                continue
            sides = tuple(batch.shape[2:])
            (boxes,), (scores,) = kind.bounded(logits.double())
            placed = within(to_picture(boxes, (sides[0], sides[1]), how), (sides[0], sides[1]))
            found.append((batch, _Answer(boxes, placed, scores, max(sides))))
        return found

    def proto(self, model: Predictor, entry: Entry) -> Any:
        """The ONNX model."""
        if not self.decode:
            return written(program(FromRawOutputs(model), entry), OUTPUT)
        onnx = package("onnx", "onnx", "writing ONNX")
        found = inlined(onnx, written(program(FromPicture(model), entry, single=True), "inner", "placed", "scored"))
        return _suppressing(onnx, found, self)

    def compare(self, content: bytes, expected: Sequence[tuple[Tensor, Any]]) -> tuple[float, str]:
        """Run the file; return its largest error, and a description of what is wrong, or ""."""
        try:
            run: Any = self._run_for_boxes(content) if self.decode else _run_for_outputs(content)
            largest = 0.0
            for images, wanted in expected:
                error, problem = run({"images": images.numpy()}, wanted)
                if problem:
                    return error, f"{problem} on images of {'x'.join(map(str, images.shape))}"
                largest = max(largest, error)
        except Exception as error:  # what onnxruntime raises is its own
            return float("inf"), f"onnxruntime does not run it: {first_line(error)}"
        return largest, ""

    def _run_for_boxes(self, content: bytes) -> Callable[..., tuple[float, str]]:
        """With the file's own limits, and with a least score that about a hundred boxes are above."""
        onnx = package("onnx", "onnx", "writing ONNX")
        opened = onnx.load_from_string(content)
        opened.graph.input.append(onnx.helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, []))
        files = session(content), session(opened.SerializeToString())

        def run(given: dict[str, Any], wanted: _Answer) -> tuple[float, str]:
            ranked = wanted.scores.flatten().sort(descending=True).values
            low = ranked[min(SHOWN, len(ranked) - 1)].float()
            largest = 0.0
            for file, score, more in zip(files, (self.score, float(low)), ({}, {"score": low.numpy()}), strict=True):
                found = [torch.from_numpy(one) for one in file.run(list(FOUND), {**given, **more})]
                error, problem = compared(found, wanted, score, self.iou, self.most)
                if problem:
                    return error, problem
                largest = max(largest, error)
            return largest, ""

        return run


def _run_for_outputs(content: bytes) -> Callable[..., tuple[float, str]]:
    file = session(content)

    def run(given: dict[str, Any], wanted: Tensor) -> tuple[float, str]:
        (found,) = map(torch.from_numpy, file.run([OUTPUT], given))
        unit = wanted.abs().max().clamp_min(1e-30)
        error = float((found - wanted).abs().max() / unit) if found.shape == wanted.shape else float("inf")
        if error <= TOLERANCE:
            return error, ""
        return error, f"its outputs differ from torch's by {error:.1e} of the largest one; {TOLERANCE:.0e} is allowed"

    return run


def compared(found: Sequence[Tensor], wanted: Any, score: float, iou: float, most: int) -> tuple[float, str]:
    """The largest difference of boxes (of the picture's longer side) or scores, and what is wrong, or "".

    Scores and overlaps that rounding may bring to either side of a limit are left out: a box must be there if it is
    certain, and must not be there if it is certain that another one suppresses it.
    """
    boxes, scores, classes = found
    if len(boxes) > most or bool((scores.diff() > 0).any()):
        return float("inf"), f"it returns {len(boxes)} boxes, which are more than {most} or not by falling score"
    places, labels, values, certain = _kept(wanted, score, iou, most)
    apart = (boxes.double()[:, None] - wanted.placed[places][None]).abs().amax(2) / wanted.side
    apart = torch.maximum(apart, (scores.double()[:, None] - values[None]).abs())
    apart = torch.where(classes[:, None] == labels[None], apart, torch.inf)
    missing = apart.new_tensor(torch.inf).expand(1, len(places)), apart.new_tensor(torch.inf).expand(len(boxes), 1)
    lacking = torch.cat([apart, missing[0]])[:, certain].amin(0)  # of each certain box, how far the nearest one is
    more = torch.cat([apart, missing[1]], 1).amin(1)
    error = float(torch.cat([lacking, more, more.new_zeros(1)]).amax())
    if error <= NEAR:
        again = torch.maximum(
            (boxes[:, None] - boxes[None]).abs().amax(2) / wanted.side, (scores[:, None] - scores[None]).abs()
        )
        again = (again <= NEAR) & (classes[:, None] == classes[None])
        twice = bool((again.sum(1) > (apart <= 2 * NEAR).sum(1)).any())
        return error, "a box is there twice" if twice else ""
    count = int((lacking > NEAR).sum()), int((more > NEAR).sum())
    return error, f"of torch's boxes, {count[0]} are missing or differ, and {count[1]} others are there"


def _kept(wanted: Any, score: float, iou: float, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Places, classes and scores of all boxes that may be left after suppression, and which of them surely are."""
    ranked = wanted.scores.flatten().sort(descending=True).values
    least = max(score, float(ranked[CANDIDATES - 1]) if len(ranked) > CANDIDATES else 0.0)
    chosen = ((wanted.scores > least - NEAR) & wanted.boxes.isfinite().all(1, keepdim=True)).nonzero()
    values = wanted.scores[chosen[:, 0], chosen[:, 1]]
    values, order = values.sort(descending=True)
    places, labels = chosen[order].unbind(1)
    inner = wanted.boxes[places]
    possible, certain = torch.zeros(len(values), dtype=torch.bool), torch.zeros(len(values), dtype=torch.bool)
    suppressed = torch.zeros(len(values), dtype=torch.bool)
    for k in range(len(values)):
        alike = labels == labels[k]
        shared = torch.where(alike, overlaps(inner[k : k + 1], inner)[0], 0.0)
        shared[k] = 0.0
        ahead = values > values[k] - NEAR
        suppressed[k] = bool((certain & (values > values[k] + NEAR) & (shared > iou + BORDER)).any())
        possible[k] = not suppressed[k]
        rivals = ahead & ~suppressed & (shared > iou - BORDER)
        certain[k] = bool(possible[k] & (values[k] > least + NEAR) & ~rivals.any())
    certain &= (possible[None] & (values[None] > values[:, None] - NEAR)).sum(1) <= most
    return places[possible], labels[possible], values[possible], certain[possible]


def _suppressing(onnx: Any, found: Any, form: Form) -> Any:
    """Add class-wise non-maximum suppression to a graph that gives boxes twice, and scores."""
    helper, kinds, graph = onnx.helper, onnx.TensorProto, found.graph
    made = Graph(helper, "boxes.")
    flat = made.numbers(-1)
    chosen = made.add("NonMaxSuppression", "inner", "scored", "most", "iou", "score")
    columns = made.several("Split", 3, chosen, axis=1, num_outputs=3)
    labels, places = (made.add("Squeeze", column, made.numbers(1)) for column in columns[1:])
    shape = made.add("Shape", "scored")
    width = made.add("Gather", shape, made.constant(torch.tensor(2)), axis=0)
    at = made.add("Add", made.add("Mul", labels, width), places)
    values = made.add("Gather", made.add("Reshape", "scored", flat), at, axis=0)
    count = made.add("Min", made.add("Shape", values), made.add("Reshape", "most", flat))
    best, order = made.several("TopK", 2, values, count, axis=0, largest=1, sorted=1)
    boxes = made.add("Gather", made.add("Reshape", "placed", made.numbers(-1, 4)), places, axis=0)
    ends = made.add("Gather", boxes, order, axis=0), best, made.add("Gather", labels, order, axis=0)
    for one, name in zip(ends, FOUND, strict=True):
        made.nodes.append(helper.make_node("Identity", [one], [name], name=name))
    graph.node.extend(made.nodes)
    limits = {
        "score": torch.tensor(form.score, dtype=torch.float32),
        "iou": torch.tensor(form.iou, dtype=torch.float32),
        "most": torch.tensor(form.most),
    }
    for name, value in limits.items():
        graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), name))
    graph.initializer.extend(made.initializers)
    del graph.output[:]
    for name, kind, more in zip(FOUND, (kinds.FLOAT, kinds.FLOAT, kinds.INT64), ([4], [], []), strict=True):
        graph.output.append(helper.make_tensor_value_info(name, kind, ["found", *more]))
    return found
