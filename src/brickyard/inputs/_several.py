"""Labels of images that belong to several classes at once: rows of 0 and 1, from the forms in which people have them.

Forms are names in one column ("cat|dog", lists, "" for none), a column per class with 0 or 1, arrays (images,
classes), a line for each picture and class, and annotations by category, as in COCO files.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._messages import told
from brickyard.inputs._reading import MAX_CLASSES, examples, note, number_of

SIGNS = ("|", ";", ",")  # between names, the least ambiguous first; else blanks
MAX_CELLS = 1 << 27  # images times classes


@dataclass(frozen=True)
class Rows:
    """Which classes each image belongs to.

    Attributes:
        labels: 0 or 1 for each image and class, (images, classes), int64.
        classes: Class names.
    """

    labels: Tensor
    classes: tuple[str, ...]


def rows_of_sets(sets: Sequence[Collection[int]], classes: Sequence[str], what: str) -> Rows:
    """Rows of 0 and 1 from the classes of each image, as places in `classes`.

    Raises:
        DataError: There are too many.
    """
    if len(sets) * len(classes) > MAX_CELLS:
        size = f"{len(sets):,} images and {len(classes):,} classes"
        raise DataError("data-too-large", f"{what} has {size}, and {MAX_CELLS:,} labels are the limit; divide it")
    labels = torch.zeros(len(sets), len(classes), dtype=torch.long)
    places = [(row, k) for row, found in enumerate(sets) for k in found]
    if places:
        labels[tuple(torch.tensor(places).T)] = 1
    return Rows(labels, tuple(classes))


# -- names in one column -------------------------------------------------------------------------------------------


def rows_of_names(values: Sequence[Any], what: str, classes: Sequence[str] | None = None) -> Rows:
    """Rows of 0 and 1 from a column that names the classes of each image.

    Args:
        values: For each image, a list of names or of indices; or a text such as "cat|dog", "cat;dog", "cat, dog",
            "cat dog" or '["cat", "dog"]'. "", None, NaN and an empty list stand for no class. One sign separates the
            names of the whole column. Lists of as many 0 and 1 as there are classes say which of them an image shows,
            where they cannot be indices because a number is there twice, or two are there in both orders.
        what: What messages call them, such as "a.csv: column 'labels'".
        classes: The class names, where they are known: they tell signs between names from those within.

    Raises:
        DataError: A value is neither, or names an unknown class.

    Example:
        >>> from brickyard.inputs._several import rows_of_names
        >>> found = rows_of_names(["dog|cat", "", "cat"], "a.csv")
        >>> found.classes, found.labels.tolist()
        (('cat', 'dog'), [[1, 1], [0, 0], [1, 0]])
    """
    listed = [_listed(value, f"{what}: row {row}") for row, value in enumerate(values)]
    split = _split([found for found in listed if isinstance(found, str)], what, classes)
    return _named([split(found) if isinstance(found, str) else found for found in listed], what, classes)


def _split(texts: Sequence[str], what: str, classes: Sequence[str] | None) -> Callable[[str], list[str]]:
    """What divides all texts of a column into names: where classes are known, the way that yields no other names."""
    splits = [*map(_by, SIGNS), str.split]
    for fits in () if classes is None else ({*classes}.issuperset, lambda items: _are_places(items, classes)):
        for split in splits:
            if all(fits(split(text)) for text in texts):
                return split
    sign = next((sign for sign in SIGNS if any(sign in text for text in texts)), None)
    split = str.split if sign is None else _by(sign)
    if any(len(split(text)) > 1 for text in texts):
        note(f"{what}: {'a blank' if sign is None else repr(sign)} separates the names of several classes")
    return split


def _by(sign: str) -> Callable[[str], list[str]]:
    return lambda text: [item.strip() for item in text.split(sign) if item.strip()]


def _are_places(items: Sequence[Any], classes: Sequence[str]) -> bool:
    return all((number := number_of(item)) is not None and 0 <= number < len(classes) for item in items)


def _listed(value: Any, what: str) -> str | list[Any]:
    """A value as a text still to be split, or as a list of names and numbers.

    Raises:
        DataError: It is neither.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, str):
        text = value.strip()
        return _bracketed(text[1:-1]) if text[:1] + text[-1:] in ("[]", "{}") else text
    found = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
    if not all(isinstance(item, str) or number_of(item) is not None for item in found):
        raise DataError(
            "data-label-mismatch",
            f"{what} must name classes or hold their indices, and holds {told(repr(value), 60)}; give a list of names",
        )
    return [item.strip() if isinstance(item, str) else item for item in found]


def _bracketed(text: str) -> list[Any]:
    """The items of a list that was written out, by JSON or by Python; nothing is evaluated."""
    try:
        found = json.loads(f"[{text}]")
        if all(isinstance(item, str | int) for item in found):
            return [item.strip() if isinstance(item, str) else item for item in found]
    except (ValueError, RecursionError):
        pass
    quote = "'" if "'" in text else '"'
    (items,) = csv.reader([text], quotechar=quote, skipinitialspace=True) if text.strip() else [[]]
    return [item.strip() for item in items if item.strip()]


def _named(names: Sequence[Sequence[Any]], what: str, classes: Sequence[str] | None) -> Rows:
    """Rows of lists of names, or of indices where all are numbers and the classes have other names.

    Raises:
        DataError: A class is unknown, or an index out of range.
    """
    every = {item for found in names for item in found}
    numbers = {item: number for item in every if (number := number_of(item)) is not None}
    if len(numbers) == len(every) and _are_bits([[numbers[item] for item in found] for found in names], classes):
        note(f"{what}: lists of {len(names[0])} numbers 0 and 1 say for each class whether an image shows it")
        return rows_of_array(np.asarray([[numbers[item] for item in found] for found in names]), what, classes)
    if every and len(numbers) == len(every) and not {*map(str, every)} <= {*(classes or ())}:
        low, high = min(numbers.values()), max(numbers.values())
        count = min(high + 1, MAX_CLASSES) if classes is None else len(classes)
        if low < 0 or high >= count:
            raise DataError(
                "data-label-out-of-range",
                f"{what} holds indices of classes from {low} to {high}, and there are {count}; count them from 0",
            )
        known = [*map(str, range(count))] if classes is None else classes
        return rows_of_sets([{numbers[item] for item in found} for found in names], known, what)
    texts = [[*map(str, found)] for found in names]
    known = sorted({item for found in texts for item in found}) if classes is None else classes
    places = {name: k for k, name in enumerate(known)}
    if unknown := sorted({item for found in texts for item in found} - places.keys()):
        raise DataError(
            "data-label-mismatch",
            f"{what} names {examples(unknown)}, and the classes are {told(', '.join(known), 200)}; name these, with "
            f"one sign between them ({' '.join(SIGNS)} or a blank)",
        )
    if not known:
        raise DataError("data-no-labels", f"{what} names no class in any of {len(names):,} rows; name those shown")
    return rows_of_sets([{places[item] for item in found} for found in texts], known, what)


def _are_bits(rows: Sequence[Sequence[int]], classes: Sequence[str] | None) -> bool:
    """Whether lists of numbers are a 0 or 1 for each class, and no indices: these are not named twice or both ways."""
    count = len(rows[0]) if rows and classes is None else len(classes or ())
    if count < 2 or any(len(row) != count or not {*row} <= {0, 1} for row in rows):
        return False
    return count > 2 or any(len({*row}) < 2 for row in rows) or len({*map(tuple, rows)}) > 1


# -- other forms ---------------------------------------------------------------------------------------------------


def rows_of_columns(columns: Mapping[str, Sequence[Any]], what: str) -> Rows:
    """Rows of 0 and 1 from a table with a column for each class.

    Args:
        columns: The columns of the table but for paths and splits: those of 0 and 1 (or true and false) are classes.
            The others are left out, which is said.
        what: What messages call the table.

    Raises:
        DataError: No column is of 0 and 1, or one of 0 and 1 also holds -1 or nothing.

    Example:
        >>> from brickyard.inputs._several import rows_of_columns
        >>> found = rows_of_columns({"cat": ["1", "0"], "dog": ["1", "1"], "age": ["7", "12"]}, "a.csv")
        >>> found.classes, found.labels.tolist()
        (('cat', 'dog'), [[1, 1], [0, 1]])
    """
    read = {name: [_bit(value) for value in values] for name, values in columns.items()}
    kept = {name: bits for name, bits in read.items() if None not in bits and any(bit in (0, 1) for bit in bits)}
    for name, bits in kept.items():
        if unknown := [row for row, bit in enumerate(bits) if bit == -1]:
            raise DataError(
                "data-label-mismatch",
                f"{what}: column {told(repr(name), 60)} has 0 and 1, but {len(unknown):,} of {len(bits):,} rows have "
                f"-1 or nothing, such as row {unknown[0]}; decide on these, or leave the column out",
            )
    if not kept:
        raise DataError(
            "data-label-mismatch",
            f"{what} has no column of 0 and 1 among {examples(list(columns), 8)}; give one column per class",
        )
    if left := [name for name in read if name not in kept]:
        note(f"{what}: columns with other values than 0 and 1 were left out: {told(', '.join(left), 200)}")
    sets = [[k for k, bit in enumerate(row) if bit] for row in zip(*kept.values(), strict=True)]
    return rows_of_sets(sets, list(kept), what)


def _bit(value: Any) -> int | None:
    """1 and 0 for yes and no, -1 where it is left open, None for other values."""
    word = "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip().casefold()
    known = {"true": 1, "false": 0, "yes": 1, "no": 0, "": -1, "nan": -1}
    number = known.get(word, number_of(word))
    return number if number in (-1, 0, 1) else None


def rows_of_array(array: np.ndarray[Any, Any] | Tensor, what: str, classes: Sequence[str] | None = None) -> Rows:
    """Rows of 0 and 1 from an array of any type, as those that training with a sigmoid takes.

    Args:
        array: (images, classes), of 0 and 1.
        what: What messages call it.
        classes: The class names; None: "0", "1", ...

    Raises:
        DataError: It has another shape or other values, or not as many columns as names.
    """
    found = torch.as_tensor(array)
    if found.ndim != 2 or not found.numel():
        raise DataError(
            "data-label-mismatch",
            f"{what} must have one row of 0 and 1 per image, (images, classes), got shape {tuple(found.shape)}",
        )
    wrong = (found != 0) & (found != 1)
    if bool(wrong.any()):
        row, k = wrong.nonzero()[0].tolist()
        raise DataError(
            "data-label-out-of-range",
            f"{what} must hold 0 and 1 alone, and holds {float(found[row, k]):g} in row {row}, column {k}; give 1 for "
            "each class that an image shows",
        )
    names = tuple(map(str, range(found.shape[1]))) if classes is None else tuple(classes)
    if len(names) != found.shape[1]:
        raise DataError(
            "data-class-names", f"{what} has {found.shape[1]} columns for {len(names)} class names; give one for each"
        )
    return Rows(found.long(), names)


def rows_of_pairs(
    pictures: Sequence[str], values: Sequence[Any], what: str, classes: Sequence[str] | None = None
) -> tuple[list[str], Rows]:
    """Rows of 0 and 1 from a table with a line for each picture and class, as of objects in pictures.

    Args:
        pictures: The picture of each line.
        values: What each line names, as for `rows_of_names`.
        what: What messages call the table.
        classes: The class names, where they are known.

    Returns:
        Every picture once, in the order of first lines, and its row.

    Raises:
        DataError: A line names no class as it should.
    """
    lines = rows_of_names(values, what, classes)
    once = {picture: k for k, picture in enumerate(dict.fromkeys(pictures))}
    found = torch.zeros(len(once), len(lines.classes), dtype=torch.long)
    found.index_add_(0, torch.tensor([once[picture] for picture in pictures]), lines.labels)
    return list(once), Rows(found.clamp(max=1), lines.classes)


def rows_of_ids(kinds: Sequence[Collection[int]], names: Mapping[int, str], what: str) -> Rows:
    """Rows of 0 and 1 from the categories of each image, as COCO files number them; images may have none.

    Args:
        kinds: For each image, the numbers of its categories.
        names: The name of each number, in the order of the classes.
        what: What messages call them.

    Raises:
        DataError: A category has no name, or two have one.
    """
    if unknown := sorted({number for found in kinds for number in found} - names.keys()):
        raise DataError("data-damaged-file", f"{what} has no category {unknown[0]}; get a fresh copy")
    if len(set(names.values())) < len(names):
        raise DataError("data-class-names", f"{what} has two categories of one name; rename one of them")
    places = {number: k for k, number in enumerate(names)}
    return rows_of_sets([{places[number] for number in found} for found in kinds], list(names.values()), what)


def one_each(labels: Tensor, count: int, what: str) -> Tensor:
    """Rows of 0 and 1 from one class index per image, of which all other classes are taken to be absent; said."""
    note(f"{what}: one label per image: all other classes count as absent from it")
    return torch.nn.functional.one_hot(labels, count)
