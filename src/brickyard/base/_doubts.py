"""Where a component is likely to be bad: what was too little when it was made, and what to collect.

All of it follows from counts in its manifest, so that it is known wherever the file is.
"""

from __future__ import annotations

from brickyard.base._records import AssemblyManifest, ComponentManifest

ENOUGH = 60  # images to repair with, of which a third can be held back to see what the repair is worth
SEEN = 20  # images held back, of which a share means something
LOW = 0.8  # share of these on which the source's answer is given
PER_CLASS = 5  # images of a class, whose statistics scaling relies on
MORE = "give 300 more: any photographs help, and labels are not needed"


def doubts(manifest: ComponentManifest | AssemblyManifest) -> tuple[str, ...]:
    """What makes a model likely to be bad, a sentence each; those of an assembly's parts begin with the part.

    Example:
        >>> import brickyard as by, torch, warnings
        >>> from brickyard.base._doubts import doubts
        >>> from brickyard.testing import chain
        >>> warnings.simplefilter("ignore")
        >>> data = torch.rand(3, 3, 8, 8), torch.arange(3)
        >>> part = by.disassemble(chain(), by.locate(chain(), data, task=[0, 1, 2]), task=[0, 1, 2])
        >>> [text.partition(":")[0][:28] for text in doubts(part.manifest)]
        ['it was repaired with 3 image', 'it has seen 1 image of class']
    """
    if isinstance(manifest, ComponentManifest):
        return (*of_repair(manifest), *(() if manifest.statistics is None else of_statistics(manifest)))
    compared = len(manifest.parts) > 1 and not manifest.scaling.images and not any(manifest.votes)
    return tuple(
        f"part {k} ({', '.join(part.classes[:3])}{', ...' if len(part.classes) > 3 else ''}): {text}"
        for k, part in enumerate(manifest.parts)
        for text in [*of_repair(part), *(of_statistics(part) if compared else [])]
    )


def share_held(same: int, count: int, what: str = "images") -> str:
    """On how many of the images held back an answer is the same: a share, where they are enough for one.

    Example:
        >>> from brickyard.base._doubts import share_held
        >>> share_held(29, 33), share_held(9, 9)
        ('87.9% of 33 images held back', '9 of 9 images held back, too few to tell')
    """
    if count < SEEN:
        return f"{same:,} of {count:,} {what} held back, too few to tell"
    return f"{same / count:.1%} of {count:,} {what} held back"


def of_repair(part: ComponentManifest) -> list[str]:
    """Whether a component was repaired with too few images, or badly."""
    if len(part.input_shape) < 2 or part.tuned is not None:  # a graph's nodes; other weights than were repaired
        return []
    heal, (same, count) = part.heal, part.agreement or (0, 0)
    if count >= SEEN:
        of = f"on only {same / count:.1%} of {count:,} images"
        said = f"it gives its source's answer {of} held back"
        if part.boxes is not None:
            said = f"it and its source find only {same / count:.1%} of {count:,} boxes in images held back alike"
        return [] if same >= LOW * count else [f"{said}: keep more of the source (a larger budget), or {MORE}"]
    if heal.method == "none" or heal.images + heal.held >= ENOUGH:
        return []
    many = _counted(heal.images + heal.held)
    return [f"it was repaired with {many}: too few to repair it well, or to see how well it answers; {MORE}"]


def of_statistics(part: ComponentManifest) -> list[str]:
    """Whether a component's answers cannot be compared well with those of other parts."""
    if len(part.input_shape) < 2 or part.outputs != "one":
        return []
    advice = "its answers cannot be compared well with those of other parts: give 50 labelled images of each class"
    if part.statistics is None:
        return [f"it was made without labelled images, so {advice}"]
    seen = part.statistics.images
    if min(seen) >= PER_CLASS:
        return []
    return [f"it has seen {_counted(min(seen))} of class {part.classes[seen.index(min(seen))]}, so {advice}"]


def _counted(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"
