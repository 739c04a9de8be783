"""A preprocessing as the text of a function that does exactly the same: the same operations in the same order."""

from __future__ import annotations

import math

import torch

from brickyard.base._records import Preprocessing
from brickyard.base._sides import NAMES, axes_text
from brickyard.export._spelling import literal, wrapped
from brickyard.inputs._preprocessing import LUMA, PLACES

_RESAMPLING = '''
def resampling(before, after, like, new):
    """The matrix that resamples one side of an image to `after` pixels, its rows for the pixels `new`, (rows, 1)."""
    scale = torch.scalar_tensor(before, dtype=torch.float64, device=like.device) / after
    old = torch.arange({old}, dtype=torch.float64, device=like.device)[None, :] + {first}
    new = (new + 0.5) * scale
    far = (old - new).abs(){reach}
'''
_BILINEAR = """
    weight = (1 - far).clamp(min=0)
"""
_BICUBIC = """
    a = {a}
    near = ((a + 2) * far - (a + 3)) * far * far + 1
    wide = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    weight = torch.where(far <= 1, near, torch.where(far < 2, wide, 0.0))
"""
_EDGES = """
    place = (old[0] - 0.5).clamp(0, before - 1).long()  # beyond its sides an image goes on as at them
    weight = weight.new_zeros(len(new), before).index_add(1, place, weight)
"""
_ROWS = """
    return (weight / weight.sum(1, keepdim=True)).to(like.dtype)
"""
_RESIZED = '''
def resized(images):
    """Scale images {until} {goals[0]} x {goals[1]}{middle}."""{same}
    x = images.double() if images.dtype == torch.uint8 else images
    sides = [torch.scalar_tensor(side, dtype=torch.float64, device=x.device) for side in x.shape[2:]]{factor}
    found = []
    for before, side, after, goal in zip(x.shape[2:], sides, ({height}, {width}), ({goals[0]}, {goals[1]})):
        cover = {cover}
        start = ((cover - after) / 2).round()
        new = torch.arange(after, dtype=torch.float64, device=x.device)[:, None] + start
        found.append(resampling(before, cover, x, new))
    down, across = found
    if images.dtype != torch.uint8:
        return down @ (x @ across.T)
{rounded}
'''
_SAME = """
    if tuple(images.shape[2:]) == ({height}, {width}):
        return images"""
_FACTOR = """
    factor = torch.maximum({goals[0]} / sides[0], {goals[1]} / sides[1])"""
_ROUNDED = """    down, across = ((weights * {places}).round() / {places} for weights in found)
    x = (x @ across.T + 0.5).floor().clamp(0, 255)
    return (down @ x + 0.5).floor().clamp(0, 255).to(torch.uint8)"""
_SMOOTHLESS = "    return (down @ (x @ across.T) + 0.5).floor().clamp(0, 255).to(torch.uint8)"
_COVERING = "torch.clamp((side * factor + 1e-6).floor(), min=goal)"
_SQUASHED = "torch.full_like(side, goal)"
_PADDED = '''
def padded(images):
    """Pad images (batch, channels, height, width) to {height} x {width}, or scale them to it if they are larger."""
    down, right = {height} - images.shape[2], {width} - images.shape[3]
    if down < 0 or right < 0:
        return resized(images)
    return F.pad(images, {amounts}{value})
'''
_BRINGING = {"pad": "padded", "letterbox": "letterboxed"}
_AMOUNTS = {
    "centre": "(right // 2, right - right // 2, down // 2, down - down // 2)",
    "corner": "(0, right, 0, down)",
}
_LETTERBOXED = '''
def letterboxed(images):
    """Scale images by one factor until they just fit into {height} x {width}, and place them in the {place}."""
    if tuple(images.shape[2:]) == ({height}, {width}):
        return images
    x = images.double() if images.dtype == torch.uint8 else images
    sides = [torch.scalar_tensor(side, dtype=torch.float64, device=x.device) for side in x.shape[2:]]
    factor = torch.minimum({height} / sides[0], {width} / sides[1])
    found, inside = [], []
    for before, side, goal in zip(x.shape[2:], sides, ({height}, {width})):
        cover = (side * factor + 1e-6).floor().clamp(min=1)
        new = torch.arange(goal, dtype=torch.float64, device=x.device){start}
        inside.append((new >= 0) & (new < cover))
        found.append(resampling(before, cover, x, torch.minimum(new.clamp(min=0), cover - 1)[:, None]))
    inside = inside[0][:, None] & inside[1]
    down, across = found
    if images.dtype != torch.uint8:
        shown = down @ (x @ across.T)
        return torch.where(inside, shown, torch.scalar_tensor({fill}, dtype=x.dtype, device=x.device))
{rounded}
    return torch.where(inside, shown, torch.scalar_tensor({byte}, dtype=torch.uint8, device=x.device))
'''


def preprocessing_text(how: Preprocessing, dtype: torch.dtype, sides: int, name: str = "preprocess") -> str:
    """Functions that turn raw images into a network's input, of which the last is called `name`.

    Args:
        how: The preprocessing.
        dtype: The type of the network's numbers.
        sides: How many sides its inputs have: two for pictures, one for signals, three for cubes.
        name: The name; what it begins with goes in front of the names of the other functions too.
    """
    prefix = name.removesuffix("preprocess")
    parts = [_body(how, dtype, sides, name)]
    if how.size is not None:
        bringing = [_letterboxing(how)] if how.fit == "letterbox" else [_resizing(how)]
        parts = [_resampling(how), *bringing, *([_padding(how)] if how.fit == "pad" else []), *parts]
    text = "\n\n".join(part.strip("\n") + "\n" for part in parts)
    for helper in ("resampling", "resized", "padded", "letterboxed") if prefix else ():
        text = text.replace(f"{helper}(", f"{prefix}{helper}(")
    return text


def _resizing(how: Preprocessing) -> str:
    assert how.size is not None
    (height, width), covers = how.size, how.fit == "crop"
    goals = [math.floor(side / (how.crop if how.crops else 1.0) + 1e-6) for side in how.size]
    return _RESIZED.format(
        height=height,
        width=width,
        goals=goals,
        until="until they just cover" if covers else "to",
        middle=f", and take the middle {height} x {width} of them" if how.crops else "",
        same=_SAME.format(height=height, width=width) if goals == [height, width] else "",
        factor=_FACTOR.format(goals=goals) if covers else "",
        cover=_COVERING if covers else _SQUASHED,
        rounded=_ROUNDED.format(places=PLACES) if how.antialias else _SMOOTHLESS,
    )


def _padding(how: Preprocessing) -> str:
    assert how.size is not None
    height, width = how.size
    value = ""
    if how.fill:
        value = f", value={math.floor(255 * how.fill + 0.5)} if images.dtype == torch.uint8 else {how.fill!r}"
    return _PADDED.format(height=height, width=width, amounts=_AMOUNTS[how.place], value=value)


def _letterboxing(how: Preprocessing) -> str:
    assert how.size is not None
    height, width = how.size
    rounded = _ROUNDED.format(places=PLACES) if how.antialias else _SMOOTHLESS
    return _LETTERBOXED.format(
        height=height,
        width=width,
        place="middle" if how.place == "centre" else "top left corner",
        start=" - ((goal - cover) / 2).floor()" if how.place == "centre" else "",
        fill=repr(how.fill),
        byte=math.floor(255 * how.fill + 0.5),
        rounded=rounded.replace("    return ", "    shown = "),
    )


def _resampling(how: Preprocessing) -> str:
    head = _RESAMPLING.format(
        old="before" if how.antialias else "before + 4",
        first="0.5" if how.antialias else "0.5 - 2",
        reach=" / scale.clamp(min=1.0)" if how.antialias else "",
    )
    curve = _BILINEAR if how.interpolation == "bilinear" else _BICUBIC.format(a=-0.5 if how.antialias else -0.75)
    edges = "" if how.antialias else _EDGES
    return "\n".join(part.strip("\n") for part in (head, curve, edges, _ROWS) if part) + "\n"


def _body(how: Preprocessing, dtype: torch.dtype, sides: int, name: str) -> str:
    """The function that calls the others."""
    first, *more = _told(how, sides)
    lines = [f"def {name}(images):", f'    """{first}' + ("" if more else '"""')]
    lines += [f"    {line}".rstrip() for line in more] + (['    """'] if more else [])
    lines.append("    if images.dtype != torch.uint8 and not images.is_floating_point():")
    lines.append('        raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")')
    lines.append("    x = images if images.dtype in (torch.uint8, torch.float64) else images.float()")
    if how.size is not None:
        lines.append(f"    x = {_BRINGING.get(how.fit, 'resized')}(x)")
    lines += ["    if x.dtype == torch.uint8:", "        x = x.float() / 255"]
    if how.channels == 3:
        lines += ["    if x.shape[1] == 1:", "        x = x.expand(-1, 3, -1, -1)"]
    if how.channels == 1:
        red, green, blue = LUMA
        lines.append("    if x.shape[1] == 3:")
        lines.append(f"        x = {red} * x[:, 0:1] + {green} * x[:, 1:2] + {blue} * x[:, 2:3]")
    if how.order == "bgr":
        lines.append("    if x.shape[1] != 3:")
        lines.append('        raise ValueError(f"images must have 3 channels, got {x.shape[1]}")')
        lines.append("    x = x.flip(1)")
    if how.mean is not None and how.std is not None:
        if len(how.mean) > 1:
            lines.append(f"    if x.shape[1] != {len(how.mean)}:")
            lines.append(f'        raise ValueError(f"images must have {len(how.mean)} channels, got {{x.shape[1]}}")')
        for word, values in (("mean", how.mean), ("std", how.std)):
            lines += wrapped(f"{word} = torch.tensor({literal(values)}, dtype=x.dtype, device=x.device)", 4)
        ones = ", ".join(["1", "-1", *["1"] * sides])
        lines.append(f"    x = (x - mean.reshape({ones})) / std.reshape({ones})")
    lines.append(f"    return x.to({dtype})")
    return "\n".join(lines) + "\n"


def raw_text(sides: int) -> str:
    """What the functions take, for a docstring."""
    values = "uint8 or in [0, 1]" if sides == 2 else "uint8 or floating point"
    return f"{NAMES[sides]} {axes_text(sides, 'batch')}, {values}"


def _told(how: Preprocessing, sides: int) -> list[str]:
    """What a preprocessing does, as the lines of a docstring."""
    lines = [f"Turn raw {raw_text(sides)}, into what the network takes."]
    more: list[str] = []
    if how.size is not None:
        word = {
            "resize": "resized and cropped" if how.crops else "resized",
            "crop": "scaled and cropped",
            "pad": "padded, or resized where they are larger,",
            "letterbox": "letterboxed",
        }
        smooth = "with" if how.antialias else "without"
        more.append(f"{word[how.fit]} to {how.size[0]} x {how.size[1]} ({how.interpolation}, {smooth} antialiasing)")
    if how.channels is not None:
        more.append("turned into colour" if how.channels == 3 else "turned into grey")
    if how.order == "bgr":
        more.append("turned to BGR")
    if how.mean is not None:
        more.append("normalised")
    if how.unknown:
        more = []
        lines += ["", "How the images were prepared that the source was located on is not known: only give images that"]
        lines += ["are prepared as the source takes them."]
    elif not more:
        lines += ["", "The source was located on images as they are: give images that are prepared as it takes them."]
    for index, one in enumerate(more):
        lines += ["", f"They are {one}"] if index == 0 else []
        lines[-1] += f"{' and' if index == len(more) - 1 else ','} {one}" if index else ""
    lines[-1] += "." if more else ""
    return lines
