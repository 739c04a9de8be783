"""Networks of torchvision and timm by name, in the form that their weights have.

Weights tell more than a name: the number of classes, the channels of images, the size of images, a head that somebody
replaced. The network is built as the library has it, and the layers that differ are made anew.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from brickyard.axes._detector_models import is_detector, preparation
from brickyard.base._errors import FileError, OptionError
from brickyard.base._lazy import package
from brickyard.base._messages import first_line, near, told
from brickyard.base._records import Preprocessing
from brickyard.runtime._progress import say
from brickyard.sources._weights import fill, renamed

OPTIONS = {
    "torchvision": ("num_classes", "image_size", "width_mult", "aux_logits", "transforms", "transform_input"),
    "timm": ("num_classes", "in_chans", "img_size", "patch_size", "window_size", "global_pool", "output_stride"),
}
OWN = "DEFAULT"  # what asks for a library's own weights
Built = tuple[nn.Module, Preprocessing, int]
"""A network, how its images are prepared, and how many channels they have."""


@contextlib.contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Draw initial weights from a seed in this block; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def network_options(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME?width=0.5` -> the name, and its options as numbers where they are some."""
    name, _, query = text.partition("?")
    return name, {key: _number(value) for key, value in parse_qsl(query, keep_blank_values=True)}


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def is_own(weights: Any) -> bool:
    """Whether words ask for a library's own weights: DEFAULT, or a name such as IMAGENET1K_V2; a file goes before."""
    text = str(weights or "")
    return text.isupper() and text.isidentifier() and not Path(text).exists()


def is_of_hub(name: str) -> bool:
    """Whether timm looks a model up elsewhere than in its own list, together with its weights."""
    return name.startswith(("hf_hub:", "hf-hub:", "local-dir:"))


def from_torchvision(text: str, tensors: Mapping[str, Tensor], classes: int, own: str = "") -> Built:
    """A classifier or a one-stage detector of torchvision, and how its images are prepared.

    Args:
        text: Its name, and options behind a question mark.
        tensors: Its weights, or none.
        classes: How many names of classes were given.
        own: The name of the library's own weights that are wanted, or "".

    Raises:
        OptionError: The package is missing, or the name, an option or the weights are not known.
        FileError: The library's own weights cannot be had.
    """
    models = package("torchvision.models", "torchvision", f"torchvision:{text}")
    name, options = _checked("torchvision", text)
    known = models.list_models(module=models)
    if name in models.list_models(module=models.detection):
        return _detector(models, name, _count(options, classes, tensors), bool(tensors), own)
    if name not in known:
        raise OptionError(
            "option-source-unknown",
            f"torchvision has no classifier {name!r}{near(name, known) or '.'} See torchvision.models.list_models()",
        )
    title, offered = f"torchvision:{name}", models.get_model_weights(name)
    like = str(options.pop("transforms", own))
    if like not in ("", OWN, *offered.__members__):
        raise OptionError("option-choice", f"{title} has no weights {like!r}; use {', '.join(offered.__members__)}")
    chosen = offered.DEFAULT if like in ("", OWN) else offered[like]
    if own:
        tensors = _had(partial(chosen.get_state_dict, progress=False, check_hash=True), title, chosen.url)
    if name in ("googlenet", "inception_v3"):
        if tensors:
            options.setdefault("aux_logits", any("aux" in key.lower() for key in tensors))
        if own:  # as the library builds it for its own weights
            options.setdefault("transform_input", True)
        elif tensors and "transform_input" not in options:
            say(f"{title}: taken as a network of its own training; ?transform_input=1 where it began as torchvision's")
        options["transform_input"] = bool(options.get("transform_input"))

    def build(**more: Any) -> nn.Module:
        made: nn.Module = models.get_model(name, weights=None, **{**options, **more})
        return made

    model, size = _fitted(build, title, tensors, _count(options, classes, tensors), "image_size")
    if own:
        fill(model, tensors, chosen.url)
    how = Preprocessing.from_torchvision(chosen)
    others = [one.name for one in offered if Preprocessing.from_torchvision(one) != how]
    if not like and others:
        say(f"{title}: pictures are prepared as for {chosen.name}; ?transforms={others[0]} prepares them as for that")
    return _described(model, how, size or options.get("image_size"), title)


def _detector(models: Any, name: str, more: Mapping[str, Any], given: bool, own: str) -> Built:
    """A detector of torchvision, with its own weights if these are asked for.

    Raises:
        OptionError: Weights of a file are `given`: they do not tell how the detector was built.
        TraceError: It has two stages.
    """
    title = f"torchvision:{name}"
    if given:
        raise OptionError(
            "option-conflict",
            f"{title}: a file of weights does not tell how a detector was built; give path/to/file.py:function, which "
            f"builds it and loads them, or --weights {OWN}",
        )
    with seeded():
        model = models.get_model(name, weights=None, weights_backbone=None, **more)
    is_detector(model)  # refuses those that cannot be cut before their weights are fetched
    if own:
        offered = models.get_model_weights(name)
        chosen = offered.DEFAULT if own == OWN else offered.__members__.get(own)
        if chosen is None:
            raise OptionError("option-choice", f"{title} has no weights {own!r}; use {', '.join(offered.__members__)}")
        model = _had(partial(models.get_model, name, weights=chosen, progress=False, **more), title, chosen.url)
    return model, preparation(model), 3


def from_timm(text: str, tensors: Mapping[str, Tensor], classes: int, own: str = "") -> Built:
    """A classifier of timm, and how its images are prepared; arguments and errors as for `from_torchvision`."""
    timm = package("timm", "timm", f"timm:{text}")
    name, options = _checked("timm", text)
    hub = is_of_hub(name)
    if not hub and not timm.is_model(name):
        raise OptionError(
            "option-source-unknown",
            f"timm has no model {name!r}{near(name, timm.list_models()) or '.'} See timm.list_models()",
        )
    if own and own != OWN:
        raise OptionError("option-choice", f"timm:{name} has no weights {own!r}; use {OWN}, or name them: {name}.TAG")
    if own or (hub and not tensors):
        whole = _had(partial(timm.create_model, name, pretrained=True, **options), f"timm:{name}", name)
        return _described(whole, Preprocessing.from_timm(whole), options.get("img_size"), f"timm:{name}")

    def build(**more: Any) -> nn.Module:
        made: nn.Module = timm.create_model(name, pretrained=False, **{**options, **more})
        return made

    model, size = _fitted(build, f"timm:{name}", tensors, _count(options, classes, tensors), "img_size")
    return _described(model, Preprocessing.from_timm(model), size or options.get("img_size"), f"timm:{name}")


def _checked(library: str, text: str) -> tuple[str, dict[str, Any]]:
    """A name and its options, if the library has such."""
    name, options = network_options(text)
    odd = next((key for key in options if key not in OPTIONS[library]), None)
    if odd is not None:
        raise OptionError(
            "option-unknown-name", f"{library}:{name}: unknown option {odd!r}; use {', '.join(OPTIONS[library])}"
        )
    return name, options


def _count(options: Mapping[str, Any], classes: int, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many classes to build the network for, where nothing else says so."""
    if "num_classes" in options:
        return {"num_classes": options["num_classes"]}
    return {"num_classes": classes} if classes and not tensors else {}


def _had(load: Callable[[], Any], source: str, where: str) -> Any:
    """What a library downloads, or has in its cache."""
    try:
        return load()
    except Exception as error:  # those of several libraries for networks and files
        raise FileError(
            "file-missing",
            f"cannot get the weights of {source} ({where}): {told(first_line(error), 200)}; give a file with "
            "--weights, or try again where the network is reached",
        ) from None


def _described(model: nn.Module, how: Preprocessing, size: Any, title: str) -> Built:
    """A network with the preprocessing that its library has for it, as far as the size and channels allow that."""
    changes: dict[str, Any] = {} if size is None else {"size": (int(size), int(size))}
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    if channels != 3:
        say(f"{title}: images have {channels} channels; their mean and std are not known: give --mean and --std")
        changes |= {"channels": 1 if channels == 1 else None, "mean": None, "std": None}
    return model, how.model_copy(update=changes), channels


# -- networks in the form of their weights -----------------------------------------------------------------


def _fitted(
    build: Callable[..., nn.Module], title: str, tensors: Mapping[str, Tensor], more: Mapping[str, Any], size: str
) -> tuple[nn.Module, int | None]:
    """A network with layers as the weights have them, and the size of its images where that is another one.

    Args:
        build: Makes the network.
        title: What messages call it.
        tensors: The weights.
        more: Options for making it.
        size: The name of the option for the size of its images.
    """
    try:
        with seeded():
            model = build(**more)
            side = _image_side(model, tensors)
            if side is not None:
                say(f"{title}: its weights are for images of {side} x {side}")
                model = build(**more, **{size: side})
    except Exception as error:  # a library may refuse an option in any way
        raise OptionError("option-source-unknown", f"{title} cannot be built: {told(first_line(error), 200)}") from None
    if tensors:
        with seeded():
            _adapt(model, renamed(tensors, model.state_dict()), title, heads="num_classes" not in more)
    return model, side


def _image_side(model: nn.Module, tensors: Mapping[str, Tensor]) -> int | None:
    """The side of the images whose number of patches the weights have embeddings for, where the network has others."""
    patch = getattr(getattr(model, "patch_embed", model), "patch_size", None)
    patch = patch[0] if isinstance(patch, tuple) else patch
    if not isinstance(patch, int):
        return None
    own = model.state_dict()
    found = renamed(tensors, own)
    for name, value in own.items():
        given = found.get(name)
        if not name.endswith(("pos_embed", "pos_embedding")) or given is None or given.ndim != 3:
            continue
        patches = given.shape[1] - int(getattr(model, "num_prefix_tokens", 1))
        side = math.isqrt(max(0, patches))
        if given.shape != value.shape and side * side == patches:
            return side * patch
    return None


def _adapt(model: nn.Module, tensors: Mapping[str, Tensor], title: str, heads: bool) -> None:
    """Make anew the layer that reads images, and with `heads` those of the classes, where the weights have others."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    _unwrap_heads(model, layers, tensors, title)
    first = next((name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)), None)
    given = {name: tensors.get(f"{name}.weight") for name in layers}
    stem = given[first] if first is not None else None
    if first is not None and stem is not None and _differs(stem, layers[first].weight, 1):
        say(f"{title}: its weights take images with {stem.shape[1]} channels")
        _resize(layers[first], stem.shape)
    other = {
        name: weight.shape
        for name, weight in given.items()
        if weight is not None and _differs(weight, layers[name].weight, 0)
    }
    if heads and len({shape[0] for shape in other.values()}) == 1:
        for name, shape in other.items():
            _resize(layers[name], shape)


def _unwrap_heads(
    model: nn.Module, layers: dict[str, nn.Conv2d | nn.Linear], tensors: Mapping[str, Tensor], title: str
) -> None:
    """Put a `Sequential` with one linear layer where the weights have one in the place of a linear layer."""
    for name, layer in list(layers.items()):
        inside = [key for key in tensors if key.startswith(f"{name}.") and key.endswith(".weight")]
        if f"{name}.weight" in tensors or len(inside) != 1 or not isinstance(layer, nn.Linear):
            continue
        place = inside[0].removeprefix(f"{name}.").removesuffix(".weight")
        if not place.isdigit() or int(place) > 8 or tensors[inside[0]].ndim != 2:
            continue
        outputs, inputs = tensors[inside[0]].shape
        linear = nn.Linear(inputs, outputs, bias=f"{name}.{place}.bias" in tensors)
        group, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(group), leaf, nn.Sequential(*(nn.Dropout() for _ in range(int(place))), linear))
        before = f"{place} layers of dropout" if int(place) else "nothing"
        say(
            f"{title}: {name} is taken for a Sequential of a linear layer behind {before}; others without weights, "
            "such as Tanh, leave no trace in a file: give path/to/file.py:function where there are some"
        )


def _differs(found: Tensor, own: Tensor, dim: int) -> bool:
    """Whether shapes differ along this dimension alone."""
    return found.ndim == own.ndim and [k for k in range(own.ndim) if found.shape[k] != own.shape[k]] == [dim]


def _resize(layer: nn.Conv2d | nn.Linear, shape: torch.Size) -> None:
    """Give a layer, of whatever class, weights of another shape."""
    layer.weight = nn.Parameter(layer.weight.new_zeros(shape))
    if layer.bias is not None and len(layer.bias) != shape[0]:
        layer.bias = nn.Parameter(layer.bias.new_zeros(shape[0]))
    names = ("out_features", "in_features") if isinstance(layer, nn.Linear) else ("out_channels", "in_channels")
    for name, count in zip(names, shape[:2], strict=True):
        setattr(layer, name, count)
