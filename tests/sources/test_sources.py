"""The zoo, weights, and sources by text."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.inputs._datasets import ImageData, load_data
from brickyard.inputs._preprocessing import preprocess
from brickyard.sources import _zoo as zoo
from brickyard.sources._loading import Source, load_source, save_source
from brickyard.sources._resolve import preprocessing_of, source_of
from brickyard.surgery._join import cut
from brickyard.testing import randomised, zeroed_output
from brickyard.training._sources import accuracy, build_seeded, train_source
from errors import refused

ARCHITECTURES = [
    *((name, {}) for name in zoo.available()),
    *((name, {"shortcut": "B"}) for name in ("resnet20", "resnet32", "resnet56")),
]


@pytest.mark.parametrize(("name", "options"), ARCHITECTURES)
def test_every_network_of_the_zoo_cuts_right(name, options) -> None:
    width = 0.25 if name not in ("resnet50", "resnet56") else 0.125
    model = randomised(zoo.build(name, classes=5, width=width, **options)).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    graph = trace(model, x)
    generator = torch.Generator().manual_seed(0)
    keep = {
        axis.name: torch.randperm(axis.size, generator=generator)[: max(1, round(0.7 * axis.size))].sort().values
        for axis in graph.free
    }
    assert graph.pinned() == ()
    network, expected = cut(graph, keep), zeroed_output(graph, keep, x)
    error = (network(x) - expected).abs().max() / expected.abs().max()
    assert error < 1e-9
    assert (expected - model(x)).abs().max() / expected.abs().max() > 1e-9
    assert network(x[:1]).shape == (1, 5)


@pytest.mark.parametrize("width", [0.1, 0.25, 0.5, 1.0])
def test_width_scales_every_layer(width) -> None:
    full, narrow = (zoo.build("vgg16", classes=3, width=w) for w in (1.0, width))
    for a, b in zip(full.modules(), narrow.modules(), strict=True):
        if isinstance(a, nn.Conv2d):
            assert b.out_channels == max(1, int(a.out_channels * width + 1e-9))


SHARED_MODELS = [
    ("zoo:resnet20", "resnet20-cifar10", "cifar10", 91.73, None),
    ("zoo:resnet32", "resnet32-cifar10", "cifar10", 92.63, None),
    ("zoo:auto", "vgg16-w25-cifar10", "cifar10", 87.60, None),
    ("zoo:auto", "vgg16-w25-cifar100", "cifar100", 59.71, None),
    ("zoo:auto", "googlenet-w25-cifar10", "cifar10", 87.93, None),
    ("zoo:cnn", "vggs-mnist", "mnist", 99.4, (0.1307, 0.3081)),
]


def grey(mean: float, std: float) -> by.Preprocessing:
    return by.Preprocessing(size=(32, 32), fit="pad", channels=3, mean=(mean,), std=(std,))


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(("spec", "weights", "data", "published", "how"), SHARED_MODELS)
def test_shared_weights_load_and_reach_their_accuracy(spec, weights, data, published, how, shared) -> None:
    images = load_data(str(shared / "data" / data), split="test", max_images=1000)
    source = load_source(spec, weights=shared / "models" / f"{weights}.safetensors", preprocessing=how and grey(*how))
    found = 100 * accuracy(source.model, images, source.preprocessing)
    assert abs(found - published) < 4 * (published * (100 - published) / 1000) ** 0.5  # standard errors
    assert len(source.classes) == len(images.classes)
    wrong = by.Preprocessing(**{**source.preprocessing.model_dump(), "mean": (5.0,), "std": (1.0,)})
    assert 100 * accuracy(source.model, images.subset(range(200)), wrong) < found - 10


@pytest.mark.shared
def test_fashion(shared, fashion) -> None:
    images = load_data(str(fashion), split="test", max_images=1000)
    source = load_source(
        "zoo:cnn", weights=shared / "models/vggs-fmnist.safetensors", preprocessing=grey(0.2860, 0.3530)
    )
    assert 100 * accuracy(source.model, images, source.preprocessing) > 88
    assert images.classes[9] == "Ankle boot"


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("weights", ["resnet20-cifar10", "googlenet-w25-cifar10"])
def test_cut_and_padded_on_trained_residual_and_concatenating_nets(weights, shared) -> None:
    spec = "zoo:resnet20" if "resnet" in weights else "zoo:auto"
    source = load_source(spec, weights=shared / "models" / f"{weights}.safetensors")
    images = load_data(str(shared / "data/cifar10"), max_images=60)
    how, classes = source.preprocessing, [0, 1, 2, 5, 7]
    relevance = by.locate(source.model.double(), images, preprocessing=how, per_class=2, task=classes)
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    parts = [
        by.disassemble(source.model, relevance, task=task, budget=by.Budget(flops=0.5), select="mda", heal="none")
        for task in ([0, 1, 2], [7, 5])
    ]
    graph = relevance.graph(source.model)
    for part in parts:
        keep = {name: torch.tensor(axis.kept) for name, axis in part.manifest.axes.items()}
        expected = zeroed_output(graph, keep, x)
        assert (part(x) - expected).abs().max() / expected.abs().max() < 1e-9
        assert (part(x) - source.model(x)[:, part.manifest.task]).abs().max() > 1e-3
    a, b = (by.assemble(parts, form=form, scaling="none")(x) for form in ("padded", "parallel"))
    assert (a - b).abs().max() / b.abs().max() < 1e-9
    assert (a[:, :2] - b[:, 2:4]).abs().max() > 1e-3


def test_a_source_comes_back_from_its_file(tmp_path) -> None:
    model = build_seeded("resnet20", 4, 0.5, seed=1, channels=1, shortcut="B")
    how = by.Preprocessing(size=(16, 16), mean=(0.3,), std=(0.4,))
    source = Source(model.eval(), "resnet20", ("a", "b", "c", "d"), how, (1, 16, 16))
    options = {"width": 0.5, "channels": 1, "shortcut": "B"}
    path = save_source(tmp_path / "s.safetensors", source, arch="resnet20", options=options)
    again = load_source(str(path))
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(again.model(x), model(x))
    assert (again.classes, again.preprocessing, again.input_shape) == (source.classes, how, source.input_shape)
    other = load_source("zoo:resnet20?shortcut=B", weights=path)
    assert torch.equal(other.model(x), model(x))
    with refused("file-exists"):
        save_source(path, source, arch="resnet20")


def test_weights_in_other_forms(tmp_path) -> None:
    model = build_seeded("lenet5", 4, seed=5)
    x = torch.rand(2, 3, 32, 32)
    state = model.state_dict()
    forms = {
        "plain.pt": state,
        "wrapped.pth": {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
    }
    for name, value in forms.items():
        torch.save(value, tmp_path / name)
        loaded = load_source("zoo:lenet5", weights=tmp_path / name)
        assert torch.equal(loaded.model(x), model.eval()(x))
    assert not torch.equal(load_source("zoo:lenet5?classes=4", random_weights=True).model(x), model(x))


def test_your_own_code(tmp_path) -> None:
    code = (
        "import torch\n"
        "def make():\n    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1),"
        " torch.nn.Flatten())\n"
        "def number():\n    return 3\n"
    )
    (tmp_path / "mine.py").write_text(code)
    source = load_source(f"{tmp_path}/mine.py:make", classes=["a", "b", "c", "d"])
    assert source.model(torch.rand(1, 3, 9, 9)).shape == (1, 4)
    with refused("task-class-count", "4"):
        load_source(f"{tmp_path}/mine.py:make", classes=["a", "b"])


def test_models_of_libraries() -> None:
    torchvision = pytest.importorskip("torchvision")
    assert torchvision
    for spec in ("torchvision:squeezenet1_1", "zoo:lenet5?classes=4"):
        with refused("option-requires-option", "random_weights"):
            load_source(spec)
    source = load_source("torchvision:squeezenet1_1", random_weights=True)
    assert source.input_shape == (3, 224, 224)
    assert len(source.classes) == 1000
    with refused("option-source-unknown", "'nothing'"):
        load_source("torchvision:nothing")


def test_what_is_not_given_of_a_preprocessing_stays_as_the_source_has_it() -> None:
    pytest.importorskip("torchvision")
    load = partial(source_of, "torchvision:squeezenet1_1", None, None, random_weights=True)
    own = load(None).preprocessing
    assert (own.fit, own.crop, own.antialias) == ("crop", 224 / 256, True)
    given = load(preprocessing_of(mean="0.5,0.5,0.5", std="0.5,0.5,0.5")).preprocessing
    assert given == own.model_copy(update={"mean": (0.5,) * 3, "std": (0.5,) * 3})
    assert load(preprocessing_of(no_antialias=True)).preprocessing == own.model_copy(update={"antialias": False})
    asked = load(preprocessing_of(size="crop:192")).preprocessing
    assert (asked.size, asked.fit, asked.crop, asked.mean) == ((192, 192), "crop", 1.0, own.mean)  # the control
    assert load(preprocessing_of(size="200")).preprocessing.fit == "resize"


def test_a_letterbox_takes_the_place_of_a_crop() -> None:
    pytest.importorskip("torchvision")
    load = partial(source_of, "torchvision:squeezenet1_1", None, None, random_weights=True)
    own = load(None).preprocessing
    words = {"size": "letterbox:96x64", "fill": "114/255", "place": "corner", "order": "bgr", "std": "1/255"}
    found = load(preprocessing_of(**words, mean="0")).preprocessing
    boxed = {"size": (96, 64), "fit": "letterbox", "crop": 1.0, "fill": 114 / 255, "place": "corner", "order": "bgr"}
    assert found == own.changed({**boxed, "mean": (0.0,), "std": (1 / 255,)})
    assert load(preprocessing_of(order="bgr")).preprocessing == own.model_copy(update={"order": "bgr"})


@pytest.mark.parametrize(
    ("words", "code", "quoted"),
    [
        ({"fill": "0.5"}, "option-conflict", "--fill"),
        ({"size": "crop:32", "place": "corner"}, "option-conflict", "--place"),
        ({"size": "letterbox:32", "fill": "114"}, "option-preprocessing", "fill"),
        ({"size": "letterbox:32", "fill": "1/0"}, "option-syntax", "'1/0'"),
        ({"size": "letterbox:32", "place": "top"}, "option-preprocessing", "place"),
        ({"size": "letterbox:32", "order": "grb"}, "option-preprocessing", "order"),
        ({"size": "letter:32"}, "option-syntax", "'letter:32'"),
        ({"mean": "0.5", "std": "1/x"}, "option-syntax", "--std"),
    ],
)
def test_words_of_a_preprocessing_that_cannot_be_used(words, code, quoted) -> None:
    with refused(code, quoted):
        preprocessing_of(**words)


def test_a_source_that_takes_blue_first_is_trained_with_the_mean_of_blue_first() -> None:
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8) // torch.tensor([1, 2, 4]).view(1, 3, 1, 1)
    images = ImageData(pixels.to(torch.uint8), torch.arange(8) % 2, ("a", "b"))
    made = [
        train_source("cnn?width=0.1", images, preprocessing=by.Preprocessing(order=order), epochs=1).source
        for order in ("rgb", "bgr")
    ]
    rgb, bgr = (source.preprocessing for source in made)
    assert (bgr.order, bgr.mean, bgr.std) == ("bgr", rgb.mean[::-1], rgb.std[::-1])
    assert rgb.mean[0] > 1.5 * rgb.mean[1] > 2 * rgb.mean[2]
    normal = preprocess(images.images, bgr).transpose(0, 1).flatten(1)
    assert torch.allclose(normal.mean(1), torch.zeros(3), atol=1e-3)


def test_a_source_is_trained_with_all_of_the_preprocessing_it_is_given() -> None:
    images = ImageData(torch.randint(0, 256, (8, 1, 20, 20), dtype=torch.uint8), torch.arange(8) % 2, ("a", "b"))
    how = by.Preprocessing(size=(32, 32), fit="crop", crop=0.8, interpolation="bicubic", antialias=False)
    found = train_source("lenet5?width=0.5", images, preprocessing=how, epochs=1).source.preprocessing
    kept = {"crop": 0.8, "interpolation": "bicubic", "antialias": False, "fit": "crop", "size": (32, 32)}
    assert {name: getattr(found, name) for name in kept} == kept
