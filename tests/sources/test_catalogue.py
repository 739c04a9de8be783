"""What can be loaded is listed without the libraries, and mistyped names are recognised."""

from __future__ import annotations

import json

import pytest
import torch

from brickyard.sources import _catalogue as catalogue
from brickyard.sources import _zoo as zoo
from brickyard.sources._loading import load_source, save_source
from errors import refused
from shell import python, run


def test_the_lists_are_those_of_the_libraries() -> None:
    found = {kind.name: set(kind.names) for kind in catalogue.kinds()}
    assert found["zoo"] == set(zoo.available())
    torchvision = pytest.importorskip("torchvision")
    assert found["torchvision"] == set(torchvision.models.list_models(module=torchvision.models))
    timm = pytest.importorskip("timm")
    assert found["timm"] == set(timm.list_models())
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    assert found["transformers"] == set(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def test_listing_imports_neither_torch_nor_the_libraries(tmp_path) -> None:
    code = (
        "import sys\nfrom brickyard.sources._catalogue import kinds\n"
        "print(sum(len(kind.names) for kind in kinds()), "
        "{'torch', 'timm', 'torchvision', 'transformers'} & set(sys.modules))"
    )
    count, loaded = python(code, cwd=tmp_path).split(maxsplit=1)
    assert int(count) >= len(zoo.available())
    assert loaded.strip() == "set()"


def test_files_and_the_cache_of_the_hub(tmp_path, monkeypatch) -> None:
    source = load_source("zoo:cnn?classes=3&width=0.125", random_weights=True)
    save_source(tmp_path / "mine.safetensors", source, arch="cnn", options={"width": 0.125})
    (tmp_path / "net.onnx").write_bytes(b"")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 40)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    constants = pytest.importorskip("huggingface_hub.constants")
    pytest.importorskip("transformers")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, made in (("me/vit", "ViTForImageClassification"), ("me/bert", "BertModel")):
        place = tmp_path / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / "1"
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps({"architectures": [made]}))
    monkeypatch.chdir(tmp_path)
    found = {one["kind"]: one["names"] for one in json.loads(run("sources", "--json").stdout)["kinds"]}
    assert found["files"] == ["mine.safetensors", "net.onnx"]
    assert found["hub"] == ["hf:me/vit"]
    assert "hf:me/vit" in run("sources", "VIT", "hub").stdout
    assert run("sources", "no-such-network").stdout == ""
    searched = json.loads(run("sources", "resnet", "20", "zoo:", "--json").stdout)["kinds"]
    assert [name for one in searched for name in one["names"]] == ["zoo:resnet20"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("resnet20", "zoo:resnet20"),
        ("ResNet-20", "zoo:resnet20"),
        ("resnt56?classes=3", "zoo:resnet56"),
        ("zo:lenet5", "zoo:lenet5"),
        ("microsoft/resnet-50", "hf:microsoft/resnet-50"),
    ],
)
def test_what_was_meant(word, meant) -> None:
    with refused("option-source-unknown", meant, "brickyard sources"):
        load_source(word)
    said = run("disassemble", word, "--task", 0, "--data", "digits", "-o", "never.safetensors", code=1).stderr
    assert f"did you mean {meant}" in said


def test_what_cannot_have_been_meant() -> None:
    for word in ("zebra", "", "?", "x" * 10_000, "folder/model.pth", "\x1b[2J", "a/b/c"):
        assert catalogue.suggestions(word) in ([], [f"hf:{word}"]), word
    with refused("option-source-unknown") as caught:
        load_source("zebra")
    assert "did you mean" not in str(caught.value)


def test_mistyped_commands() -> None:
    assert "'disassemble'" in run("disasemble", code=2).stderr
    assert "'list'" in run("yard", "lst", code=2).stderr
    assert "brickyard show zoo:resnet20" in run("resnet20", code=2).stderr
    assert "show" not in run("zebra", code=2).stderr  # the control
