"""ONNX operators that move numbers, and those on shapes: they become views, or are computed while reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from brickyard.sources._onnx_file import FLOATS, Op
from brickyard.sources._onnx_graph import BATCHES, Reader, Value, constant, volume
from brickyard.sources._onnx_resize import resize
from brickyard.sources._onnx_steps import Convert, Given, at, axes_of, first

_FAR = 1 << 31  # an end of a slice that means the end
_TYPES = {**FLOATS, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool}

# -- views -------------------------------------------------------------------------------------------------


def shaped(reader: Reader, x: Value, goals: tuple[Sequence[int], Sequence[int]]) -> Value:
    """View a value in other sizes, which are given for both batches."""
    first_goal, second_goal = (tuple(goal) for goal in goals)
    if x.known:
        a, b = x.worlds[0].reshape(first_goal), x.worlds[1].reshape(second_goal)
        return constant(a, x.name) if x.constant and first_goal == second_goal else Value((a, b), "", x.name)
    if (first_goal, second_goal) == tuple(tuple(world.shape) for world in x.worlds):
        return x
    shape = x.shape
    for start in range(1, len(first_goal)):  # what follows is laid out as one dimension
        if len(first_goal) == start + 1 and shape[:start] == first_goal[:start]:
            return reader.call("flatten", x, start)
    sizes: list[int | Value] = []
    for pair in zip(first_goal, second_goal, strict=True):
        sizes.append(pair[0] if pair[0] == pair[1] else -1 if -1 not in sizes else _by_batch(*pair))
    return reader.call("reshape", x, tuple(sizes))


def _by_batch(in_first: int, in_second: int) -> Value:
    """A size that differs between both batches."""
    return Value((torch.tensor(in_first), torch.tensor(in_second)))


def _reshape(reader: Reader, op: Op, given: Given) -> Value:
    x, target = first(reader, given), at(given, 1)
    if target is None:
        target = constant(torch.tensor(op.attributes.get("shape", []), dtype=torch.int64))
    if not target.known or target.worlds[0].numel() > 8:
        reader.refuse("takes a shape that depends on the images, or of more than 8 sizes")
    keep = not op.attributes.get("allowzero", 0)
    goals = []
    for world in (0, 1):
        sizes, own = target.worlds[world].tolist(), x.worlds[world].shape
        sizes = [int(own[d]) if size == 0 and keep and d < len(own) else int(size) for d, size in enumerate(sizes)]
        goals.append(_filled(sizes, x.worlds[world].numel()))
    if goals[0] is not None and goals[1] is not None and not _swallows(reader, x, target.worlds[0].tolist()):
        return shaped(reader, x, (goals[0], goals[1]))
    return _opened(reader, x, target.worlds[0].tolist(), keep)


def _swallows(reader: Reader, x: Value, target: list[int]) -> bool:
    """Whether a file fixes its batch and has it first, so that a -1 elsewhere would take up further images."""
    fixed = (reader.file.images.shape or (None,))[0]
    return fixed is not None and target[0] == fixed and -1 in target[1:] and list(x.by_batch) == [0]


def _filled(sizes: list[int], numbers: int) -> list[int] | None:
    """Sizes with the one that is left out, or None if they do not hold so many numbers."""
    rest = volume([size for size in sizes if size != -1])
    if -1 in sizes:
        if sizes.count(-1) > 1 or rest == 0 or numbers % rest:
            return None
        return [numbers // rest if size == -1 else size for size in sizes]
    return sizes if rest == numbers else None


def _opened(reader: Reader, x: Value, target: list[int], keep: bool) -> Value:
    """View a value of a file that fixes its batch in sizes that hold it, for any number of images.

    The batch lies behind some number of other entries, and stays behind as many.
    """
    count, found = reader.batch, None
    if len(x.by_batch) == 1 and x.shape[x.by_batch[0]] % BATCHES[0] == 0:
        dim = x.by_batch[0]
        own = [size // BATCHES[0] * count if d == dim else size for d, size in enumerate(x.shape)]
        sizes = [own[d] if size == 0 and keep and d < len(own) else int(size) for d, size in enumerate(target)]
        resolved = _filled(sizes, volume(own))
        before = volume(x.shape[:dim]) * reader.inner.get(x.step, 1)
        found = None if resolved is None else _place(resolved, before, count, len(resolved) < x.ndim)
    if found is None or resolved is None:
        reader.refuse(
            f"gives {x.shape} for {BATCHES[0]} images the shape {tuple(target)}, which holds the size of one batch and "
            "cannot be opened; export the model with a dynamic batch",
            "trace-batch",
        )
    place, inner = found
    goals = [[s // count * b if d == place else s for d, s in enumerate(resolved)] for b in BATCHES]
    value = shaped(reader, x, (goals[0], goals[1]))
    if inner > 1:
        reader.inner[value.step] = inner
    return value


def _place(sizes: list[int], before: int, count: int, fewer: bool) -> tuple[int, int] | None:
    """Which of some sizes holds the batch, and how many entries of it come before the batch.

    Args:
        sizes: The sizes for the batch of the file.
        before: How many entries lie before the batch.
        count: The batch of the file.
        fewer: Whether dimensions were joined, so that one may end in the batch rather than start with it.
    """
    starts = [d for d, size in enumerate(sizes) if volume(sizes[:d]) == before and size % count == 0]
    alone = next((d for d in starts if sizes[d] == count), None)
    if alone is not None:
        return alone, 1
    last = next((d for d, size in enumerate(sizes) if volume(sizes[: d + 1]) == before * count), None)
    if last is not None and before > 1 and (fewer or not starts) and sizes[last] % count == 0:
        return last, sizes[last] // count
    return (starts[0], 1) if starts else None


def _flatten(reader: Reader, op: Op, given: Given) -> Value:
    x = first(reader, given)
    dim = int(op.attributes.get("axis", 1))
    dim = dim + x.ndim if dim < 0 else dim
    goals = [[volume(world.shape[:dim]), volume(world.shape[dim:])] for world in x.worlds]
    return shaped(reader, x, (goals[0], goals[1]))


def _transpose(reader: Reader, op: Op, given: Given) -> Value:
    x = first(reader, given)
    order = [int(dim) for dim in op.attributes.get("perm") or reversed(range(x.ndim))]
    before = reader.source.get(x.step)
    if before is not None and before.ndim == x.ndim and x.step in reader.orders:  # of two turns, one remains
        order = [reader.orders[x.step][dim] for dim in order]
        x = before
    if order == list(range(x.ndim)):
        return x
    found = reader.call("permute", x, tuple(order))
    if not found.known:
        reader.source[found.step], reader.orders[found.step] = x, order
    return found if not found.constant else constant(found.worlds[0], x.name)


def _squeeze(reader: Reader, op: Op, given: Given) -> Value:
    x = first(reader, given)
    dims = axes_of(reader, op, given, x.ndim)
    dims = [d for d in range(x.ndim) if x.worlds[0].shape[d] == x.worlds[1].shape[d] == 1] if dims is None else dims
    if any(x.shape[d] != 1 for d in dims):
        if set(dims) & set(x.by_batch):
            reader.refuse("drops the dimension of the images; export the model with a dynamic batch", "trace-batch")
        reader.refuse(f"drops dimensions {dims} of {x.shape}, which are not of size 1", "file-network-invalid")
    goals = [[size for d, size in enumerate(world.shape) if d not in dims] for world in x.worlds]
    return shaped(reader, x, (goals[0], goals[1]))


def _unsqueeze(reader: Reader, op: Op, given: Given) -> Value:
    x, value = first(reader, given), at(given, 1)
    found = op.attributes.get("axes") if value is None else reader.integers(value, "axes")
    ndim = x.ndim + len(found or [])
    for dim in sorted(int(dim) % ndim for dim in found or []):
        x = Value((x.worlds[0].unsqueeze(dim), x.worlds[1].unsqueeze(dim))) if x.known and not x.constant else (
            reader.call("unsqueeze", x, dim)
        )  # fmt: skip
    return x


def _expand(reader: Reader, op: Op, given: Given) -> Value:
    x, target = first(reader, given), at(given, 1)
    if target is None or not target.known:
        reader.refuse("takes a shape that depends on the images")
    goals = []
    for world in (0, 1):
        own, sizes = list(x.worlds[world].shape), [int(size) for size in target.worlds[world].tolist()]
        own, sizes = [1] * (len(sizes) - len(own)) + own, [1] * (len(own) - len(sizes)) + sizes
        goals.append([a if b == 1 else b for a, b in zip(own, sizes, strict=True)])
    if x.known:
        kept = [reader.compute(torch.Tensor.expand, constant(x.worlds[w]), goal) for w, goal in enumerate(goals)]
        same = x.constant and goals[0] == goals[1]
        return kept[0] if same else Value((kept[0].worlds[0], kept[1].worlds[0]), "", x.name)
    if list(x.shape) == goals[0]:
        return x
    own_batch = {d for d in x.by_batch if len(goals[0]) == x.ndim}
    pairs = enumerate(zip(*goals, strict=True))
    sizes_ = [-1 if d in own_batch else pair[0] if pair[0] == pair[1] else _by_batch(*pair) for d, pair in pairs]
    return reader.call("expand", x, tuple(sizes_))


def _concat(reader: Reader, op: Op, given: Given) -> Value:
    values = [value for value in given if value is not None]
    dim = int(op.attributes.get("axis", 0)) % max(1, values[0].ndim)
    seen = next((value for value in values if not value.known), None)
    if seen is None:
        return reader.compute(lambda *parts: torch.cat(parts, dim), *values)
    whole = []
    for value in values:  # a constant for the one image of a file that fixes its batch is one for each
        for d in seen.by_batch:
            if d != dim and value.constant and value.shape[d] == reader.batch == 1:
                only = value.worlds[0]
                both = [_spread(only, d, world.shape[d]) for world in seen.worlds]
                value = Value((both[0], both[1]), "", value.name)
        whole.append(value)
    return reader.call("cat", whole, dim=dim)


def _spread(value: Tensor, dim: int, size: int) -> Tensor:
    return value.expand(*(size if d == dim else -1 for d in range(value.ndim)))


def _split(reader: Reader, op: Op, given: Given) -> list[Value]:
    x, sizes = first(reader, given), at(given, 1)
    dim = int(op.attributes.get("axis", 0)) % max(1, x.ndim)
    if dim in x.by_batch:
        reader.refuse("splits the batch", "trace-batch")
    whole = x.shape[dim]
    lengths = op.attributes.get("split") if sizes is None else reader.integers(sizes, "sizes")
    if not lengths:
        count = int(op.attributes.get("num_outputs", len(op.outputs)))
        each = -(-whole // max(1, count))
        lengths = [each] * (count - 1) + [whole - each * (count - 1)]
    if sum(lengths) != whole or min(lengths) < 0:
        reader.refuse(f"splits {whole} entries into {lengths[:8]}", "file-network-invalid")
    found, start = [], 0
    for length in lengths:
        found.append(_between(reader, x, dim, start, start + length))
        start += length
    return found


def _between(reader: Reader, x: Value, dim: int, start: int, stop: int, step: int = 1) -> Value:
    """The entries of a dimension between two places."""
    if (start, step) == (0, 1) and stop >= x.shape[dim] and dim not in x.by_batch:
        return x
    part = slice(start or None, None if stop >= x.shape[dim] else stop, None if step == 1 else step)
    where = (*(slice(None) for _ in range(dim)), part)
    return reader.compute(lambda value: value[where], x) if x.known else reader.call("getitem", x, where)


def _slice(reader: Reader, op: Op, given: Given) -> Value:
    x = first(reader, given)
    if at(given, 1) is None:
        starts, ends = op.attributes.get("starts", []), op.attributes.get("ends", [])
        axes, steps = op.attributes.get("axes") or list(range(len(starts))), [1] * len(starts)
    else:
        starts, ends = _ints(reader, given, 1, x), _ints(reader, given, 2, x)
        axes = list(range(len(starts))) if at(given, 3) is None else reader.integers(at(given, 3), "axes")
        steps = [1] * len(starts) if at(given, 4) is None else reader.integers(at(given, 4), "steps")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        dim = int(axis) % max(1, x.ndim)
        size = x.shape[dim]
        if dim in x.by_batch:
            if step == 1 and start == 0 and end >= size:
                continue
            reader.refuse("takes some of the images of a batch", "trace-batch")
        if step < 0:
            places = reader.places(size)[slice(start, end if end > -_FAR else None, step)]
            x = _chosen(reader, x, dim, places)
            continue
        begin, stop, _ = slice(start, end, step).indices(size)
        x = _between(reader, x, dim, begin, stop, step)
    return x


def _ints(reader: Reader, given: Given, place: int, x: Value) -> list[int]:
    """Whole numbers of a slice; one that follows the batch is far beyond every end."""
    value = at(given, place)
    if value is None or not value.known:
        reader.refuse("needs its starts and ends as constants")
    pairs = zip(value.worlds[0].reshape(-1).tolist(), value.worlds[1].reshape(-1).tolist(), strict=True)
    return [int(a) if a == b else _FAR for a, b in pairs]


def _chosen(reader: Reader, x: Value, dim: int, places: list[int]) -> Value:
    """Some entries of a dimension, in an order."""
    if places == reader.places(x.shape[dim]):
        return x
    return reader.call("take", x, dim, places)


def _gather(reader: Reader, op: Op, given: Given) -> Value:
    x, places = first(reader, given), at(given, 1)
    assert places is not None
    dim = int(op.attributes.get("axis", 0)) % max(1, x.ndim)
    if x.known and places.known:

        def take(value: Tensor, where: Tensor) -> Tensor:
            where = where.to(torch.int64)
            index = torch.where(where < 0, where + value.shape[dim], where)
            sizes = (*value.shape[:dim], *where.shape, *value.shape[dim + 1 :])
            return value.index_select(dim, index.reshape(-1)).reshape(sizes)

        return reader.compute(take, x, places)
    if not places.known:
        reader.refuse("takes places that depend on the images, which is not known")
    if x.ndim == 1 and all(
        torch.equal(p.reshape(-1), torch.arange(w.numel())) for p, w in zip(places.worlds, x.worlds, strict=True)
    ):
        return shaped(reader, x, (list(places.worlds[0].shape), list(places.worlds[1].shape)))
    if dim in x.by_batch or places.ndim > 1:
        reader.refuse("takes images of the batch by their places, or several dimensions of places", "trace-batch")
    size = x.shape[dim]
    found = [place + size if place < 0 else place for place in (int(p) for p in places.worlds[0].reshape(-1))]
    if places.ndim == 0:
        return reader.call("getitem", x, (*(slice(None) for _ in range(dim)), found[0]))
    return _chosen(reader, x, dim, found)


def _pad(reader: Reader, op: Op, given: Given) -> Value:
    x, amounts = first(reader, given), at(given, 1)
    found = op.attributes.get("pads", op.attributes.get("paddings")) if amounts is None else None
    found = reader.integers(amounts, "pads") if found is None else list(found)
    axes = list(range(x.ndim)) if at(given, 3) is None else reader.integers(at(given, 3), "axes")
    value = at(given, 2)
    fill = float(op.attributes.get("value", 0.0)) if value is None else reader.number(value, "value")
    half, sides = len(found) // 2, [(0, 0)] * x.ndim
    for place, dim in enumerate(axes):
        sides[dim % x.ndim] = (found[place], found[half + place])
    while sides and sides[0] == (0, 0):
        sides.pop(0)
    if x.ndim - len(sides) in x.by_batch and sides:
        reader.refuse("pads the batch", "trace-batch")
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(
        op.attributes.get("mode", "constant")
    )
    if mode is None:
        reader.refuse(f"pads by {op.attributes.get('mode')}, which is not read")
    if not sides:
        return x
    flat = [amount for side in reversed(sides) for amount in side]
    more: dict[str, Any] = {"mode": mode} if mode != "constant" else {"value": fill} if fill else {}
    return reader.call("pad", x, flat, **more)


def _tile(reader: Reader, op: Op, given: Given) -> Value:
    repeats = reader.integers(at(given, 1), "repeats")
    return reader.call("repeat", first(reader, given), tuple(repeats))


def _depth_to_space(reader: Reader, op: Op, given: Given) -> Value:
    x, block = first(reader, given), int(op.attributes.get("blocksize", 1))
    _, channels, height, width = x.shape
    inner, depth_first = channels // block**2, op.attributes.get("mode", "DCR") == "DCR"
    parts = (block, block, inner) if depth_first else (inner, block, block)
    y = reader.call("reshape", x, (-1, *parts, height, width))
    y = reader.call("permute", y, (0, 3, 4, 1, 5, 2) if depth_first else (0, 1, 4, 2, 5, 3))
    return reader.call("reshape", y, (-1, inner, height * block, width * block))


# -- numbers and shapes ------------------------------------------------------------------------------------


def _shape(reader: Reader, op: Op, given: Given) -> Value:
    x = first(reader, given)
    part = slice(op.attributes.get("start", 0), op.attributes.get("end"))
    found = [torch.tensor(list(world.shape)[part], dtype=torch.int64) for world in x.worlds]
    return constant(found[0]) if torch.equal(found[0], found[1]) else Value((found[0], found[1]))


def _size(reader: Reader, op: Op, given: Given) -> Value:
    first_count, second_count = (torch.tensor(world.numel()) for world in first(reader, given).worlds)
    same = torch.equal(first_count, second_count)
    return constant(first_count) if same else Value((first_count, second_count))


def _constant(reader: Reader, op: Op, given: Given) -> Value:
    kinds = ("value", "value_float", "value_int", "value_floats", "value_ints")
    found = next((op.attributes[name] for name in kinds if op.attributes.get(name) is not None), None)
    if found is None:
        reader.refuse("holds no numbers")
    return constant(found if isinstance(found, Tensor) else torch.tensor(found), op.outputs[0])


def _constant_of_shape(reader: Reader, op: Op, given: Given) -> Value:
    sizes, fill = first(reader, given), op.attributes.get("value")
    fill = torch.zeros(1) if fill is None else fill
    if not sizes.known or sizes.worlds[0].numel() > 8:
        reader.refuse("takes a shape that depends on the images")
    made = [
        reader.compute(torch.Tensor.expand, constant(fill.reshape(())), [int(size) for size in world.tolist()])
        for world in sizes.worlds
    ]
    return made[0] if sizes.constant else Value((made[0].worlds[0], made[1].worlds[0]))


def _range(reader: Reader, op: Op, given: Given) -> Value:
    if len(given) != 3 or any(value is None or not value.known for value in given):
        reader.refuse("needs numbers that do not depend on the images")
    found = []
    for world in (0, 1):
        start, stop, step = (value.worlds[world].item() for value in given if value is not None)
        if not step or not 0 <= (stop - start) / step < 1 << 22:
            reader.refuse(f"counts from {start} to {stop} by {step}", "file-too-costly")
        found.append(torch.arange(start, stop, step, dtype=given[0].worlds[0].dtype))  # type: ignore[union-attr]
    return constant(found[0]) if torch.equal(found[0], found[1]) else Value((found[0], found[1]))


def _cast(reader: Reader, op: Op, given: Given) -> Value:
    x = first(reader, given)
    kind = op.attributes.get("to")
    if op.kind == "CastLike":
        like = at(given, 1)
        wanted = None if like is None else like.worlds[0].dtype
    else:
        wanted = _TYPES.get(int(kind or 0))
    if wanted is None:
        reader.refuse(f"turns numbers into ONNX type {kind}, which is not read")
    if x.known:
        found = reader.compute(lambda value: value.to(wanted), x)
        return Value(found.worlds, "", x.name)
    if not wanted.is_floating_point and not (wanted == torch.uint8 and x.step in reader.scaled):
        reader.refuse("rounds values of images to integers, which has no channels to cut")
    return x


def _same(reader: Reader, op: Op, given: Given) -> Value:
    return first(reader, given)


def _on_numbers(run: Callable[..., Any]) -> Convert:
    """An operator that is read only where it depends on no image."""

    def convert(reader: Reader, op: Op, given: Given) -> Value:
        return reader.compute(run, *[value for value in given if value is not None])

    return convert


def _floor(reader: Reader, op: Op, given: Given) -> Value | list[Value]:
    """Round down what depends on no image, or bytes that a half was added to, which stay as they are."""
    before = reader.raised.get(first(reader, given).step)
    return _on_numbers(torch.floor)(reader, op, given) if before is None else before


def _scatter(reader: Reader, op: Op, given: Given) -> Value:
    dim, how = int(op.attributes.get("axis", 0)), op.attributes.get("reduction", "none")

    def run(x: Tensor, places: Tensor, values: Tensor) -> Tensor:
        places = torch.where(places < 0, places + x.shape[dim], places)
        return x.scatter_add(dim, places, values) if how == "add" else x.scatter(dim, places, values)

    if how not in ("add", "none"):
        reader.refuse(f"joins numbers by {how}, which is not read")
    return reader.compute(run, *[value for value in given if value is not None])


def _scatter_nd(reader: Reader, op: Op, given: Given) -> Value:
    how = op.attributes.get("reduction", "none")

    def run(x: Tensor, places: Tensor, values: Tensor) -> Tensor:
        return x.index_put(tuple(places.unbind(-1)), values, accumulate=how == "add")

    if how not in ("add", "none"):
        reader.refuse(f"joins numbers by {how}, which is not read")
    return reader.compute(run, *[value for value in given if value is not None])


def _gather_elements(reader: Reader, op: Op, given: Given) -> Value:
    dim = int(op.attributes.get("axis", 0))
    return reader.compute(lambda x, places: torch.gather(x, dim, places), *[v for v in given if v is not None])


MOVES: dict[str, Convert] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "ScatterElements": _scatter,
    "ScatterND": _scatter_nd,
    "Resize": resize,
    "Upsample": resize,
    "Pad": _pad,
    "Tile": _tile,
    "DepthToSpace": _depth_to_space,
    "Shape": _shape,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Cast": _cast,
    "CastLike": _cast,
    "Identity": _same,
    "Dropout": _same,
    "Size": _size,
    "Floor": _floor,
    "Ceil": _on_numbers(torch.ceil),
    "Round": _on_numbers(torch.round),
    "Sign": _on_numbers(torch.sign),
    "Not": _on_numbers(torch.logical_not),
    "And": _on_numbers(torch.logical_and),
    "Or": _on_numbers(torch.logical_or),
    "Equal": _on_numbers(torch.eq),
    "Less": _on_numbers(torch.lt),
    "LessOrEqual": _on_numbers(torch.le),
    "Greater": _on_numbers(torch.gt),
    "GreaterOrEqual": _on_numbers(torch.ge),
    "Mod": _on_numbers(torch.remainder),
    "Where": _on_numbers(torch.where),
}
