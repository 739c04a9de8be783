"""What other libraries do to pictures is read, and does the same to photographs as theirs."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision import transforms as v1
from torchvision.transforms import v2

from brickyard import Preprocessing
from brickyard.inputs._preprocessing import preprocess, sized
from errors import refused

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LEVEL = 1.01 / 255  # one grey level, as PIL rounds after each step


def photograph(height: int = 96, width: int = 128) -> Image.Image:
    """A smooth picture with edges, as JPEG gives it back."""
    y, x = np.mgrid[:height, :width] / 20
    picture = 127 + 90 * np.stack([np.sin(x + y), np.cos(2 * x) * np.sin(y), np.sign(np.sin(3 * y))], -1)
    file = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(file, "JPEG")
    return Image.open(file).convert("RGB")


def raw(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)


def same(how: Preprocessing, theirs: Callable[[Image.Image], Any], std: float = 0.22) -> None:
    """The same numbers but for a grey level, from the picture and from what is kept of it; another picture differs."""
    for picture in (photograph(), photograph(128, 96), photograph(64, 64)):
        wanted = torch.as_tensor(theirs(picture)).float()
        found = preprocess(raw(picture)[None], how)[0]
        assert found.shape == wanted.shape
        assert (found - wanted).abs().mean() < 0.6 * LEVEL / std
        assert (found - wanted).abs().max() < 3 * LEVEL / std
        kept = preprocess(sized(raw(picture), how)[None], how)[0]
        assert (kept - found).abs().max() < 2 * LEVEL / std
        other = preprocess(raw(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))[None], how)[0]
        assert (other - wanted).abs().mean() > 10 * LEVEL


TAIL = [v1.ToTensor(), v1.Normalize(MEAN, STD)]
NEW = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
CHAINS: dict[str, Any] = {
    "ImageNet's": v1.Compose([v1.Resize(48), v1.CenterCrop(42), *TAIL]),
    "bicubic": v1.Compose([v1.Resize(48, v1.InterpolationMode.BICUBIC), v1.CenterCrop(42), *TAIL]),
    "squashed": v1.Compose([v1.Resize((40, 32)), *TAIL]),
    "squashed, then cropped": v1.Compose([v1.Resize((48, 48)), v1.CenterCrop(36), *TAIL]),
    "only numbers": v1.Compose(TAIL),
    "version 2": v2.Compose([v2.Resize(48), v2.CenterCrop(42), *NEW]),
    "version 2, tensor first": v2.Compose([v2.PILToTensor(), v2.Resize((32, 32), antialias=True), *NEW[1:]]),
    "nested": v1.Compose([v1.Compose([v1.Resize(48), v1.CenterCrop(42)]), v1.Compose(TAIL)]),
    "one number for all": v1.Compose([v1.Resize((32, 32)), v1.ToTensor(), v1.Normalize(0.5, 0.25)]),
    "sequential": nn.Sequential(v2.PILToTensor(), v2.Resize(48), v2.CenterCrop(42), *NEW[1:]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_transforms_are_read(name: str) -> None:
    same(Preprocessing.from_transforms(CHAINS[name]), CHAINS[name])


def test_grey_is_read() -> None:
    how = Preprocessing.from_transforms(v1.Compose([v1.Grayscale(), v1.Resize((28, 28)), v1.ToTensor()]))
    assert (how.channels, how.size, how.mean) == (1, (28, 28), None)


DRAWN = [
    v1.RandomHorizontalFlip(),
    v1.RandomResizedCrop(32),
    v1.ColorJitter(0.1),
    v1.Pad(3),
    v1.Lambda(lambda x: x),
    v1.RandomApply([v1.CenterCrop(3)]),
    v1.FiveCrop(16),
    v2.RandAugment(),
]


@pytest.mark.parametrize("step", DRAWN, ids=lambda step: type(step).__name__)
def test_what_cannot_be_read_is_named(step: Any) -> None:
    with refused("option-preprocessing", type(step).__name__):
        Preprocessing.from_transforms(v1.Compose([v1.Resize(48), v1.CenterCrop(42), step, *TAIL]))


@pytest.mark.parametrize(
    "steps",
    [
        [v1.Resize(48)],  # keeps the ratio of the sides
        [v1.CenterCrop(32)],
        [v1.Resize(32), v1.CenterCrop(48)],  # pads
        [v1.Resize(48), v1.CenterCrop((40, 20))],
        [v1.CenterCrop(40), v1.Resize(32)],
        [v1.Resize(48, v1.InterpolationMode.NEAREST), v1.CenterCrop(42)],
        [v1.Normalize(0.5, 0.5), v1.Normalize(0.5, 0.5)],
    ],
)
def test_sizes_that_a_preprocessing_does_not_have_are_refused(steps: list[Any]) -> None:
    with refused("option-preprocessing"):
        Preprocessing.from_transforms(v1.Compose([*steps, v1.ToTensor()]))


@pytest.mark.parametrize(
    "name", ["ResNet50_Weights", "EfficientNet_B0_Weights", "ViT_B_16_Weights", "Swin_V2_T_Weights"]
)
def test_torchvisions_weights_are_read(name: str) -> None:
    weights = getattr(models, name).DEFAULT
    how = Preprocessing.from_torchvision(weights)
    assert how == Preprocessing.from_torchvision(weights.transforms())
    picture = photograph(300, 400)
    found, wanted = preprocess(raw(picture)[None], how)[0], weights.transforms()(picture)
    assert (found - wanted).abs().mean() < 0.6 * LEVEL / 0.22
    assert (found - wanted).abs().max() < 3 * LEVEL / 0.22
    with refused("option-preprocessing"):
        Preprocessing.from_torchvision(name)


@pytest.mark.parametrize("name", ["resnet18", "mobilevit_xxs", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_timms_models_are_read(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name)
    data = timm.data.resolve_data_config({}, model=model)
    how, theirs = Preprocessing.from_timm(model), timm.data.create_transform(**data)
    assert how == Preprocessing.from_timm(data) == Preprocessing.from_timm(model.pretrained_cfg)
    picture = photograph(300, 400)
    found, wanted = preprocess(raw(picture)[None], how)[0], theirs(picture)
    assert (found - wanted).abs().mean() < 0.6 * LEVEL / 0.22
    squashed = timm.data.create_transform(**{**data, "crop_mode": "squash"})(picture)
    how = Preprocessing.from_timm({**data, "crop_mode": "squash"})
    assert (preprocess(raw(picture)[None], how)[0] - squashed).abs().mean() < 0.6 * LEVEL / 0.22
    with refused("option-preprocessing", "border"):
        Preprocessing.from_timm({**data, "crop_mode": "border"})
    with refused("option-preprocessing"):
        Preprocessing.from_timm(nn.Linear(2, 2))


PROCESSORS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {"size": {"height": 32, "width": 40}},
    "DeiTImageProcessor": {"size": {"height": 48, "width": 48}, "crop_size": {"height": 42, "width": 42}},
    "BitImageProcessor": {"size": {"shortest_edge": 42}, "crop_size": {"height": 42, "width": 42}},
    "MobileNetV2ImageProcessor": {"size": {"shortest_edge": 48}, "crop_size": {"height": 42, "width": 42}},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 42}, "crop_pct": 0.875},
    "PoolFormerImageProcessor": {
        "size": {"shortest_edge": 18},
        "crop_pct": 0.9,
        "crop_size": {"height": 18, "width": 18},
    },
    "EfficientNetImageProcessor": {
        "size": {"height": 32, "width": 32},
        "rescale_offset": True,
        "include_top": False,
        "rescale_factor": 1 / 127.5,
    },
    "EfficientNetImageProcessorFast": {"size": {"height": 32, "width": 32}, "image_std": [0.4, 0.5, 0.6]},
    "BeitImageProcessor": {"size": {"height": 32, "width": 32}, "do_normalize": False},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_are_read(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, name)(**PROCESSORS[name])
    how = Preprocessing.from_processor(processor)
    same(how, lambda picture: processor(picture, return_tensors="pt")["pixel_values"][0])
    with refused("option-preprocessing", "do_flip_channel_order"):  # of which its type knows nothing
        Preprocessing.from_processor({**processor.to_dict(), "do_flip_channel_order": True})


@pytest.mark.parametrize("flip", [True, False])
def test_an_order_of_colours_is_read(flip: bool) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"size": {"shortest_edge": 48}, "crop_size": {"height": 42, "width": 42}}
    processor = transformers.MobileViTImageProcessor(**sizes, do_flip_channel_order=flip)
    how = Preprocessing.from_processor(processor)
    assert how.order == ("bgr" if flip else "rgb")
    same(how, lambda picture: processor(picture, return_tensors="pt")["pixel_values"][0])
    said = {key: value for key, value in processor.to_dict().items() if key != "do_flip_channel_order"}
    assert Preprocessing.from_processor(said).order == "bgr"  # which is what its type does
