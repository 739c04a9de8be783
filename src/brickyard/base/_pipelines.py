"""How other libraries describe what they do to pictures, as the values of a `Preprocessing`.

Only names and attributes are read; no library is imported. What a `Preprocessing` cannot do is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from brickyard.base._errors import OptionError
from brickyard.base._messages import brief, told

Values = dict[str, Any]
ADVICE = "give a brickyard.Preprocessing(size=..., mean=..., std=...) that is as near as can be"
BYTES = 1 / 255  # what raw images are multiplied by here
_BY_NUMBER = {2: "bilinear", 3: "bicubic"}  # PIL's
_TO_TENSOR = ("ToTensor", "MaybeToTensor")  # which scale bytes to [0, 1]
_AS_BYTES = ("PILToTensor", "MaybePILToTensor", "ToImage", "ToPILImage", "ToPureTensor", "RGB", "Identity")
_SHAPES = ("Resize", "CenterCrop")
_LIBRARIES = ("torchvision.", "timm.", "torch.nn")
_PROCESSORS = {
    f"{name}ImageProcessor"
    for name in (
        *("ViT", "DeiT", "Beit", "Bit", "CLIP", "ConvNext", "EfficientNet", "Levit", "MobileNetV1", "MobileNetV2"),
        *("MobileViT", "PoolFormer", "Pvt", "Segformer", "Siglip"),
    )
}


def from_transforms(transforms: Any) -> Values:
    """The values for a chain of torchvision's transforms, of its first or second version.

    Raises:
        OptionError: There is one that cannot be read.
    """
    found = list(_steps(transforms))
    names = [_name(step) for step in found]
    for step in found:
        if not type(step).__module__.startswith(_LIBRARIES):
            raise _cannot(f"transform {_name(step)}", f"what it does in {type(step).__module__} is not known here")
    values: Values = {}
    scaled = False
    for step, name in zip(found, names, strict=True):
        own = vars(step)
        if name == "Normalize" and "mean" not in values and scaled:
            values |= {"mean": _numbers(own["mean"]), "std": _numbers(own["std"])}
        elif name == "Grayscale" and own["num_output_channels"] == 1 and not {"channels", "mean"} & values.keys():
            values["channels"] = 1
        elif name in _TO_TENSOR or name == "ConvertImageDtype" or (name == "ToDtype" and own.get("scale")):
            scaled = True
        elif name not in (*_AS_BYTES, *_SHAPES):
            raise _cannot(f"transform {name} in its place", "it changes pictures in a way that is not known here")
    if not scaled:
        raise _cannot("pictures of 0 to 255", "ToTensor, or ToDtype with scale=True, must bring them to [0, 1]")
    shape = [step for step in found if _name(step) in _SHAPES]
    if [_name(step) for step in shape] not in ([], ["Resize"], ["Resize", "CenterCrop"]):
        raise _cannot(
            f"the transforms {', '.join(map(_name, shape))}", "only one Resize, then one CenterCrop, is known"
        )
    if shape:
        own = vars(shape[0])
        if own.get("max_size") is not None:
            raise _cannot("a Resize with max_size", "the size of the image depends on the picture")
        values |= _interpolation(own.get("interpolation", "bilinear"))
        on_tensors = bool({*_TO_TENSOR, *_AS_BYTES} & set(names[: names.index("Resize")]))
        values["antialias"] = own.get("antialias") is not False or not on_tensors  # PIL always smooths
        values |= _sized(own["size"], vars(shape[1])["size"] if len(shape) > 1 else None)
    return values


def from_torchvision(weights: Any) -> Values:
    """The values for the weights of one of torchvision's models, or for what their `transforms()` returns.

    Raises:
        OptionError: They have no such transforms.
    """
    how = weights.transforms() if callable(getattr(weights, "transforms", None)) else weights
    try:
        resize, crop, mean = how.resize_size, how.crop_size, how.mean
    except AttributeError:
        raise OptionError(
            "option-preprocessing",
            f"torchvision's weights must name how images are prepared for a classifier, got {brief(weights)}; give "
            "such as torchvision.models.ResNet50_Weights.DEFAULT",
        ) from None
    return {
        **_sized(resize, crop),
        **_interpolation(how.interpolation),
        "antialias": how.antialias is not False,
        "channels": 3,
        "mean": _numbers(mean),
        "std": _numbers(how.std),
    }


def from_timm(model: Any) -> Values:
    """The values for one of timm's models, or for its `pretrained_cfg` or `resolve_data_config(...)`.

    Raises:
        OptionError: It has none, or one that cannot be read.
    """
    config = model if isinstance(model, Mapping) else getattr(model, "pretrained_cfg", None)
    config = config if isinstance(config, Mapping) or config is None else vars(config)
    if not config or "input_size" not in config:
        raise OptionError(
            "option-preprocessing", f"{brief(model)} says nothing of how its images are prepared; {ADVICE}"
        )
    channels, height, width = config["input_size"]
    fits = {"center": "crop", "squash": "resize", None: "crop", "": "crop"}
    mode = config.get("crop_mode")
    if mode not in fits:
        raise _cannot(f"timm's crop_mode {mode!r}", "it adds borders")
    return {
        "size": (int(height), int(width)),
        "fit": fits[mode],
        "crop": float(config.get("crop_pct") or 0.875),
        **_interpolation(config.get("interpolation") or "bilinear"),
        **({"channels": int(channels)} if channels in (1, 3) else {}),
        **{key: _numbers(config[key]) for key in ("mean", "std") if config.get(key) is not None},
    }


def from_processor(processor: Any) -> Values:
    """The values for an image processor of transformers, or for the content of its `preprocessor_config.json`.

    Where an odd number of pixels is cropped, the middle is torchvision's: one pixel beside that of some processors.

    Raises:
        OptionError: It does something that cannot be read.
    """
    own: Mapping[str, Any] = processor if isinstance(processor, Mapping) else processor.to_dict()
    settings = own.get("pretrained_cfg") or own.get("data_config")
    if settings:  # of timm
        return from_timm(settings)
    kind = str(own.get("image_processor_type") or own.get("feature_extractor_type") or "").removesuffix("Fast")
    kind = kind.replace("FeatureExtractor", "ImageProcessor")
    if kind.removesuffix("Pil") not in _PROCESSORS:
        raise _cannot(f"an image processor of type {kind or 'that it does not name'}", "what it does is not known here")
    if own.get("do_pad") and own.get("pad_size"):
        raise _cannot("an image processor with do_pad", "it adds borders")
    if kind.startswith("Levit") and not isinstance(own["size"], int) and "shortest_edge" in own["size"]:
        own = {**own, "size": {"shortest_edge": int(own["size"]["shortest_edge"] * 256 / 224)}}
    values: Values = {"channels": 3}
    flips = kind.startswith("MobileViT")  # which swaps red and blue, and does not normalise, unless it says otherwise
    normalises = bool(own.get("do_normalize", not flips))
    if own.get("do_flip_channel_order", flips):
        if not flips:
            raise _cannot(f"an image processor of type {kind} with do_flip_channel_order", "that type has no such step")
        values["order"] = "bgr"
    if own.get("do_resize", True) and own.get("size"):
        values |= _interpolation(own.get("resample", 2))
        values |= _of_processor(own)
    elif own.get("do_center_crop"):
        raise _cannot("an image processor with do_center_crop and without do_resize", "it crops without a scale")
    factor = float(own.get("rescale_factor", BYTES)) if own.get("do_rescale", True) else 1.0
    shift = 1.0 if own.get("rescale_offset") else 0.0
    mean, std = _numbers(0), _numbers(1)
    if normalises and own.get("image_mean") is not None:
        mean, std = _numbers(own["image_mean"]), _numbers(own["image_std"])
    if own.get("include_top") and normalises:  # EfficientNet's divides once more
        std = tuple(value * more for value, more in zip(std, _numbers(own["image_std"]), strict=True))
    # (255 x factor - shift - mean) / std, for x in [0, 1]
    scale = 255 * factor
    if (scale, shift, mean, std) != (1.0, 0.0, (0.0,), (1.0,)):
        values |= {
            "mean": tuple((value + shift) / scale for value in mean),
            "std": tuple(value / scale for value in std),
        }
    return values


def _of_processor(own: Mapping[str, Any]) -> Values:
    size, crop, share = own["size"], own.get("crop_size"), own.get("crop_pct")
    crops = bool(own.get("do_center_crop"))
    if crops and not crop:
        raise _cannot("an image processor with do_center_crop and no crop_size", "how much it takes is not said")
    if isinstance(size, int) or set(size) == {"shortest_edge"}:
        short = size if isinstance(size, int) else int(size["shortest_edge"])
        if isinstance(size, int) and not crops:  # as old files have it: both sides
            return _sized((short, short), None)
        if share and not crops:  # ConvNeXt's: small images are cropped, large ones squashed
            return {"size": (short, short), **({"fit": "crop", "crop": float(share)} if short < 384 else {})}
        if share and _pair(crop) == (short, short):
            return {"size": (short, short), "fit": "crop", "crop": float(share)}
        if crops and not share:
            return _sized(short, _pair(crop))
    elif set(size) == {"height", "width"} and not (share and crops):
        return _sized((int(size["height"]), int(size["width"])), _pair(crop) if crops else None)
    raise _cannot(f"an image processor of size {size}", "the size of its images depends on the picture")


def _sized(resize: Any, crop: Any) -> Values:
    """The size, fit and crop for a resize to the shorter side, or to both sides, and a crop of the middle."""
    sides = tuple(map(int, resize)) if isinstance(resize, Iterable) else (int(resize),)
    middle = None if crop is None else _pair(crop)
    if len(sides) == 1 and middle is None:
        raise _cannot(f"a resize to {sides[0]} without a crop", "the size of the image depends on the picture")
    if len(sides) == 2 and middle is None:
        return {"size": sides}
    assert middle is not None
    shares = [after / before for after, before in zip(middle, sides * (3 - len(sides)), strict=False)]
    if max(shares) > 1 or shares[0] != shares[1]:
        raise _cannot(f"a resize to {' x '.join(map(str, sides))} and a crop of {middle[0]} x {middle[1]}", "it pads")
    return {"size": middle, "fit": "crop" if len(sides) == 1 else "resize", "crop": shares[0]}


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        size = (size["height"], size["width"]) if "height" in size else size["shortest_edge"]
    first, *more = map(int, size) if isinstance(size, Iterable) else (int(size),)
    return first, more[0] if more else first


def _interpolation(given: Any) -> Values:
    name = str(_BY_NUMBER.get(given, given) if isinstance(given, int) else getattr(given, "value", given))
    if name not in _BY_NUMBER.values():
        raise _cannot(f"interpolation {name!r}", "there are bilinear and bicubic")
    return {"interpolation": name}


def _numbers(values: Any) -> tuple[float, ...]:
    values = values.flatten().tolist() if hasattr(values, "flatten") else values
    return tuple(map(float, values)) if isinstance(values, Iterable) else (float(values),)


def _steps(transforms: Any) -> Iterable[Any]:
    """The single transforms of a chain, in order."""
    if isinstance(transforms, list | tuple):
        for step in transforms:
            yield from _steps(step)
        return
    inner = getattr(transforms, "transforms", None)
    if inner is None and _name(transforms) == "Sequential":
        inner = transforms.children()
    if inner is None or not isinstance(inner, Iterable):
        yield transforms
        return
    if _name(transforms) not in ("Compose", "Sequential"):
        raise _cannot(f"transform {_name(transforms)}", "it draws which of its transforms are done")
    for step in inner:
        yield from _steps(step)


def readable(read: Callable[[Any], Values], given: Any) -> Values:
    """What a reader finds, or one clear error where what it is given is of another form.

    Raises:
        OptionError: It cannot be read.
    """
    try:
        return read(given)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise OptionError(
            "option-preprocessing", f"{brief(given)} cannot be read as a preprocessing ({told(what, 100)}); {ADVICE}"
        ) from None


def _name(value: Any) -> str:
    return type(value).__name__


def _cannot(what: str, why: str) -> OptionError:
    return OptionError("option-preprocessing", f"a preprocessing cannot do {what}: {why}; {ADVICE}")
