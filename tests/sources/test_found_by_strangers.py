"""Sources, data and models that strangers brought, and that were misread: each with what is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import brickyard as by
from brickyard.axes import trace
from brickyard.base._classes import ordered_names
from brickyard.inputs._datasets import load_data
from brickyard.sources._loading import load_source
from brickyard.sources._names import class_names
from brickyard.sources._resolve import fitted, preprocessing_of, source_of
from brickyard.surgery import cut
from brickyard.testing import randomised, zeroed_output
from errors import refused
from nets import relative

timm = pytest.importorskip("timm")
models = pytest.importorskip("torchvision.models")
transforms = pytest.importorskip("torchvision.transforms")
v2 = pytest.importorskip("torchvision.transforms.v2")
X = torch.rand(12, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


# -- names of layers ---------------------------------------------------------------------------------------------


class Named(nn.Module):
    """Its first layer is called as one likes, and is as wide as the image or as the classes, or not."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Conv2d(3, width, 3))
        self.second, self.fc = nn.Conv2d(width, 5, 1), nn.Linear(5, 4)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.get_submodule(self.name)(x))
        result: Tensor = self.fc(torch.relu(self.second(y)).mean((2, 3)))
        return result


@pytest.mark.parametrize("width", [3, 4, 6])
@pytest.mark.parametrize("name", ["x", "output", "images", "x_", "second_", "input"])
def test_a_layer_may_be_called_like_the_input_or_the_output(name: str, width: int) -> None:
    model, plain = Named(name, width).double(), Named("first", width).double()
    plain.load_state_dict(dict(zip(plain.state_dict(), model.state_dict().values(), strict=True)))
    data = (X, torch.arange(12) % 4)
    assert torch.equal(by.locate(model, data).scores, by.locate(plain, data).scores)
    graph = trace(model, X[:2])
    keep = {axis.name: torch.arange(axis.size - 1) for axis in graph.free}
    assert [axis.size for axis in graph.free] == [width, 5]
    with torch.no_grad():
        assert relative(cut(graph, keep)(X), zeroed_output(graph, keep, X)) < 1e-10


# -- labels and names --------------------------------------------------------------------------------------------


class Mapped(torch.utils.data.Dataset[Any]):
    """A data set whose `target_transform` changes what `targets` lists."""

    def __init__(self, change: dict[int, int]) -> None:
        self.targets, self.change = (torch.arange(24) % 3).tolist(), change

    def __len__(self) -> int:
        return 24

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        return X[k % 12].float(), self.change.get(self.targets[k], self.targets[k])


@pytest.mark.parametrize("change", [{}, {0: 2, 2: 0}, {1: 2, 2: 1}])
def test_labels_are_those_that_come_with_the_images(change: dict[int, int]) -> None:
    data, model = Mapped(change), Named("first", 6)
    pairs = [data[k] for k in range(24)]
    plain = torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])
    task = [0, 1, 2]
    assert torch.equal(by.locate(model, data, task=task).scores, by.locate(model, plain, task=task).scores)
    loader = torch.utils.data.DataLoader(
        Mapped({}),
        5,
        collate_fn=lambda rows: (torch.stack([x for x, _ in rows]), torch.tensor([2 - y for _, y in rows])),
    )
    turned = plain[0], 2 - torch.tensor(data.targets)
    assert torch.equal(by.locate(model, loader, task=task).scores, by.locate(model, turned, task=task).scores)


def test_names_that_are_numbers_stay_in_their_places(tmp_path: Path) -> None:
    names = sorted(map(str, range(12)))  # "0", "1", "10", "11", "2", ...
    assert ordered_names(dict(enumerate(names))) == names
    assert ordered_names({name: k for k, name in enumerate(names)}) == names  # the control: the other way round
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"id2label": {str(k): name for k, name in enumerate(names)}}))
    assert class_names(str(path)) == names
    assert class_names("cat, dog") == ["cat", "dog"]


def test_a_table_with_numbers_that_do_not_start_at_0_is_matched_by_its_names(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a", "b", "c"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("path,label,class_name\na.png,1,red\nb.png,2,blue\nc.png,3,green\n")
    data = fitted(load_data(tmp_path / "t.csv"), ("blue", "green", "red"))
    assert [data.classes[k] for k in data.labels.tolist()] == ["red", "blue", "green"]
    (tmp_path / "t.csv").write_text("path,label,class_name\na.png,0,red\nb.png,1,blue\nc.png,2,green\n")
    assert load_data(tmp_path / "t.csv").classes == ("red", "blue", "green")  # numbers order the names


# -- what is done to pictures ------------------------------------------------------------------------------------

SIZE = transforms.Resize((16, 16))
UNSCALED = {
    "bytes as floats": [SIZE, v2.ToImage(), v2.ToDtype(torch.float32), v2.Normalize([127.5], [127.5])],
    "bytes": [SIZE, transforms.PILToTensor()],
    "normalised before": [SIZE, transforms.Normalize([0.5], [0.5]), transforms.ToTensor()],
    "a longest side": [transforms.Resize(16, max_size=20), transforms.CenterCrop(8), transforms.ToTensor()],
    "grey in three channels": [SIZE, transforms.Grayscale(3), transforms.ToTensor()],
    "grey after three numbers": [
        SIZE,
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
        transforms.Grayscale(),
    ],
    "nothing": None,
    "a word": "resize",
}


@pytest.mark.parametrize("name", UNSCALED)
def test_chains_that_do_something_else_are_refused(name: str) -> None:
    with refused("option-preprocessing"):
        by.Preprocessing.from_transforms(UNSCALED[name])


def test_a_transform_of_ones_own_is_not_taken_for_the_librarys() -> None:
    class ToTensor:
        def __call__(self, image: Any) -> Any:
            return image

    with refused("option-preprocessing", "ToTensor", "test_found_by_strangers"):
        by.Preprocessing.from_transforms(transforms.Compose([SIZE, ToTensor()]))
    assert by.Preprocessing.from_transforms([SIZE, transforms.ToTensor()]).size == (16, 16)  # a list will do


def test_without_smoothing_only_where_tensors_are_resized() -> None:
    how = by.Preprocessing.from_transforms
    rough = v2.Resize((16, 16), antialias=False)
    assert how([rough, transforms.ToTensor()]).antialias  # PIL always smooths
    assert not how([transforms.ToTensor(), rough]).antialias


ODD = {
    "an unknown type": {"image_processor_type": "DonutImageProcessor", "size": {"height": 8, "width": 8}},
    "no type": {"size": {"height": 8, "width": 8}},
    "a longest edge": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 8, "longest_edge": 9}},
    "a crop of no size": {"image_processor_type": "ViTImageProcessor", "size": 8, "do_center_crop": True},
    "no crop": {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 8}},
    "another crop": {
        "image_processor_type": "PoolFormerImageProcessor",
        **{
            "crop_pct": 0.9,
            "size": {"shortest_edge": 9},
            "crop_size": {"height": 8, "width": 8},
            "do_center_crop": True,
        },
    },
    "no deviation": {"image_processor_type": "ViTImageProcessor", "size": 8, "image_mean": [0.5], "image_std": None},
    "a list as size": {"image_processor_type": "ViTImageProcessor", "size": [8, 8]},
    "a word": "vit",
}


@pytest.mark.parametrize("name", ODD)
def test_processors_that_do_something_else_are_refused(name: str) -> None:
    with refused("option-preprocessing"):
        by.Preprocessing.from_processor(ODD[name])


def test_levits_short_side_is_longer_than_it_says() -> None:
    own = {
        "image_processor_type": "LevitImageProcessor",
        "do_center_crop": True,
        "crop_size": {"height": 42, "width": 42},
    }
    assert by.Preprocessing.from_processor({**own, "size": {"shortest_edge": 42}}).crop == 42 / 48


def test_the_settings_of_timm_in_a_folder_of_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = timm.create_model("resnet10t", num_classes=3)
    config = {
        "input_size": [3, 96, 96],
        "mean": [0.1] * 3,
        "std": [0.2] * 3,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
    }
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    own = {"num_classes": 3, "first_conv": "conv1.0", "classifier": "fc", "interpolation": "bicubic"}
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architecture": "resnet10t",
                "num_classes": 3,
                "label_names": ["a", "b", "c"],
                "pretrained_cfg": {**config, **own},
            }
        )
    )
    how = by.Preprocessing(
        size=(96, 96), fit="crop", interpolation="bicubic", channels=3, mean=(0.1,) * 3, std=(0.2,) * 3
    )
    source = load_source(f"hf:{tmp_path}")
    assert source.preprocessing == how
    assert load_source(f"timm:local-dir:{tmp_path}").preprocessing == how
    assert source.classes == load_source(f"timm:local-dir:{tmp_path}").classes == ("a", "b", "c")


def test_a_processor_that_is_refused_is_not_forgotten_where_a_size_is_given(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=1).save_pretrained(tmp_path)
    for options in ({}, {"size": "32"}, {"no_antialias": True}):
        with refused("option-preprocessing", "interpolation"):
            source_of(f"hf:{tmp_path}", None, None, preprocessing_of(**options))
    whole = source_of(f"hf:{tmp_path}", None, None, preprocessing_of(size="32", mean="0.5", std="0.5"))
    assert (whole.preprocessing.size, whole.preprocessing.mean) == ((32, 32), (0.5,))


# -- networks of libraries ---------------------------------------------------------------------------------------


def test_what_googlenet_does_to_its_images_is_asked_for(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    model = randomised(models.googlenet(transform_input=True, aux_logits=False, init_weights=False, num_classes=5))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        for text, same in (("torchvision:googlenet?transform_input=1", True), ("torchvision:googlenet", False)):
            found = load_source(text, weights=tmp_path / "w.pth").model(x)
            assert torch.allclose(found, model(x), atol=1e-6) == same
            assert ("?transform_input=1" in capsys.readouterr().err) == (not same)
    whole = models.googlenet(init_weights=False)
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *a, **o: whole.state_dict())
    assert load_source("torchvision:googlenet", weights="DEFAULT").model.transform_input


def test_a_number_of_classes_that_the_weights_do_not_have_is_refused(tmp_path: Path) -> None:
    torch.save(models.resnet18(num_classes=7).state_dict(), tmp_path / "w.pth")
    with refused("file-weights-mismatch", "fc.weight"):
        load_source("torchvision:resnet18?num_classes=5", weights=tmp_path / "w.pth")
    assert len(load_source("torchvision:resnet18?num_classes=7", weights=tmp_path / "w.pth").classes) == 7


def test_averages_one_level_deeper_are_found(tmp_path: Path) -> None:
    state, other = models.squeezenet1_1(num_classes=3).state_dict(), models.squeezenet1_1(num_classes=3).state_dict()
    for key in ("module", "shadow"):
        torch.save({"model": other, "ema": {key: state, "decay": 0.9}}, tmp_path / "w.pth")
        found = load_source("torchvision:squeezenet1_1", weights=tmp_path / "w.pth").model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in state.items())


# -- several classes at once -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", [lambda z: z.softmax(1), lambda z: z[:, :1], lambda z: torch.cat([z[:, :1], -z[:, :1]], 1).softmax(1)]
)
def test_classes_that_exclude_each_other_are_not_several(end: Any) -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Named("first", 6)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = end(self.inner(x))
            return result

    model = Ends()
    width = max(2, int(model(X[:2].float()).shape[1]))
    with refused("option-conflict", "several"):
        by.locate(model, (X.float(), torch.ones(12, width, dtype=torch.long)), outputs="several")
