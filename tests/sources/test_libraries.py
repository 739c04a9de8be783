"""Networks of torchvision, timm and transformers, in the form that their weights have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import brickyard as by
from brickyard.sources._loading import Source, load_source
from brickyard.testing import randomised
from errors import refused

models = pytest.importorskip("torchvision.models")
timm = pytest.importorskip("timm")


def saved(model: nn.Module, path: Path) -> Path:
    """The weights as the hub serves them: sorted by name, nothing beside them."""
    save_file({name: value.contiguous().clone() for name, value in model.state_dict().items()}, path)
    return path


def loaded(spec: str, model: nn.Module, folder: Path, **options: Any) -> Source:
    return load_source(spec, weights=saved(model, folder / "w.safetensors"), **options)


def same(source: Source, model: nn.Module) -> None:
    shape = (2, *source.input_shape)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.eval()(x)
        assert torch.equal(source.model(x), expected)
        assert len(source.classes) == expected.shape[1]


NAMES = (
    *("torchvision:alexnet", "torchvision:googlenet", "torchvision:inception_v3", "torchvision:mnasnet0_5"),
    *("torchvision:regnet_y_400mf", "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1"),
    *("timm:resnet18", "timm:tf_efficientnet_lite0", "timm:vit_tiny_patch16_224", "timm:mobilenetv3_small_050"),
    *("timm:levit_128s", "timm:deit_tiny_distilled_patch16_224", "timm:convnext_atto", "timm:mixer_s32_224"),
)


def made(name: str, **options: Any) -> nn.Module:
    library, _, name = name.partition(":")
    build = timm.create_model if library == "timm" else models.get_model
    return build(name, **options)


@pytest.mark.parametrize("classes", [None, 7])
@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_classes_is_read_off_the_weights(name: str, classes: int | None, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = made(name, **({} if classes is None else {"num_classes": classes}))
    same(loaded(name, model, tmp_path), model)


def replaced(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    group, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(group), leaf, layer)
    return model


CHANGED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "one channel": (
        "torchvision:resnet18",
        lambda: replaced(models.resnet18(num_classes=5), "conv1", nn.Conv2d(1, 64, 7, 2, 3, bias=False)),
    ),
    "ten channels": ("timm:resnet18", lambda: timm.create_model("resnet18", in_chans=10, num_classes=5)),
    "one channel, padded as in TensorFlow": (
        "timm:tf_efficientnet_lite0",
        lambda: timm.create_model("tf_efficientnet_lite0", in_chans=1),
    ),
    "patches of one channel": (
        "timm:vit_tiny_patch16_224",
        lambda: timm.create_model("vit_tiny_patch16_224", in_chans=1),
    ),
    "dropout before the head": (
        "torchvision:resnet18",
        lambda: replaced(models.resnet18(), "fc", nn.Sequential(nn.Dropout(0.2), nn.Linear(512, 5))),
    ),
    "the head alone in a Sequential": (
        "torchvision:resnet18",
        lambda: replaced(models.resnet18(), "fc", nn.Sequential(nn.Linear(512, 5, bias=False))),
    ),
    "another last layer": (
        "torchvision:mobilenet_v2",
        lambda: replaced(models.mobilenet_v2(), "classifier.1", nn.Linear(1280, 5)),
    ),
    "without side heads": (
        "torchvision:googlenet",
        lambda: models.googlenet(aux_logits=False, init_weights=False, num_classes=5),
    ),
    "images of 64 pixels": (
        "timm:vit_tiny_patch16_224",
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64),
    ),
    "torchvision's of 64 pixels": ("torchvision:vit_b_32", lambda: models.vit_b_32(image_size=64, num_classes=3)),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_people_change_is_read_off_the_weights(name: str, tmp_path: Path, capsys) -> None:
    spec, build = CHANGED[name]
    model = randomised(build())
    source = loaded(spec, model, tmp_path)
    same(source, model)
    assert (
        ("channels" in capsys.readouterr().err) == (source.input_shape[0] != 3) == (source.preprocessing.mean is None)
    )


def test_options_follow_a_question_mark(tmp_path: Path) -> None:
    source = load_source("timm:vit_tiny_patch16_224?img_size=64&in_chans=1&num_classes=3", random_weights=True)
    assert (source.input_shape, source.classes) == ((1, 64, 64), ("0", "1", "2"))
    assert len(load_source("torchvision:resnet18?num_classes=6", random_weights=True).classes) == 6
    with refused("option-unknown-name", "pretrained", "num_classes"):
        load_source("timm:resnet18?pretrained=1", random_weights=True)
    with refused("option-source-unknown", "torchvision:resnet18"):
        load_source("torchvision:resnet18?num_classes=many", random_weights=True)


UNKNOWN: dict[str, Callable[[], nn.Module]] = {
    "a deeper head": lambda: replaced(
        models.resnet18(), "fc", nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 5))
    ),
    "another width": lambda: models.resnet._resnet(models.resnet.BasicBlock, [1, 1, 1, 1], None, False),
    "another network": lambda: models.mobilenet_v2(),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_told_is_refused(name: str, tmp_path: Path) -> None:
    with refused("file-weights-mismatch", "ResNet"):
        loaded("torchvision:resnet18", UNKNOWN[name](), tmp_path)


# -- weights of the libraries' own -------------------------------------------------------------------------------


def test_the_librarys_own_weights_come_from_its_cache(tmp_path: Path, monkeypatch) -> None:
    model = randomised(models.squeezenet1_1())
    asked: list[Any] = []

    def state(self: Any, *args: Any, **options: Any) -> dict[str, Tensor]:
        asked.append((self.name, options["check_hash"]))
        return model.state_dict()

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", state)
    for word in ("DEFAULT", "IMAGENET1K_V1"):
        same(load_source("torchvision:squeezenet1_1", weights=word), model)
    assert asked == [("IMAGENET1K_V1", True)] * 2
    with refused("option-choice", "IMAGENET1K_V9", "IMAGENET1K_V1"):
        load_source("torchvision:squeezenet1_1", weights="IMAGENET1K_V9")
    with refused("option-requires-option", "DEFAULT"):
        load_source("torchvision:squeezenet1_1")


def test_a_download_that_fails_is_one_clear_error(monkeypatch) -> None:
    def state(self: Any, *args: Any, **options: Any) -> None:
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", state)
    with refused("file-missing", "torchvision:resnet18", "--weights"):
        load_source("torchvision:resnet18", weights="DEFAULT")
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: state(None))
    with refused("file-missing", "timm:resnet18", "--weights"):
        load_source("timm:resnet18", weights="DEFAULT")


def test_timms_own_weights_are_asked_for(monkeypatch) -> None:
    model, create = randomised(timm.create_model("resnet18")), timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **o: model if o.get("pretrained") else create(*a, **o))
    same(load_source("timm:resnet18", weights="DEFAULT"), model)
    same(load_source("timm:hf_hub:somebody/resnet18"), model)
    with refused("option-choice", "IMAGENET1K_V1", "DEFAULT"):
        load_source("timm:resnet18", weights="IMAGENET1K_V1")


def test_how_pictures_are_prepared_is_said_where_a_network_has_several_ways(capsys) -> None:
    usual = load_source("torchvision:mobilenet_v2", random_weights=True)
    assert "?transforms=IMAGENET1K_V1" in capsys.readouterr().err
    first = load_source("torchvision:mobilenet_v2?transforms=IMAGENET1K_V1", random_weights=True)
    assert "transforms" not in capsys.readouterr().err
    for source, weights in ((usual, "DEFAULT"), (first, "IMAGENET1K_V1")):
        assert source.preprocessing == by.Preprocessing.from_torchvision(models.MobileNet_V2_Weights[weights])
    assert usual.preprocessing != first.preprocessing
    load_source("torchvision:squeezenet1_1", random_weights=True)  # which has one way
    assert "transforms" not in capsys.readouterr().err
    with refused("option-choice", "IMAGENET1K_V9", "IMAGENET1K_V1"):
        load_source("torchvision:mobilenet_v2?transforms=IMAGENET1K_V9", random_weights=True)


# -- transformers ------------------------------------------------------------------------------------------------

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture
def vit(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A folder as `save_pretrained` writes it."""
    transformers = pytest.importorskip("transformers")
    names = {0: "crane", 1: "dog", 2: "crane"}
    model = randomised(transformers.ViTForImageClassification(transformers.ViTConfig(id2label=names, **SMALL)))
    model.save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    return model, tmp_path / "vit"


def test_a_folder_of_transformers_is_a_source(vit: tuple[nn.Module, Path], capsys) -> None:
    model, folder = vit
    source = load_source(f"hf:{folder}")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(source.model(x).logits, model(x).logits)
    assert source.classes == ("crane (0)", "dog", "crane (2)")
    assert source.preprocessing == by.Preprocessing(size=(32, 32), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert (source.name, source.input_shape) == ("hf:vit", (3, 32, 32))
    assert "%|" not in capsys.readouterr().err
    named = load_source(f"hf:{folder}", classes=["a", "b", "c"])
    assert named.classes == ("a", "b", "c")


def test_in_parts_or_with_other_weights(vit: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, folder = vit
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    other = randomised(type(model)(model.config), seed=5)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_source(f"hf:{tmp_path / 'parts'}").model(x).logits, model(x).logits)
        tuned = load_source(f"hf:{folder}", weights=saved(other, tmp_path / "w.safetensors"))
        assert torch.equal(tuned.model(x).logits, other(x).logits)


def test_what_is_no_classifier_of_transformers_is_refused(vit: tuple[nn.Module, Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, folder = vit
    with refused("file-missing", "config.json"):
        load_source(f"hf:{tmp_path}")
    with refused("file-missing", "nobody/here"):
        load_source("hf:nobody/here")
    transformers.ViTModel(model.config).save_pretrained(tmp_path / "base")
    with refused("file-weights-mismatch", "classifier.weight", "fine-tuned"):
        load_source(f"hf:{tmp_path / 'base'}")
    transformers.BertModel(
        transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    with refused("option-source-unknown", "bert"):
        load_source(f"hf:{tmp_path / 'bert'}")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "regression"}))
    with refused("option-source-unknown", "regression"):
        load_source(f"hf:{folder}")


def test_code_in_a_folder_is_not_run(vit: tuple[nn.Module, Path], tmp_path: Path) -> None:
    _, folder = vit
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with refused("file-missing"):
        load_source(f"hf:{folder}")
    assert not (tmp_path / "ran").exists()
