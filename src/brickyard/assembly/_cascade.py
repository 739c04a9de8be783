"""Cascades: parts run in turn, and later ones only for images whose answer is still open."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from brickyard.assembly._assembly import Assembly
from brickyard.assembly._labelled import Shared
from brickyard.assembly._turns import Turns, features, fitted, ranked, rejected, separable, so_far, turns
from brickyard.base._cascades import CascadeRecord
from brickyard.base._errors import BrickyardWarning, DataError, OptionError
from brickyard.base._history import UsedRecord
from brickyard.base._records import AssemblyManifest
from brickyard.component._predictor import run_images
from brickyard.inputs._batches import Images
from brickyard.inputs._content import as_bytes, marks
from brickyard.inputs._datasets import ImageData
from brickyard.inputs._decoding import read_images
from brickyard.inputs._folders import pictures_in
from brickyard.inputs._preprocessing import check_raw, preprocess
from brickyard.runtime._profiling import count_flops
from brickyard.scaling._scale import with_reject

AGREEMENT = 0.99
DOUBT = 0.05  # the chance that fewer images than wanted are answered as by all parts
LOW = 0.1  # of a part's own answers are below what is one spread below the usual
HAIR = 1e-9
WHAT = "the calibration images"
MOST_BYTES = 1 << 26  # of a batch of pictures that are read one by one


def check_cascade(manifest: AssemblyManifest, exclusive: bool) -> None:
    """Refuse parts that cannot run in turn, before any work.

    Raises:
        OptionError: There is one only, or their answers depend on each other.
    """
    if len(manifest.parts) < 2:
        raise OptionError("option-conflict", "form='cascade' runs parts in turn, and there is one: use form='parallel'")
    why = ""
    if not exclusive:
        why = "an image may belong to classes of several parts, so all of them have to run"
    elif not manifest.plain:
        why = "several parts know a class, so its answer needs all of them"
    if why:
        raise OptionError("option-conflict", f"form='cascade' runs parts in turn, and {why}; use form='parallel'")


def cascaded(whole: Assembly, given: Any, wanted: float | None, seed: int, batch_size: int = 64) -> Assembly:
    """Let the parts of an assembly run in turn.

    Half of the images, drawn at random, tell how to guess an image's part from a glance at it, and what parts usually
    say. On the other half, the thresholds are the lowest at which so few answers differ from those of all parts that,
    with 95 % confidence, the wanted share of images agrees. They are lowered together, each in units of the spread of
    its part's own answers, so there is one number to choose, and the binomial distribution holds for it. With reject,
    "none of these" is an answer like others.

    Args:
        whole: The assembly, in parallel form.
        given: Images without labels, of the kind and in the shares that it will see.
        wanted: The share of images to be answered as by all parts; None stands for `AGREEMENT`.
        seed: Draws the halves.
        batch_size: The number of images to process at once.

    Raises:
        OptionError: The scaling reads the logits of all parts.
        DataError: The images cannot be used, or are too few.
    """
    wanted, owner = AGREEMENT if wanted is None else wanted, [owners[0] for owners in whole.manifest.owners]
    if not separable(whole.matrix, owner):
        name = whole.manifest.scaling.name
        why = f"scaling={name!r} reads the logits of all parts at once, and a cascade runs without some"
        advice = "choose scaling='auto' without images=, or 'affine', or form='parallel'"
        raise OptionError("option-needs-parallel-form", f"{why}; {advice}")
    logits, unknown, seen, used = _observed(whole, given, batch_size)
    least, held = math.ceil(math.log(DOUBT) / math.log(wanted)), len(logits) // 2
    if held < least:
        why = f"{len(logits):,} calibration images are too few to see whether {wanted:.4g} of the answers agree"
        raise DataError("data-too-few", f"{why}: give {2 * least:,} or more, or a lower agreement=")
    drawn = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    own, others = drawn[held:], drawn[:held]
    costs = [count_flops(network, shape) for network, shape in whole.shaped_networks()]
    winners = torch.tensor(owner)[logits[own].argmax(1)]
    glance = fitted(seen[own], winners, costs)
    order = ranked(seen[others].float() @ glance.weights.T + glance.bias)
    expected, none = _expected(logits[own], winners, owner), None if unknown is None else unknown[others]
    never = _rejected(expected, owner, logits[others], order, none)
    record = CascadeRecord(
        thresholds=_thresholds(logits, own, others, order, owner, 1 - wanted, never),
        expected=expected,
        wanted=wanted,
        images=len(logits),
        held_back=held,
        agreement=0,
        flops=0,
    )
    course = turns(record, owner, logits[others], order, none)
    record = record.model_copy(update=measured(whole.manifest, course, logits[others], costs, none))
    if record.flops >= 1:
        why = f"parts that run in turn took {record.flops:.2f} of the FLOPs of all at once on the calibration images"
        warnings.warn(f"{why}; use form='parallel'", BrickyardWarning, stacklevel=5)
    changes = {"form": "cascade", "cascade": record, "used": used.joined(whole.manifest.used)}
    known = [part.familiarity for part in whole.components()]
    made = whole.manifest.model_copy(update=changes)
    return Assembly(
        whole.networks(), made, whole.matrix, whole.shift, whole.skeletons, known, None, whole.sharing, glance
    )


def measured(
    manifest: AssemblyManifest, course: Turns, logits: Tensor, costs: Sequence[int], unknown: Tensor | None = None
) -> dict[str, float]:
    """What images took, as a share of the FLOPs of all parts, and the share that is answered as by these."""
    same = with_reject(course.logits, course.unknown).argmax(1) == with_reject(logits, unknown).argmax(1)
    together = max(1, sum(costs) - manifest.shared_flops)
    return {"agreement": float(same.double().mean()), "flops": course.flops(costs) / together}


def course_of(whole: Assembly, examples: Shared, logits: Tensor, batch_size: int = 64) -> Turns:
    """The course of labelled images through a cascade, where the scaled logits of all parts are known."""
    record = whole.manifest.cascade
    assert record is not None
    order: list[Tensor] = []
    with torch.inference_mode():
        for pool, own in zip(examples.pools, examples.chosen, strict=True):
            order += [whole.order(x).cpu() for x, _ in (pool.raw(own, batch_size) if pool is not None else ())]
    return turns(record, [owners[0] for owners in whole.manifest.owners], logits, torch.cat(order), examples.unknown)


def most_wrong(images: int, share: float, doubt: float) -> int:
    """The most wrong answers among so many at which, if more than `share` were wrong, fewer had a chance of `doubt`."""
    chance, count = 0.0, 0
    while count <= images:
        ways = math.lgamma(images + 1) - math.lgamma(count + 1) - math.lgamma(images - count + 1)
        chance += math.exp(ways + count * math.log(share) + (images - count) * math.log1p(-share))
        if chance > doubt:
            break
        count += 1
    return count - 1


def _expected(logits: Tensor, winners: Tensor, owner: Sequence[int]) -> tuple[float, ...]:
    """The mean logit of each class on the images of other parts, or on all if there are none."""
    found = []
    for place, part in enumerate(owner):
        others = logits[winners != part, place]
        found.append(float((others if len(others) else logits[:, place]).mean()))
    return tuple(found)


def _thresholds(
    logits: Tensor, own: Tensor, others: Tensor, order: Tensor, owner: Sequence[int], share: float, never: Tensor
) -> tuple[float | None, ...]:
    """The lowest thresholds of each part, for which at most so large a share of images is answered in another way.

    Args:
        logits: Those of all classes, (images, classes).
        own: The images that tell what is usual.
        others: Those that the thresholds are chosen on.
        order: The parts in the order of each of these, (images, parts).
        owner: The part of each class.
        share: The share.
        never: As from `_rejected`.
    """
    parts, count = torch.tensor(owner), order.shape[1]
    best = torch.stack([logits[:, parts == part].amax(1) for part in range(count)], 1)  # (images, parts)
    winners = best[own].argmax(1)
    expected = torch.tensor(_expected(logits[own], winners, owner), dtype=best.dtype)
    least = torch.stack([expected[parts != part].max() for part in range(count)])
    usual, spread = torch.full((count,), torch.inf, dtype=best.dtype), torch.ones(count, dtype=best.dtype)
    for part in winners.unique().tolist():
        wins = best[own][winners == part, part]
        usual[part] = wins.median()
        spread[part] = (wins.median() - wins.quantile(LOW)).clamp_min(1e-6)
    doubtful = _doubtful(best[others], order, least, usual, spread, never)
    most = most_wrong(len(others), share, DOUBT)
    level = doubtful.sort(descending=True).values[most]
    hair = HAIR * (usual.abs() + spread)  # rounding must not make the image final that the level stands for
    found = torch.maximum(least, usual + level * spread + hair)
    return tuple(float(value) if math.isfinite(value) else None for value in found.tolist())


def _rejected(
    expected: Sequence[float], owner: Sequence[int], logits: Tensor, order: Tensor, unknown: Tensor | None
) -> Tensor:
    """Whether images are answered as none of the classes after each turn: bool, (images, parts)."""
    found, done = [], torch.zeros(order.shape, dtype=torch.bool)
    for turn in range(order.shape[1]):
        done = done.scatter(1, order[:, turn : turn + 1], True)
        now, _, none = so_far(expected, owner, logits, done, unknown)
        found.append(rejected(now, none))
    return torch.stack(found, 1)


def _doubtful(best: Tensor, order: Tensor, least: Tensor, usual: Tensor, spread: Tensor, never: Tensor) -> Tensor:
    """How sure the surest wrong answer is that each image has before all its parts have run, (images,).

    It is in spreads above what is usual for the part that answers; minus infinity where no answer is wrong. An answer
    that is wrong was so at every turn before, so whatever the threshold, an image is answered in another way than by
    all parts if and only if this is above it. An image that all parts together turn away is answered wrongly with any
    class, and one that is turned away so far goes on to the next part.

    Args:
        best: The best logit of each part, (images, parts).
        order: The parts in the order of each image, (images, parts).
        least: What an answer of each part must be above in any case, (parts,).
        usual: The best logit that is usual for an image of a part's own, (parts,).
        spread: What is lower than that by so much is rare, (parts,).
        never: As from `_rejected`.
    """
    known = torch.zeros_like(best, dtype=torch.bool)
    found = torch.full((len(best),), -torch.inf, dtype=best.dtype)
    for turn in range(best.shape[1] - 1):
        known = known.scatter(1, order[:, turn : turn + 1], True)
        value, part = best.masked_fill(~known, -torch.inf).max(1)
        wrong = ((value < best.amax(1)) | never[:, -1]) & (value > least[part]) & ~never[:, turn]
        found = torch.where(wrong, torch.maximum(found, (value - usual[part]) / spread[part]), found)
    return found


# -- images ------------------------------------------------------------------------------------------------


def _observed(whole: Assembly, given: Any, batch_size: int) -> tuple[Tensor, Tensor | None, Tensor, UsedRecord]:
    """The logits of all classes, what `unknown` says, and the features of a glance, for each image: (images, ...).

    Also which images these are, as each part is shown them.
    """
    ways = list({how.frame: how for how in whole.preprocessings}.values())
    shown: set[bytes] = set()
    first = whole.manifest.parts[0]
    logits: list[Tensor] = []
    unknown: list[Tensor] = []
    seen: list[Tensor] = []
    with torch.inference_mode():
        for batch in _batches(given, batch_size, first.input_shape):
            for how in whole.preprocessings:
                check_raw(batch, how, WHAT)
            shown.update(mark for how in ways for mark in as_bytes(marks(batch, how)))
            found, none, _ = run_images(whole.without_reject, batch, WHAT)
            logits.append(found.double().cpu())
            unknown += [] if none is None else [none.double().cpu()]
            seen.append(features(preprocess(batch, first.preprocessing).float()).cpu())
    if not logits:
        raise DataError("data-no-images", "calibration= holds no images; give some of the kind that it will see")
    if len({values.shape[1] for values in seen}) > 1:
        why = "the calibration images differ in size, and the first part takes them as they are"
        raise DataError("data-not-batchable", f"{why}; bring them to one size")
    rest = torch.cat(unknown) if unknown else None
    return torch.cat(logits), rest, torch.cat(seen), UsedRecord.of(shown)


def _batches(given: Any, batch_size: int, shape: Sequence[int]) -> Iterator[Tensor]:
    """Raw batches of images in any form that a verb takes, whose labels are not looked at, or of a list of these."""
    if isinstance(given, str | Path) and Path(given).is_dir():
        given = pictures_in(Path(given))
    if isinstance(given, ImageData):
        yield from given.batches(batch_size)
    elif _labelled(given):
        yield from (images for images, _ in Images(given, None, WHAT).raw(None, batch_size))
    elif isinstance(given, list | tuple) and any(_several(item) for item in given):
        for item in given:
            yield from _batches(item, batch_size, shape)
    elif isinstance(given, list | tuple):
        yield from _together((one for item in given for one in read_images([item], 1, shape)), batch_size)
    else:
        yield from read_images(given, batch_size, shape)


def _together(images: Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Images that were read one by one, in batches of one size."""
    held: list[Tensor] = []
    for one in images:
        full = len(held) == batch_size or sum(image.nbytes for image in held) > MOST_BYTES
        if held and (full or (one.shape, one.dtype) != (held[0].shape, held[0].dtype)):
            yield torch.cat(held)
            held = []
        held.append(one)
    if held:
        yield torch.cat(held)


def _labelled(given: Any) -> bool:
    pair = isinstance(given, tuple) and len(given) == 2 and all(isinstance(item, Tensor) for item in given)
    return isinstance(given, Dataset | DataLoader) or (pair and given[1].dim() < 3)


def _several(item: Any) -> bool:
    """Whether an item of a list is not one image."""
    batch = isinstance(item, Tensor) and item.dim() > 3
    folder = isinstance(item, str | Path) and Path(item).is_dir()
    return batch or folder or isinstance(item, list | ImageData) or _labelled(item)
