"""What images are: digests, by which work that was kept knows that it is of these, and marks of photographs."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from brickyard.base._records import Preprocessing
from brickyard.inputs._preprocessing import framed

SIZE = 16  # bytes of a digest
_GRID = {torch.float16: 0.07, torch.bfloat16: 0.0}  # how far numbers that were bytes may be from these
_NEAR = 0.01


def digests(images: Tensor) -> Tensor:
    """A digest of each image of a batch, of its type, shape and numbers: (images, 16), uint8.

    Example:
        >>> import torch
        >>> from brickyard.inputs._content import digests
        >>> grey, colour = digests(torch.zeros(2, 1, 8, 8)), digests(torch.zeros(1, 3, 8, 8))
        >>> torch.equal(grey[0], grey[1]), torch.equal(grey[0], colour[0])
        (True, False)
    """
    form = f"{images.dtype} {tuple(images.shape[1:])} ".encode()
    rows = images.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    found = [hashlib.sha256(form + row.tobytes()).digest()[:SIZE] for row in rows]
    return torch.frombuffer(bytearray(b"".join(found)), dtype=torch.uint8).view(-1, SIZE)


def marks(images: Tensor, how: Preprocessing) -> Tensor:
    """What each raw image shows, by which it is known again in another form: (images, 16), uint8.

    A photograph has one mark, be it read from a folder or a table, given as bytes or as these divided by 255, grey or
    grey in three channels, at its own size or at that which `how` brings it to; in a batch of any size. Other numbers
    (normalised ones, signals, cubes) are taken as they are, in float32.

    Example:
        >>> import torch
        >>> from brickyard.base._records import Preprocessing
        >>> from brickyard.inputs._content import marks
        >>> photo, how = torch.arange(192, dtype=torch.uint8).view(1, 3, 8, 8), Preprocessing(size=(4, 4))
        >>> same = marks(photo / 255, how), marks(framed(photo, how), how)
        >>> [torch.equal(marks(photo, how), one) for one in same], torch.equal(marks(photo.flip(3), how), same[0])
        ([True, True], False)
    """
    x = images.detach().cpu()
    whole = torch.ones(len(x), dtype=torch.bool)
    if x.dtype != torch.uint8:
        levels = x.float() * 255
        near = levels.round()
        flat = near.flatten(1)
        low, high = flat.amin(1), flat.amax(1)
        off = (levels - near).abs().flatten(1).amax(1)
        whole = (off <= _GRID.get(x.dtype, _NEAR)) & (low >= 0) & (high <= 255) & (high - low >= 2)
        whole &= x.dim() == 4
        x = torch.where(whole.view(-1, *[1] * (x.dim() - 1)), near, x.float())
    found = torch.zeros(len(x), SIZE, dtype=torch.uint8)
    if bool(whole.any()):
        found[whole] = _of_bytes(x[whole].to(torch.uint8), how)
    if not bool(whole.all()):
        found[~whole] = digests(x[~whole])
    return found


def as_bytes(marks: Tensor) -> list[bytes]:
    """Marks one by one."""
    return [row.tobytes() for row in marks.numpy()]


def _of_bytes(images: Tensor, how: Preprocessing) -> Tensor:
    """The marks of images in bytes."""
    if images.dim() == 4:
        images = framed(images, how)
    grey = (images == images[:, :1]).flatten(1).all(1)
    found = torch.zeros(len(images), SIZE, dtype=torch.uint8)
    for some, own in ((grey, images[:, :1]), (~grey, images)):
        if bool(some.any()):
            found[some] = digests(own[some])
    return found
