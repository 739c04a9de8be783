"""Class names from a text: names by comma, or a text or JSON file that lists them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brickyard.base._classes import ordered_names
from brickyard.base._errors import FileError, OptionError, TaskError, reading_code
from brickyard.base._lazy import package
from brickyard.base._limits import foreign_json
from brickyard.base._messages import first_line, told, writable
from brickyard.runtime._progress import say

IMAGENET, COCO = "imagenet", "coco"  # what stands for the names of their classes
COCO_CLASSES = 80
COCO_NUMBERS = (90, 91)  # classes of detectors that have an output for each number in COCO's files
_UNUSED = ("__background__", "N/A")
MAX_BYTES = 16 << 20  # of a file of names
_SYNSET = re.compile(r"(n\d{8})[\s,:]+(\S.*)")
_NUMBERED = re.compile(r"(\d{1,7})(?:\s*[:;,\t]\s*|\s+)(\S.*)")
_KEYS = ("id2label", "label2id", "class_to_idx", "idx_to_class", "classes", "class_names", "names", "labels")
_INDEXED = ("id2label", "idx_to_class", "index_to_name", "names")


def class_names(given: str | Sequence[str] | None) -> list[str] | None:
    """The class names that a text or a list gives, in the order of the outputs; None where none were given.

    A text that is the path of a file is read: one name a line, or JSON (a list, a dictionary of names and indices, or a
    configuration that holds one as `id2label`). "imagenet" stands for the names of ImageNet's 1,000 classes, "coco" for
    those of COCO's 80. Any other text is names with commas between them.

    Raises:
        FileError: The file cannot be read, or holds no names.
        OptionError: A name is empty or cannot be written as UTF-8, or torchvision, which has ImageNet's, is missing.
        TaskError: A name is there twice, or a dictionary does not number the classes.

    Example:
        >>> from brickyard.sources._names import class_names
        >>> class_names("cat,dog")
        ['cat', 'dog']
    """
    if not given:
        return None
    path = Path(given) if isinstance(given, str) and _is_file(given) else None
    if path is not None:
        names = _in_file(path)
        say(f"{path.name}: {len(names):,} class names: {told(', '.join(names[:6]), 100)}")
    elif given == IMAGENET:
        names = imagenet_names()
    elif given == COCO:
        names = coco_names()
    else:
        names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
        if len(names) == 1 and names[0].lower().endswith((".txt", ".json")):
            say(f"--class-names {told(names[0], 100)}: there is no such file, so it is taken for a name")
    odd = [name for name in names if not name or not writable(name)]
    if odd:
        raise OptionError(
            "option-syntax", f"class name {odd[0]!r} is empty or not valid UTF-8; give another with --class-names"
        )
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise TaskError("task-duplicate-class", f"--class-names has {told(twice, 100)!r} twice; give each its own name")
    return names


def imagenet_names() -> list[str]:
    """The names of ImageNet's 1,000 classes, as torchvision has them.

    Raises:
        OptionError: torchvision is missing.
    """
    models = package("torchvision.models", "torchvision", "the names of ImageNet's classes")
    return list(models.get_model_weights("mobilenet_v2").DEFAULT.meta["categories"])


def coco_names(count: int = COCO_CLASSES) -> list[str]:
    """The names of COCO's classes that detectors know, as torchvision has them.

    Args:
        count: 80; or 91, which are all numbers of its files, of which 11 have no class and are called "unused 12" and
            so on; or 90, these without the first one, which is the background.

    Raises:
        OptionError: torchvision is missing.
    """
    models = package("torchvision.models", "torchvision", "the names of COCO's classes")
    names = models.get_model_weights("fasterrcnn_resnet50_fpn").DEFAULT.meta["categories"]
    if count == COCO_CLASSES:
        return [name for name in names if name not in _UNUSED]
    return [f"unused {k}" if name in _UNUSED else name for k, name in enumerate(names)][len(names) - count :]


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def _in_file(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            why = f"{path} is larger than {MAX_BYTES >> 20} MiB"
            raise FileError("file-too-large", f"{why}; give a file of class names, one a line")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise FileError(reading_code(error), f"cannot read {path}: {error.strerror or error}; check the path") from None
    except UnicodeDecodeError:
        why = f"{path} is not UTF-8 text"
        raise FileError("file-wrong-kind", f"{why}; give class names one a line, or as JSON") from None
    if path.suffix.lower() == ".json" or text.lstrip()[:1] in ("{", "["):
        names = _in_json(path, text)
    else:
        names = _in_lines(path, [line.strip() for line in text.splitlines() if line.strip()])
    if not names:
        raise FileError("file-wrong-kind", f"{path} holds no class names; write one a line, or a JSON list")
    return names


# -- lines ---------------------------------------------------------------------------------------------------------


def _in_lines(path: Path, lines: list[str]) -> list[str]:
    """One name a line, without the synset or the number that all lines start with."""
    synsets = [_SYNSET.fullmatch(line) for line in lines]
    found = [match for match in synsets if match is not None]
    if lines and len(found) == len(lines):
        return _synonyms(path, [match[2] for match in found])
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    pairs = {int(match[1]): match[2].strip() for match in numbered if match is not None}
    first = min(pairs, default=0)
    if lines and len(pairs) == len(lines) and first in (0, 1) and set(pairs) == set(range(first, first + len(pairs))):
        say(f"{path.name}: lines start with the numbers {first} to {len(pairs) - 1 + first}, which order the names")
        return [pairs[number] for number in sorted(pairs)]
    return lines


def _synonyms(path: Path, texts: list[str]) -> list[str]:
    """The first of the synonyms that follow a synset; all of them where two first ones are the same."""
    short = [text.split(",")[0].strip() for text in texts]
    counts = Counter(short)
    names = [text.strip() if counts[name] > 1 else name for text, name in zip(texts, short, strict=True)]
    whole = sum(counts[name] > 1 for name in short)
    rest = f", and all of them for {whole} that would be the same" if whole else ""
    say(f"{path.name}: names are the first synonyms behind the WordNet numbers{rest}")
    return names


# -- JSON ----------------------------------------------------------------------------------------------------------


def _in_json(path: Path, text: str) -> list[str]:
    try:
        found = foreign_json(text)
    except (ValueError, RecursionError) as error:
        why = f"{path} is not valid JSON: {told(first_line(error), 200)}"
        raise FileError("file-manifest-invalid", f"{why}; write a list of names in double quotes") from None
    names = _listed(found)
    if names is None and isinstance(found, Mapping):
        key = next((key for key in _KEYS if _listed(found.get(key)) is not None), None)
        names = None if key is None else _listed(_by_index(found[key]) if key in _INDEXED else found[key])
        if key is not None:
            say(f"{path.name}: class names are those under {key!r}")
    if names is None and isinstance(found, Mapping) and found and not set(_KEYS) & set(found):
        ordered_names(found)  # which says what is wrong with it
    if names is None:
        keys = told(", ".join(found), 200) if isinstance(found, Mapping) else type(found).__name__
        why = f"{path} holds no list of class names, and no dictionary of names and indices: {keys}"
        raise FileError("file-wrong-kind", f'{why}; write ["cat", "dog"] or {{"0": "cat", "1": "dog"}}')
    return names


def _by_index(found: Any) -> Any:
    """A dictionary that is known to lead from indices to names, with whole numbers as keys."""
    if isinstance(found, Mapping) and all(str(key).isdecimal() for key in found):
        return {int(key): name for key, name in found.items()}
    return found


def _listed(found: Any) -> list[str] | None:
    """Names in a list, or in a dictionary that numbers them; of pairs (synset, name), the name."""
    if isinstance(found, Mapping):
        values = list(found.values())
        if values and all(isinstance(item, list) and len(item) == 2 for item in values):
            found = {key: item[1] for key, item in found.items()}
        try:
            found = ordered_names(found) if found else None
        except (TaskError, TypeError):
            return None
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        return None
    return [name.strip() for name in found]
