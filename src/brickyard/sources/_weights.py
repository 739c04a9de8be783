"""Files of weights: what they hold, under which names, and whether they fit a network."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from brickyard.base._errors import FileError
from brickyard.base._frozen import Frozen, Name, validated
from brickyard.base._limits import foreign_json
from brickyard.base._messages import told
from brickyard.base._records import Preprocessing
from brickyard.network._torch_private import with_versions
from brickyard.runtime._progress import say
from brickyard.sources._catalogue import KEY
from brickyard.sources._signatures import foreign, is_pickled, is_safetensors

INDEX = ".safetensors.index.json"  # of a network in several files
# Where training scripts put the tensors; moving averages first, as timm evaluates them.
AVERAGED = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "model_ema_state_dict")
WRAPPERS = (
    "state_dict",
    "model",
    "net",
    "model_state_dict",
    "model_state",
    "network",
    "weights",
    "params",
    "module",
    "shadow",
)
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
NAMES = ("classes", "class_names", "class_to_idx")  # where training scripts put the names of classes
COUNTERS = ("total_ops", "total_params", "num_batches_tracked", "n_averaged")  # of tools, and of no use here


Size = Annotated[int, Field(ge=1, le=4096)]


class SourceText(Frozen):
    """What a file of weights says of the network that they belong to."""

    model_config = ConfigDict(extra="ignore")

    arch: Name
    options: dict[str, float | int | str] = {}
    classes: tuple[Name, ...] = ()
    preprocessing: Preprocessing | None = None
    input_shape: tuple[Size, Size, Size] | None = None
    scores: dict[str, float] = {}


def read_weights(path: Path, *, averaged: bool = True) -> tuple[dict[str, Tensor], SourceText | None]:
    """Tensors of a file of weights, and what it or the JSON file beside it says of the network.

    Args:
        path: The file.
        averaged: Whether to take moving averages where the file holds them beside the weights of the last step.

    Raises:
        FileError: The file cannot be read, or holds something else than tensors.
    """
    try:
        there, found = (
            path.is_file(),
            "expected a file, got a folder"
            if path.is_dir()
            else "expected a regular file"
            if path.exists()
            else "there is no such file",
        )
    except (OSError, ValueError):  # a path that no system takes
        there, found = False, "there is no such file"
    if not there:
        raise FileError("file-missing", f"cannot read weights {path}: {found}; check the path")
    try:
        if (kind := foreign(path)) is not None:
            raise FileError("file-weights-not-plain", f"{path} holds no weights: it is {kind}")
        if path.name.endswith(INDEX):
            return _parts(path), _beside(path)
        if is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            if KEY in metadata:
                text = validated(SourceText, foreign_json(metadata[KEY]), f"what {path} says of its network")
                return load_file(path), text
            return load_file(path), _beside(path)
        if path.suffix == ".safetensors" and not is_pickled(path):
            raise SafetensorError("it is cut short, or of another kind")
        with path.open("rb") as file:  # by its name torch would take it for safetensors
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise FileError("file-damaged", f"cannot read weights {path}: {told(error)}; get a fresh copy") from None
    except FileError:
        raise
    except Exception as error:  # what torch raises for a refused pickle differs between versions
        raise FileError("file-weights-unsafe", _unsafe(path, error)) from None
    tensors = _tensors_in(found, path, averaged)
    return tensors, _beside(path) or _named_in(found, tensors, path)


def _parts(index: Path) -> dict[str, Tensor]:
    """The tensors of a network that is kept in several files, from the index that names them.

    Raises:
        FileError: The index is damaged, or names files elsewhere or that are not there.
    """
    tensors: dict[str, Tensor] = {}
    for path in part_files(index):
        tensors |= load_file(path)
    return tensors


def part_files(index: Path) -> list[Path]:
    """The files that the index of a network in several files names.

    Raises:
        FileError: The index is damaged, or names files elsewhere or that are not there.
    """
    try:
        names = sorted(set(foreign_json(index.read_text(encoding="utf-8"))["weight_map"].values()))
        odd = next((name for name in names if Path(name).name != name or not index.with_name(name).is_file()), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError("file-damaged", f"cannot read {index}: {told(error)}; get a fresh copy") from None
    if odd is not None:
        raise FileError("file-missing", f"{index} names {told(odd, 80)!r}, which is not beside it; get all files")
    return [index.with_name(name) for name in names]


def _named_in(found: Any, tensors: Mapping[str, Tensor], path: Path) -> SourceText | None:
    """What a checkpoint says of its classes beside the weights, if that is as many names as a layer has outputs."""
    for key in NAMES:
        names = found.get(key) if isinstance(found, dict) else None
        if isinstance(names, dict) and sorted(map(repr, names.values())) == sorted(map(repr, range(len(names)))):
            names = sorted(names, key=names.__getitem__)  # class_to_idx
        if not isinstance(names, list | tuple) or len(set(map(repr, names))) != len(names):
            continue
        sizes = {int(value.shape[0]) for value in tensors.values() if value.ndim}
        if names and len(names) in sizes and all(isinstance(name, str) and name for name in names):
            say(f"{path.name}: class names are those of its {key}: {told(', '.join(names[:6]), 100)}")
            return validated(SourceText, {"arch": "auto", "classes": names}, f"what {path} says of its classes")
    return None


def _unsafe(path: Path, error: Exception) -> str:
    """What a refused pickle holds, and how whoever trusts it takes the tensors out of it."""
    held = re.search(r"GLOBAL ([\w.]+)", str(error))
    if held is None:
        why = f"weights {path} hold more than tensors, or are damaged ({type(error).__name__}: {told(error, 200)})"
        return f"{why}; nothing in them was run. Save model.state_dict() alone, or a .safetensors file"
    return (
        f"weights {path} hold {held[1]} beside the tensors, and loading that could run code; nothing in them was "
        "run. Save model.state_dict() alone; where you trust the file, take the tensors out of it once: found = "
        "torch.load(path, weights_only=False), then torch.save(found['model'], new_path) with the key they lie under"
    )


def _tensors_in(found: Any, path: Path, averaged: bool) -> dict[str, Tensor]:
    """The tensors of a checkpoint, from whichever entry holds them.

    Raises:
        FileError: It holds something else.
    """
    while isinstance(found, dict):
        inner = {key: value for key, value in found.items() if isinstance(value, Mapping) and _has_tensors(value)}
        means = next((key for key in AVERAGED if key in inner), None)
        last = next((key for key in WRAPPERS if key in inner), None)
        if means is None and last is None:
            break
        chosen = means if means is not None and (averaged or last is None) else last
        if means is not None and last is not None:
            flag = "" if averaged else "not "
            say(f"{path.name} holds moving averages ({means}) beside the last weights ({last}): {flag}taken")
        found = dict(inner[str(chosen)])
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        held = f"; it holds {', '.join(map(str, list(found)[:8]))}" if isinstance(found, dict) else ""
        raise FileError(
            "file-weights-not-plain",
            f"weights {path} must be a dictionary of tensors{told(held)}; save model.state_dict()",
        )
    for key, value in found.items():
        if not isinstance(key, str) or not _plain(value):
            raise FileError(
                "file-weights-not-plain",
                f"weights {path}: {told(repr(key), 80)} is not a plain named tensor with its own values",
            )
    return found


def _has_tensors(value: Mapping[Any, Any], depth: int = 2) -> bool:
    return any(isinstance(item, Tensor) for item in value.values()) or (
        depth > 0 and any(isinstance(item, Mapping) and _has_tensors(item, depth - 1) for item in value.values())
    )


def _plain(value: Tensor) -> bool:
    """Whether a tensor holds every number that its shape tells of."""
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _beside(path: Path) -> SourceText | None:
    """The JSON file beside the weights: arch, width, classes, mean, std."""
    place = path.with_suffix(".json")
    if not place.is_file():
        return None
    try:
        found = foreign_json(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError("file-damaged", f"cannot read {place}: {error}") from None
    if not isinstance(found, dict) or "arch" not in found:
        return None
    how, mean = None, found.get("mean")
    if isinstance(mean, list) and mean and found.get("std"):
        how = {"size": (found.get("size", 32),) * 2, "channels": len(mean), "mean": mean, "std": found["std"]}
    said = {"arch": found["arch"], "classes": found.get("classes", ()), "preprocessing": how}
    said["options"] = {key: found[key] for key in ("width",) if key in found}
    return validated(SourceText, said, f"what {place} says of its network")


def renamed(tensors: Mapping[str, Tensor], names: Collection[str], weights: Any = None) -> dict[str, Tensor]:
    """Weights under a network's own names, where a wrapper put something before them; counters of tools are dropped.

    Args:
        tensors: The weights.
        names: The names in the network.
        weights: What messages call the file, to say what was changed; None: nothing is said.
    """
    wanted = {name for name in names if not name.endswith("num_batches_tracked")}
    found, removed = dict(tensors), ""
    best = found, removed
    while not wanted <= found.keys():
        shares = {prefix: sum(name.startswith(prefix) and name not in names for name in found) for prefix in PREFIXES}
        prefix = max(shares, key=lambda one: shares[one])
        if not shares[prefix]:
            break
        found = {name.removeprefix(prefix) if name not in names else name: value for name, value in found.items()}
        removed += prefix
        if len(wanted & found.keys()) > len(wanted & best[0].keys()):  # also where the rest is another network's
            best = found, removed
    found, removed = best
    extra = [name for name in found if name not in names and name.rpartition(".")[2] in COUNTERS]
    if removed and weights is not None:
        say(f"{weights}: names without {removed!r} before them")
    if extra and weights is not None:
        say(f"{weights}: {len(extra)} values that are not weights were left out: {', '.join(extra[:4])}")
    return {name: value for name, value in found.items() if name not in extra}


def misfits(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, shapes: bool = True) -> str:
    """How weights differ from those that a network has: how many agree, and the first of each kind; "" for nowhere.

    Without `shapes`, names alone are compared.
    """
    wanted = [key for key in expected if not key.endswith("num_batches_tracked")]
    there = [key for key in expected if key in tensors]
    other = [key for key in there if shapes and tensors[key].shape != expected[key].shape]
    kinds = [
        key for key in there if expected[key].is_floating_point() and not tensors[key].is_floating_point() and shapes
    ]
    found = {
        "missing": [key for key in wanted if key not in tensors],
        "not in the network": [key for key in tensors if key not in expected],
        "of another shape": [f"{key} {tuple(tensors[key].shape)} for {tuple(expected[key].shape)}" for key in other],
        "of another kind": [f"{key} {tensors[key].dtype} for {expected[key].dtype}" for key in kinds],
    }
    problems = [
        f"{what}: {', '.join(keys[:4])}{f' and {len(keys) - 4} more' if len(keys) > 4 else ''}"
        for what, keys in found.items()
        if keys
    ]
    if not problems:
        return ""
    agree = len([key for key in wanted if key in tensors and key not in {*other, *kinds}])
    return told(
        "; ".join([f"{agree} of its {len(wanted)} tensors are in the file{' in the right shape' * shapes}", *problems])
    )


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor], weights: Any) -> None:
    """Refuse weights that are not those of a network."""
    if problems := misfits(model.state_dict(), tensors):
        why = f"weights {weights} do not fit {type(model).__name__}: {problems}"
        raise FileError("file-weights-mismatch", f"{why}. Check the name, width and class count of the source")


def fill(model: nn.Module, tensors: Mapping[str, Tensor], weights: Any) -> None:
    """Put weights into a network.

    Raises:
        FileError: They do not fit it, or are not finite.
    """
    tensors = renamed(tensors, model.state_dict(), weights)
    check_fit(model, tensors, weights)
    broken = [key for key, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise FileError(
            "file-not-finite", f"weights {weights} are not finite in {', '.join(broken[:4])}; get a fresh copy"
        )
    model.load_state_dict(with_versions(tensors, model), strict=False)
    types = {value.dtype for value in tensors.values() if value.is_floating_point()}
    if len(types) == 1:
        model.to(types.pop())
