"""Classifiers of transformers, as they are: read, cut exactly, saved and loaded without that library."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import brickyard as by
from brickyard.axes import trace
from brickyard.export import _onnx_modules, export_onnx
from brickyard.surgery import cut
from brickyard.testing import randomised, zeroed_output
from errors import refused
from nets import relative
from shell import python

transformers = pytest.importorskip("transformers")

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTConfig", VIT),
    "DINOv2": ("Dinov2Config", VIT),
    "DINOv2 with registers": ("Dinov2WithRegistersConfig", VIT),
    "BEiT": ("BeitConfig", VIT),
    "BEiT with a bias, made in place": ("BeitConfig", {**VIT, "use_relative_position_bias": True}),
    "Swin": ("SwinConfig", WINDOWS),
    "SwinV2": ("Swinv2Config", WINDOWS),
    "ResNet": ("ResNetConfig", {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}),
    "ConvNeXt V2": ("ConvNextV2Config", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}),
    "MobileNet V2": ("MobileNetV2Config", {"depth_multiplier": 0.35, "image_size": 32}),
    "PVT V2": ("PvtV2Config", {"image_size": 32, "num_attention_heads": [1, 1, 2, 4], **STAGES}),
    "SegFormer": ("SegformerConfig", {"num_attention_heads": [1, 1, 2, 4], **STAGES}),
    "RegNet": ("RegNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4}),
}
X = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def build(name: str) -> nn.Module:
    kind, options = CONFIGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, kind)(num_labels=4, id2label={k: f"class {k}" for k in range(4)}, **options)
        return randomised(transformers.AutoModelForImageClassification.from_config(config))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cut_is_exact(name: str) -> None:
    model = build(name).double()
    x = X[:3].double()
    graph = trace(model, x[:2])
    with torch.no_grad():
        assert relative(graph.network(x), model(x).logits) < 1e-10
        generator = torch.Generator().manual_seed(0)
        keep = {}
        for axis in graph.free:
            some = torch.randperm(axis.size, generator=generator)[: max(1, axis.size * 2 // 3)]
            keep[axis.name] = some.sort().values
        assert keep
        expected = zeroed_output(graph, keep, x)
        assert relative(cut(graph, keep)(x), expected) < 1e-10
        assert relative(expected, model(x).logits) > 1e-3  # the control


def test_heads_of_a_vision_transformer_are_free() -> None:
    sizes = {axis.name: axis.size for axis in trace(build("ViT"), X[:2]).free}
    assert {name: size for name, size in sizes.items() if name.endswith("q_proj")} == {
        f"vit.layers.{k}.attention.q_proj": 4 for k in range(2)
    }
    assert not any(node.target.startswith("aten") for node in trace(build("ViT"), X[:2]).network.nodes)


class Expanded(nn.Module):
    """Attention with heads beside the batch, (tokens, batch * heads, width), as torch's own is read."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.patches, self.head, self.keep = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 4), keep
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        randomised(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patches(x).flatten(2).permute(2, 0, 1)  # (tokens, batch, 16)
        batch = y.shape[1]
        q, k, v = (z.reshape(16, batch * 4, 4).transpose(0, 1) for z in self.qkv(y).chunk(3, -1))
        if self.keep:  # which no view follows
            q = q * 1.5
        q, k, v = (z.view(batch, 4, 16, 4) for z in (q, k, v))
        z = nn.functional.scaled_dot_product_attention(q, k, v)
        result: torch.Tensor = self.head(
            self.out(z.permute(2, 0, 1, 3).reshape(16 * batch, 16)).view(16, batch, 16).mean(0)
        )
        return result


@pytest.mark.parametrize("keep", [False, True])
def test_heads_beside_the_batch_are_free_where_they_are_only_moved(keep: bool) -> None:
    model = Expanded(keep).double()
    graph = trace(model, X[:2].double())
    sizes = {axis.name: axis.size for axis in graph.free}
    assert ("qkv" in sizes) != keep
    assert sizes.get("qkv", 4) == 4
    for count in (1, 3, 5):  # as many images as the example has, and others
        x = X[:count].double()
        keeps = {axis.name: torch.tensor([0, *range(2, axis.size)]) for axis in graph.free}
        with torch.no_grad():
            expected = zeroed_output(graph, keeps, x)
            assert relative(cut(graph, keeps)(x), expected) < 1e-10
            assert relative(expected, model(x)) > 1e-3


def test_heads_of_torchvisions_vision_transformer_are_free() -> None:
    vision = pytest.importorskip("torchvision.models.vision_transformer")
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 1, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 48}
    graph = trace(randomised(vision.VisionTransformer(num_classes=4, **sizes)).eval(), X[:2])
    free = {axis.name: axis.size for axis in graph.free}
    assert free == {"encoder.layers.encoder_layer_0.self_attention": 4, "encoder.layers.encoder_layer_0.mlp.0": 48}


class Masked(nn.Module):
    """Attention with a mask."""

    def __init__(self, mask: torch.Tensor | nn.Parameter) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 4)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        if isinstance(mask, nn.Parameter):
            self.mask = mask
        else:
            self.register_buffer("mask", mask)
        randomised(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(y).reshape(y.shape[0], 16, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        z = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        result: torch.Tensor = self.head(self.out(z.transpose(1, 2).flatten(2)).mean(1))
        return result


@pytest.mark.parametrize("kind", ["true", "zero", "causal", "trained"])
def test_only_a_mask_that_hides_nothing_is_left_out(kind: str) -> None:
    masks = {
        "true": torch.ones(1, 1, 16, 16, dtype=torch.bool),
        "zero": torch.zeros(16, 16),
        "causal": torch.ones(16, 16).tril().bool(),
        "trained": nn.Parameter(torch.zeros(1, 1, 16, 16)),
    }
    model = Masked(masks[kind])
    if kind in ("zero", "trained"):
        with torch.no_grad():
            model.mask.zero_()
    graph = trace(model, X[:2])
    kept = any(node.target == "mask" for node in graph.network.nodes)
    assert kept == (kind in ("causal", "trained"))
    with torch.no_grad():
        assert relative(graph.network(X), model(X)) < 1e-5


def test_a_component_is_saved_and_runs_without_transformers(tmp_path: Path) -> None:
    model = build("ViT")
    labels = model(X).logits.argmax(1)
    labels[:4] = torch.arange(4)
    component = by.disassemble(
        model, by.locate(model, (X, labels)), task=["class 3", "class 1"], budget=by.Budget(flops=0.6), heal="none"
    )
    assert component.manifest.source.classes == ("class 0", "class 1", "class 2", "class 3")
    path = component.save(tmp_path / "part.safetensors")
    torch.save((X, component(X)), tmp_path / "x.pt")
    code = (
        "import sys, torch; sys.modules['transformers'] = None; import brickyard as by; "
        "x, y = torch.load(sys.argv[2]); print(torch.allclose(by.load(sys.argv[1])(x), y, rtol=0, atol=1e-6))"
    )
    assert python(code, path, tmp_path / "x.pt").strip() == "True"
    assert "transformers" in sys.modules


@pytest.mark.slow
def test_windows_of_attention_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter must not rely on where attention's kernel puts its values in memory."""
    data = X, torch.arange(12) % 4
    model = build("Swin")
    part = by.disassemble(model, by.locate(model, data), task=[0, 2])
    error = export_onnx(part, tmp_path / "part.onnx").error
    assert error is not None
    assert error < 1e-5
    monkeypatch.setattr(_onnx_modules, "_LaidOut", contextlib.nullcontext)  # the control
    with refused("surgery-export-failed"):
        export_onnx(part, tmp_path / "other.onnx")
