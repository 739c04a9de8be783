"""What can be loaded as a source by name, read from the files of libraries: neither they nor torch are imported."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brickyard.base._messages import MOST_WORD

KEY = "brickyard-source"  # of the text in a file of weights that describes its source
_REGISTERED = re.compile(r"^@register_model\b.*\n(?:(?!def ).*\n)*?def (\w+)\(", re.M)
_IMAGE_CLASSIFIERS = re.compile(r"^MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES = .*?^\)", re.M | re.S)
_CLOSE = 0.75  # of two names, from 0 to 1


@dataclass(frozen=True)
class Kind:
    """The sources of one kind.

    Attributes:
        name: What the kind is called.
        how: How one is given.
        names: What is there.
        prefix: What stands before a name, so that it is a source; None where a name is none by itself.
    """

    name: str
    how: str
    names: tuple[str, ...]
    prefix: str | None = ""

    @property
    def specs(self) -> tuple[str, ...]:
        """What to give to a command, name by name; of architectures, their names."""
        return tuple(f"{self.prefix or ''}{name}" for name in self.names)


def kinds(folder: Path | None = None) -> tuple[Kind, ...]:
    """Everything that can be loaded: by the packages that are installed, and with the files of a folder.

    Args:
        folder: Where to look for files; default: the current folder.
    """
    return (
        Kind("zoo", "zoo:NAME, small networks for images of about 32 pixels", _zoo(), "zoo:"),
        Kind("torchvision", "torchvision:NAME, weights with --weights DEFAULT", _torchvision(), "torchvision:"),
        Kind("timm", "timm:NAME, weights with --weights DEFAULT", _timm(), "timm:"),
        Kind("transformers", "hf:FOLDER or hf:ID of an image classifier of these architectures", _transformers(), None),
        Kind("hub", "hf:ID, those in the cache of the Hugging Face Hub; others are downloaded", _cached(), "hf:"),
        Kind("files", "a path, of the files in this folder", _files(folder or Path())),
    )


def suggestions(word: str, most: int = 3) -> list[str]:
    """Sources that somebody who gave this word may have meant, the closest first.

    Example:
        >>> from brickyard.sources._catalogue import suggestions
        >>> "zoo:resnet20" in suggestions("resnet20")
        True
    """
    start, colon, rest = word.partition("?")[0].rpartition(":")
    wanted = _plain(rest)
    if not wanted or len(wanted) > MOST_WORD:
        return []
    found: list[tuple[float, float, str]] = []
    for kind in kinds():
        if not kind.prefix:
            continue
        by_name = {_plain(name): spec for name, spec in zip(kind.names, kind.specs, strict=True)}
        nearness = _alike(f"{start}:", kind.prefix) if colon else 0.0
        for close in difflib.get_close_matches(wanted, list(by_name), most, _CLOSE):
            found.append((_alike(wanted, close), nearness, by_name[close]))
    if not colon and re.fullmatch(r"[A-Za-z0-9][\w-]*/[\w.-]+", rest):  # as the Hub names models
        found.append((1.0, 0.0, f"hf:{word}"))
    same = [item for item in found if item[0] == 1.0]
    ordered = sorted(same or found, key=lambda item: (-item[0] - item[1], -item[1]))
    return list(dict.fromkeys(spec for *_, spec in ordered))[:most]


def _plain(name: str) -> str:
    """A name without what people write differently."""
    return re.sub(r"[-_. ]", "", name).casefold()


def _alike(word: str, other: str) -> float:
    return difflib.SequenceMatcher(None, word, other).ratio()


def _zoo() -> tuple[str, ...]:
    registry = sys.modules.get("brickyard.sources._registry")
    if registry is not None and "brickyard.sources._zoo" in sys.modules:
        return tuple(registry.available())
    texts = (path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("_zoo_*.py")))
    return tuple(sorted(name for text in texts for name in re.findall(r'^@register\("([^"]+)"', text, re.M)))


def _place(package: str) -> Path | None:
    """The folder of an installed package."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _registered(folder: Path | None) -> tuple[str, ...]:
    """The functions that files register as models."""
    found: set[str] = set()
    for path in () if folder is None else folder.glob("*.py"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found.update(_REGISTERED.findall(path.read_text(encoding="utf-8")))
    return tuple(sorted(name for name in found if not name.startswith("_")))


@functools.cache
def _torchvision() -> tuple[str, ...]:
    place = _place("torchvision")
    return _registered(place and place / "models")


@functools.cache
def _timm() -> tuple[str, ...]:
    place = _place("timm")
    return _registered(place and place / "models")


@functools.cache
def _transformers() -> tuple[str, ...]:
    place = _place("transformers")
    if place is None:
        return ()
    with contextlib.suppress(OSError):
        text = (place / "models/auto/modeling_auto.py").read_text(encoding="utf-8")
        if (table := _IMAGE_CLASSIFIERS.search(text)) is not None:
            return tuple(sorted(set(re.findall(r'\(\s*"([a-z0-9_-]+)",', table[0]))))
    return ()


def _cached() -> tuple[str, ...]:
    """Image classifiers in the cache of the Hugging Face Hub."""
    if _place("transformers") is None or _place("huggingface_hub") is None:
        return ()
    from huggingface_hub import constants

    found = []
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        for path in folder.glob("snapshots/*/config.json"):
            with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
                made = json.loads(path.read_text(encoding="utf-8")).get("architectures") or ()
                if any(str(name).endswith("ForImageClassification") for name in made):
                    found.append(folder.name.removeprefix("models--").replace("--", "/", 1))
                    break
    return tuple(found)


def _files(folder: Path) -> tuple[str, ...]:
    return tuple(str(path) for path in sorted(_sources_in(folder)))


def _sources_in(folder: Path) -> Iterator[Path]:
    """Files of ONNX, and files of weights that say which network they are for."""
    from safetensors import SafetensorError, safe_open

    for path in folder.iterdir():
        if path.suffix == ".onnx" and path.is_file():
            yield path
        elif path.suffix == ".safetensors" and path.is_file():
            with contextlib.suppress(OSError, SafetensorError), safe_open(path, framework="numpy") as file:
                if KEY in (file.metadata() or {}):
                    yield path
