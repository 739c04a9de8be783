"""What a detector's outputs mean as the text of functions that find the same boxes: decoding, suppression, mapping."""

from __future__ import annotations

import math

from brickyard.base._boxes import Boxes, cells_along
from brickyard.base._declare import declared
from brickyard.base._options import BoxOptions
from brickyard.base._records import Preprocessing
from brickyard.outputs._detections import CANDIDATES, EXPONENT, GROWTH, LARGEST

_FIND = '''
@torch.no_grad()
def find(model, images, score={score}, iou={iou}, most={most}):
    """Find objects in images (batch, channels, height, width), as `preprocess` takes them.

    For each image: its boxes (n, 4), left, top, right and bottom in pixels of the image, their scores (n,) and their
    classes (n,), by falling score. Boxes have a score above `score`, and of boxes of one class that overlap by more
    than `iou`, the surest is left; there are at most `most`.
    """
    boxes, scores = decoded(model(preprocess(images)).double())
    boxes = boxes.clamp(boxes.new_tensor([{low}] * 2), boxes.new_tensor([{high}] * 2))
    found = []
    for own, sure in zip(boxes, scores):
        chosen = ((sure > score) & own.isfinite().all(1, keepdim=True)).nonzero()
        values, order = sure[chosen[:, 0], chosen[:, 1]].sort(descending=True, stable=True)
        values, chosen = values[:{candidates}], chosen[order[:{candidates}]]
        places, classes = own[chosen[:, 0]], chosen[:, 1]
        kept = batched_nms(places.float(), values.float(), classes, iou)[:most]
        found.append((to_picture(places[kept], *images.shape[2:]), values[kept], classes[kept]))
    return found
'''
_DECODED = '''
def decoded(rows):
    """Outputs (batch, {outputs}, places) -> boxes (batch, places, 4) and scores (batch, places, {count})."""
    scores = rows[:, {scores}].transpose(1, 2){activation}
{objectness}    numbers = rows[:, {numbers}].transpose(1, 2)
{corners}'''
_OBJECTNESS = """    scores = {joined}
"""
_SOFTMAX = """    scores = torch.cat([scores, rows[:, {at}].unsqueeze(2)], 2).softmax(2)[..., :{count}]
"""
_CELLS = '''
def cells(like):
    """Of each place its cell, (places, 2) as x and y, how many pixels that has, (places, 1), and its anchor's size."""
    found, strides, sizes = [], [], []
    for stride, rows, columns, anchors in (
{grids}
    ):
        own = torch.tensor(anchors, dtype=torch.float64)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        found.append(torch.stack([x.flatten(), y.flatten()], 1).repeat_interleave(len(own), 0))
        strides.append(torch.full((rows * columns * len(own), 1), stride, dtype=torch.float64))
        sizes.append(own.repeat(rows * columns, 1))
    return torch.cat(found).to(like), torch.cat(strides).to(like), torch.cat(sizes).to(like)
'''
_CORNERS = {
    "corners": "    return numbers, scores",
    "centre": """    middle, size = numbers[..., :2], numbers[..., 2:]
    return torch.cat([middle - size / 2, middle + size / 2], -1), scores""",
    "grid": """    cell, stride, _ = cells(numbers)
    middle, size = (numbers[..., :2] + cell) * stride, numbers[..., 2:].clamp(max={exponent}).exp() * stride
    return torch.cat([middle - size / 2, middle + size / 2], -1), scores""",
    "sides": """    cell, stride, _ = cells(numbers)
    middle, reach = (cell + {offset}) * stride, numbers * stride
    return torch.cat([middle - reach[..., :2], middle + reach[..., 2:]], -1), scores""",
    "deltas": """    cell, stride, anchor = cells(numbers)
    weights = numbers.new_tensor({weights})
    middle = (cell + {offset}) * stride + numbers[..., :2] / weights[:2] * anchor
    size = (numbers[..., 2:] / weights[2:]).clamp(max={growth}).exp() * anchor
    return torch.cat([middle - size / 2, middle + size / 2], -1), scores""",
}
_BINS = """    shares = numbers.unflatten(-1, (4, {bins})).softmax(-1)
    numbers = (shares * torch.arange({bins}).to(shares)).sum(-1)
"""
_TO_PICTURE = '''
def to_picture(boxes, height, width):
    """Map boxes from the network's input to a picture, and cut them off at its sides."""
    found = []{factor}
    for side, size, goal in ((width, {width}, {goals[1]}), (height, {height}, {goals[0]})):
{cover}
        found += [(side / cover, start)]
    (across, left), (down, above) = found
    boxes = (boxes + boxes.new_tensor([left, above] * 2)) * boxes.new_tensor([across, down] * 2)
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))
'''
_AS_IS = '''
def to_picture(boxes, height, width):
    """Cut boxes off at a picture's sides."""
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))
'''
_FACTOR = """
    factor = {least}({goals[0]} / height, {goals[1]} / width)"""
_LEFT = {"centre": "-((goal - cover) // 2)", "corner": "0"}
_SQUASHED = "cover, start = goal, round((goal - size) / 2)"


def boxes_text(boxes: Boxes, how: Preprocessing, sides: tuple[int, ...]) -> str:
    """Functions that find the boxes which `Component.detect` finds, of which the last is called `find`.

    Args:
        boxes: How the module's outputs are read.
        how: The preprocessing.
        sides: Height and width of the network's input.
    """
    texts = [*([_cells(boxes, sides)] if boxes.strides else []), _decoding(boxes), _mapping(how), _finding(sides)]
    return "\n\n".join(text.strip("\n") + "\n" for text in texts)


def _cells(boxes: Boxes, sides: tuple[int, ...]) -> str:
    grids = []
    for number, stride in enumerate(boxes.strides):
        rows, columns = (cells_along(side, stride) for side in sides)
        anchors = boxes.anchors[number] if boxes.anchors else ((stride, stride),)
        grids.append(f"        ({stride}, {rows}, {columns}, {[*map(tuple, anchors)]}),")
    return _CELLS.format(grids="\n".join(grids))


def _decoding(boxes: Boxes) -> str:
    count = boxes.classes or 0
    sigmoid = ".sigmoid()" if boxes.scores == "sigmoid" else ""
    more = ""
    if boxes.objectness_at is not None:
        product = f"scores * rows[:, {boxes.objectness_at}].unsqueeze(2){sigmoid}"
        more = _OBJECTNESS.format(joined=product if boxes.joined == "product" else f"({product}).sqrt()")
    if boxes.background_at is not None:
        more = _SOFTMAX.format(at=boxes.background_at, count=count)
    corners = _CORNERS["sides" if boxes.coding == "bins" else boxes.coding].format(
        exponent=EXPONENT, growth=GROWTH, offset=boxes.offset, weights=boxes.weights
    )
    return _DECODED.format(
        outputs=boxes.outputs,
        count=count,
        scores=f"{boxes.scores_at}:{boxes.scores_at + count}",
        numbers=f"{boxes.boxes_at}:{boxes.boxes_at + boxes.box_outputs}",
        activation=sigmoid,
        objectness=more,
        corners=(_BINS.format(bins=boxes.bins) if boxes.coding == "bins" else "") + corners,
    )


def _mapping(how: Preprocessing) -> str:
    if how.size is None:
        return _AS_IS
    goals = [math.floor(side / (how.crop if how.crops else 1.0) + 1e-6) for side in how.size]
    factor, lines = "", [_SQUASHED]
    if how.fit == "letterbox":
        factor = _FACTOR.format(least="min", goals=goals)
        lines = ["cover = max(math.floor(side * factor + 1e-6), 1)", f"start = {_LEFT[how.place]}"]
    elif how.fit == "crop":
        factor = _FACTOR.format(least="max", goals=goals)
        lines = ["cover = max(math.floor(side * factor + 1e-6), goal)", "start = round((cover - size) / 2)"]
    elif how.fit == "pad":
        lines = [_SQUASHED, f"if height <= {goals[0]} and width <= {goals[1]}:", "    cover = side"]
        lines.append(f"    start = {_LEFT[how.place]}")
    cover = "\n".join(" " * 8 + line for line in lines)
    return _TO_PICTURE.format(factor=factor, cover=cover, goals=goals, height=how.size[0], width=how.size[1])


def _finding(sides: tuple[int, ...]) -> str:
    height, width = sides
    low = ", ".join(f"{-side * (LARGEST - 1)}" for side in (width, height))
    high = ", ".join(f"{side * LARGEST}" for side in (width, height))
    defaults = {name: option.default for name, option in declared(BoxOptions).items()}
    return _FIND.format(low=low, high=high, candidates=CANDIDATES, **defaults)
