"""Class names, and the classes that a task names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from brickyard.base._checks import is_whole
from brickyard.base._errors import TaskError
from brickyard.base._messages import brief, near, writable

MOST_LETTERS = 1024  # of a name, as in files


def parse_classes(texts: Sequence[str], names: Sequence[str]) -> list[int | str]:
    """Parse strings such as "0-2,7" or "cat,dog" to classes: by name where possible, otherwise by index and range.

    Where every class is named by a number, numbers and ranges are names and never indices: a folder of classes "0" to
    "10" has its outputs in the order 0, 1, 10, 2.

    Raises:
        TaskError: A range runs backwards or beyond the classes.
    """
    found: list[int | str] = []
    numbered = all(map(_is_number, names))
    for text in texts:
        for item in [text] if text in names else text.split(","):
            item = item.strip()
            first, dash, last = item.partition("-")
            if item in names:
                found.append(item)
            elif dash and _is_number(first) and _is_number(last):
                if int(last) < int(first):
                    raise TaskError(
                        "task-range",
                        f"range {item!r} runs backwards; write {last}-{first}, or list the classes in order",
                    )
                if numbered:
                    found += _numbered(item, int(first), int(last), names)
                    continue
                if int(last) >= len(names):
                    raise TaskError(
                        "task-range", f"range {item!r} goes beyond the classes 0 to {len(names) - 1}; end it there"
                    )
                found += range(int(first), int(last) + 1)
            elif _is_number(item) and not numbered:
                found.append(int(item))
            elif item:
                found.append(item)
    return found


def _numbered(item: str, first: int, last: int, names: Sequence[str]) -> list[str]:
    """The names in a range, where every class is named by a number."""
    numbers = sorted(map(int, names))
    missing = next((number for number in range(first, last + 1) if str(number) not in names), None)
    if missing is not None:
        whole = numbers == list(range(numbers[0], numbers[-1] + 1))
        known = f"{numbers[0]} to {numbers[-1]}" if whole else _list(list(map(str, numbers)))
        raise TaskError("task-range", f"range {item!r} holds {missing}, and the classes are {known}; leave it out")
    return [str(number) for number in range(first, last + 1)]


def ordered_names(given: Any) -> Any:
    """Class names given as a dictionary, in the order of the outputs; anything else as it is.

    Both ways round are in use: name to index (torchvision's `class_to_idx`) and index to name (`id2label`, `names`).

    Raises:
        TaskError: The dictionary does not number the classes 0, 1, 2, ...

    Example:
        >>> from brickyard.base._classes import ordered_names
        >>> ordered_names({"dog": 1, "cat": 0}), ordered_names({"0": "cat", "1": "dog"})
        (['cat', 'dog'], ['cat', 'dog'])
    """
    if not isinstance(given, Mapping):
        return given
    if all(is_whole(place) for place in given) and set(given) == set(range(len(given))):
        return [given[place] for place in range(len(given))]  # index to name, also where the names are numbers
    for pairs in (given.items(), [(name, place) for place, name in given.items()]):
        places = {_place(place): name for name, place in pairs}
        if len(places) == len(given) and set(places) == set(range(len(given))):
            return [places[place] for place in range(len(given))]
    raise TaskError(
        "task-class-name",
        f"class names given as a dictionary must number the classes from 0 to {len(given) - 1}, each once: name to "
        f"index or index to name; got {brief(dict(given))}",
    )


def one_too_many(classes: int, outputs: int) -> str:
    """What it may mean that there is one class more than outputs, as the end of a message; else nothing."""
    if classes != outputs + 1:
        return ""
    return (
        ". One more than outputs: leave out a class that has no output, such as a background. An ordinal network "
        "(CORAL, CORN) has an output for each step between ranks, and none for a class; train it with one output per "
        "class"
    )


def _place(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value) if _is_number(value) else None
    return int(value) if is_whole(value) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def resolve_task(task: Any, names: Sequence[str]) -> list[int]:
    """Return the indices of a task's classes, in the task's order.

    Raises:
        TaskError: The task is empty, or names a class that is unknown or repeated.
    """
    if isinstance(task, str) or is_whole(task):
        task = [task]
    if isinstance(task, bytes | set | frozenset | Mapping) or not isinstance(task, Iterable):
        raise TaskError(
            "task-type",
            "a task must be a list of class names or indices in the order of the outputs, got "
            f"{brief(task)} of type {type(task).__name__}; give a list, such as "
            f"[{_list(list(map(repr, names)), 2)}]",
        )
    found: list[int] = []
    items: Iterable[Any] = getattr(task, "tolist", lambda: task)() if getattr(task, "ndim", None) == 1 else task
    for item in items:
        if not isinstance(item, str) and not is_whole(item):
            raise TaskError(
                "task-type",
                f"a task must list class names or indices, got {brief(item)} of type "
                f"{type(item).__name__}; give names, or integers from 0 to {len(names) - 1}",
            )
        if isinstance(item, str) and item in names:
            found.append(list(names).index(item))
        elif not isinstance(item, str) and 0 <= item < len(names):
            found.append(int(item))
        else:
            hint = _hint(item, names) if isinstance(item, str) else f"; indices run from 0 to {len(names) - 1}"
            raise TaskError(
                "task-unknown-class", f"the source has no class {brief(item)}; name some of {_list(names)}{hint}"
            )
    if not found:
        raise TaskError("task-empty", f"the task is empty; name at least one of {_list(names)}")
    if len(set(found)) != len(found):
        twice = next(k for k in found if found.count(k) > 1)
        raise TaskError(
            "task-duplicate-class", f"class {names[twice]!r} is named twice in the task; name each class once"
        )
    return found


def _hint(word: str, names: Sequence[str]) -> str:
    """What may have been meant by an unknown class, as the end of a message."""
    if len(names) == 1_000 and numbered(names):
        return "; the classes have no names: if they are ImageNet's, give --class-names imagenet (classes= in Python)"
    return near(word, names)


def resolve_merged(task: Any, names: Sequence[str]) -> dict[str, list[int]]:
    """Return the names of a task's classes, and the indices of the source's classes that each stands for.

    Classes are named or counted as for `resolve_task`. Several become one, or one gets another name, in a dictionary
    or in words.

    Raises:
        TaskError: The task is empty, names a class that is unknown or repeated, or gives a class a name that cannot be
            used.

    Example:
        >>> from brickyard.base._classes import resolve_merged
        >>> resolve_merged(["pet=cat+dog", "truck"], ["cat", "truck", "dog"])
        {'pet': [0, 2], 'truck': [1]}
        >>> resolve_merged({"pet": ["cat", "dog"], "lorry": "truck"}, ["cat", "truck", "dog"])
        {'pet': [0, 2], 'lorry': [1]}
    """
    if not isinstance(task, Mapping):
        items = task if isinstance(task, list | tuple) else [task]
        if not any(_merges(item, names) for item in items):
            return {names[k]: [k] for k in resolve_task(task, names)}
        pairs = [_parted(item, names) if _merges(item, names) else ("", [item]) for item in items]
    else:
        pairs = [(check_class_name(name), _members(name, members, names)) for name, members in task.items()]
    resolved = [(name, resolve_task(members, names)) for name, members in pairs]
    found = [(name or names[group[0]], group) for name, group in resolved]
    check_distinct(found, names)
    resolve_task([k for _, group in found for k in group], names)  # each class of the source once
    return dict(found)


def task_classes(task: Any, names: Sequence[str]) -> list[int]:
    """Return the indices of all the source's classes in a task, as `resolve_merged` reads it."""
    return [k for group in resolve_merged(task, names).values() for k in group]


def check_distinct(classes: Sequence[tuple[str, Sequence[int]]], names: Sequence[str]) -> None:
    """Check names of classes, each with the source's classes that it stands for, against each other and the source's.

    Raises:
        TaskError: Two are equal, or one is that of another class of the source.
    """
    given, places = [name for name, _ in classes], {name: k for k, name in enumerate(names)}
    if len(set(given)) < len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise TaskError("task-duplicate-class", f"two classes are called {brief(twice)}; give each its own name")
    for name, group in classes:
        if name in places and places[name] not in group:
            raise TaskError(
                "task-class-name",
                f"{brief(name)} is another class of the source, and cannot be the name of this one; choose another",
            )


def check_class_name(name: Any, what: str = "a class") -> str:
    """Return a class name.

    Raises:
        TaskError: Files cannot hold it.
    """
    if isinstance(name, str) and 0 < len(name) <= MOST_LETTERS and writable(name):
        return name
    found = f"{len(name):,} letters, {brief(name)}" if isinstance(name, str) else brief(name)
    raise TaskError(
        "task-class-name",
        f"the name of {what} must be a string of 1 to {MOST_LETTERS} characters that can be written as UTF-8, got "
        f"{found}",
    )


def _merges(item: Any, names: Sequence[str]) -> bool:
    return isinstance(item, str) and item not in names and "=" in item


def _parted(text: str, names: Sequence[str]) -> tuple[str, list[Any]]:
    """A name and what it stands for, written as "animal=cat+dog"."""
    name, _, members = text.partition("=")
    name = check_class_name(name.strip())
    return name, _members(name, members.strip(), names)


def _members(name: str, given: Any, names: Sequence[str]) -> list[Any]:
    """What a class stands for: a list, or a text with a plus between names, indices or ranges."""
    if isinstance(given, str):
        pieces = [given] if given in names else [piece.strip() for piece in given.split("+")]
        found = [one for piece in pieces for one in (parse_classes([piece], names) if "," not in piece else [piece])]
        given = found if all(pieces) else []
    elif is_whole(given):
        given = [given]
    if isinstance(given, Sequence) and not given:
        raise TaskError("task-empty", f"class {brief(name)} stands for no class; name some of {_list(names)}")
    return given  # type: ignore[no-any-return]


def _list(names: Sequence[str], most: int = 12) -> str:
    short = [name if len(name) <= 60 else f"{name[:60]}..." for name in names[:most]]
    return ", ".join(short) + (f" and {len(names) - most} more" if len(names) > most else "")


def numbered(names: Sequence[str]) -> bool:
    """Whether classes have no names but their numbers."""
    return list(names) == list(map(str, range(len(names))))
