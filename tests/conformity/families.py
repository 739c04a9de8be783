"""One small model of every family of timm, torchvision's classifiers, configurations of transformers, rows of blocks.

`python tests/conformity --families` checks them, each in a process of its own, goes on where it stopped, and writes
`docs/families.md`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

import checks
import own_checks
import torch
import yaml_models
from models import CLASSES
from torch import Tensor, nn

import brickyard as by
from brickyard.axes._answers import at, path_to_logits
from brickyard.axes._graph import Graph, trace
from brickyard.export import export_onnx
from brickyard.runtime._progress import bar
from brickyard.surgery._join import cut
from brickyard.surgery._rotation import opened
from brickyard.testing import randomised, zeroed_output

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "families.md"
NOTES = ROOT / ".cache" / "families.jsonl"
LIMIT = 400  # seconds for one
EXACT, CLOSE, MOSTLY = 1e-9, 1e-5, 0.7

# fmt: off
TIMM = {  # the smallest that is found of each of timm's files of models; the size of images, if it is not 64
    "beit_base_patch16_224": 224, "eca_botnext26ts_256": 256, "mobileone_s1": 64, "cait_xxs24_224": 224,
    "coat_tiny": 224, "convit_tiny": 224, "convmixer_768_32": 64, "convnext_atto_rms": 64, "cpubone_nano": 64,
    "crossvit_tiny_240": 240,
    "csatv2": 512, "cs3darknet_focus_s": 64, "cspnext_tiny": 64, "davit_tiny": 224, "deit_tiny_patch16_224": 224,
    "densenet121": 64, "dla34": 64, "dpn48b": 64, "edgenext_xx_small": 64, "efficientformer_l1": 224,
    "efficientformerv2_s0": 224, "tinynet_e": 64, "efficientvim_m1": 64, "efficientvit_b0": 64, "efficientvit_m0": 224,
    "vit_tiny_patch16_dinov3_qkvb": 256, "fasternet_t0": 64, "fastvit_t8": 64, "focalnet_tiny_srf": 64,
    "gcvit_xxtiny": 224, "ghostnet_050": 64, "hardcorenas_b": 64, "hgnetv2_b0": 64, "hiera_tiny_224": 224,
    "hrnet_w18_small": 64, "iformer_t": 64, "inception_next_atto": 64, "inception_resnet_v2": 96, "inception_v3": 96,
    "inception_v4": 96, "lcnetv2_small": 64, "levit_128": 224, "lowformer_b0": 64, "mambaout_femto": 64,
    "maxvit_pico_rw_256": 256, "poolformer_s12": 64, "gmlp_ti16_224": 224, "mobilenetv3_small_050": 64,
    "mobilenetv5_base": 64, "mobilevit_xxs": 64, "mvitv2_tiny": 224, "naflexvit_base_patch16_gap": 224,
    "nest_tiny": 224, "nextvit_small": 64, "nf_regnet_b0": 64, "pit_ti_224": 224, "pvt_v2_b0": 64, "rdnet_tiny": 64,
    "regnetx_004_tv": 64, "repghostnet_050": 64, "repvit_m1": 64, "res2next50": 64, "resnest14d": 64, "resnet18": 64,
    "resnetv2_18": 64, "rexnet_100": 64, "selecsls42": 64, "legacy_seresnet18": 64, "sequencer2d_s": 224,
    "shvit_s1": 64, "skresnet18": 64, "starnet_s050": 64, "swiftformer_xs": 224, "swin_tiny_patch4_window7_224": 224,
    "swinv2_tiny_window8_256": 256, "swinv2_cr_tiny_224": 224, "tiny_vit_5m_224": 224, "tnt_s_legacy_patch16_224": 224,
    "tresnet_m": 64, "twins_svt_small": 224, "vgg11": 64, "visformer_tiny": 224, "vit_tiny_patch16_224": 224,
    "vit_tiny_r_s16_p8_224": 224, "vit_srelpos_small_patch16_224": 224, "vitamin_small_224": 224, "volo_d1_224": 224,
    "ese_vovnet19b_slim_dw": 64, "legacy_xception": 96, "xception41p": 64, "xcit_nano_12_p8_224": 224,
}
TORCHVISION = {  # all but those of more than 100 million parameters, and larger ones of a kind that is there
    "alexnet": 96, "convnext_tiny": 64, "convnext_small": 64, "densenet121": 64, "densenet161": 64, "densenet169": 64,
    "efficientnet_b0": 64, "efficientnet_b2": 64, "efficientnet_v2_s": 64, "googlenet": 64, "inception_v3": 96,
    "maxvit_t": 224, "mnasnet0_5": 64, "mnasnet1_0": 64, "mnasnet1_3": 64, "mobilenet_v2": 64, "mobilenet_v3_large": 64,
    "mobilenet_v3_small": 64, "regnet_x_400mf": 64, "regnet_x_800mf": 64, "regnet_x_1_6gf": 64, "regnet_y_400mf": 64,
    "regnet_y_800mf": 64, "regnet_y_1_6gf": 64, "resnet18": 64, "resnet34": 64, "resnet50": 64, "resnet101": 64,
    "resnext50_32x4d": 64, "shufflenet_v2_x0_5": 64, "shufflenet_v2_x1_0": 64, "shufflenet_v2_x1_5": 64,
    "shufflenet_v2_x2_0": 64, "squeezenet1_0": 64, "squeezenet1_1": 64, "swin_t": 224, "swin_v2_t": 224, "vgg11": 64,
    "vgg11_bn": 64, "vgg16": 64, "vgg16_bn": 64, "vit_b_16": 224, "vit_b_32": 224, "wide_resnet50_2": 64,
}
# fmt: on

VIT = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    **{"image_size": 32, "patch_size": 8},
}
STAGES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
VISION = {"vision_config": VIT}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTConfig", VIT),
    "vit without biases": ("ViTConfig", {**VIT, "qkv_bias": False, "hidden_act": "relu"}),
    "vit, large images": ("ViTConfig", {**VIT, "image_size": 64, "patch_size": 16}),
    "vit-msn": ("ViTMSNConfig", VIT),
    "deit": ("DeiTConfig", VIT),
    "beit": ("BeitConfig", VIT),
    "beit, shared bias": ("BeitConfig", {**VIT, "use_shared_relative_position_bias": True}),
    "beit, own bias": ("BeitConfig", {**VIT, "use_relative_position_bias": True}),
    "data2vec-vision": ("Data2VecVisionConfig", VIT),
    "dinov2": ("Dinov2Config", VIT),
    "dinov2, swiglu": ("Dinov2Config", {**VIT, "use_swiglu_ffn": True}),
    "dinov2 with registers": ("Dinov2WithRegistersConfig", VIT),
    "ijepa": ("IJepaConfig", VIT),
    "clip": ("CLIPConfig", VISION),
    "metaclip 2": ("MetaClip2Config", VISION),
    "siglip": ("SiglipConfig", VISION),
    "swin": ("SwinConfig", WINDOWS),
    "swin, absolute positions": ("SwinConfig", {**WINDOWS, "use_absolute_embeddings": True}),
    "swinv2": ("Swinv2Config", WINDOWS),
    "donut-swin": ("DonutSwinConfig", WINDOWS),
    "focalnet": (
        "FocalNetConfig",
        {
            **{k: WINDOWS[k] for k in ("image_size", "patch_size", "embed_dim")},
            "depths": [1, 1],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
    ),
    "hiera": (
        "HieraConfig",
        {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
    ),
    "resnet": ("ResNetConfig", {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}),
    "resnet, basic blocks": (
        "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
    ),
    "regnet": ("RegNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4}),
    "bit": ("BitConfig", {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "num_groups": 4}),
    "convnext": ("ConvNextConfig", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}),
    "convnextv2": ("ConvNextV2Config", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}),
    "cvt": ("CvtConfig", {}),
    "efficientnet": (
        "EfficientNetConfig",
        {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    ),
    "levit": (
        "LevitConfig",
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
    ),
    "mobilenet v1": ("MobileNetV1Config", {"depth_multiplier": 0.25, "image_size": 32}),
    "mobilenet v2": ("MobileNetV2Config", {"depth_multiplier": 0.35, "image_size": 32}),
    "mobilevit": (
        "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64]},
    ),
    "mobilevit v2": ("MobileViTV2Config", {"image_size": 64, "width_multiplier": 0.5}),
    "poolformer": ("PoolFormerConfig", {**STAGES, "num_encoder_blocks": 4}),
    "pvt": ("PvtConfig", {"image_size": 64, "num_attention_heads": [1, 1, 2, 4], **STAGES}),
    "pvt v2": ("PvtV2Config", {"image_size": 32, "num_attention_heads": [1, 1, 2, 4], **STAGES}),
    "segformer": ("SegformerConfig", {"num_attention_heads": [1, 1, 2, 4], **STAGES}),
    "swiftformer": ("SwiftFormerConfig", {"image_size": 64, "embed_dims": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}),
    "hgnet v2": ("HGNetV2Config", {}),
    "pp-lcnet": ("PPLCNetConfig", {"scale": 0.5}),
    "textnet": ("TextNetConfig", {}),
}


def every() -> dict[str, int]:
    """All models by title, with the size of their images."""
    found = {f"timm:{name}": size for name, size in TIMM.items()}
    found |= {f"torchvision:{name}": size for name, size in TORCHVISION.items()}
    found |= {f"transformers:{name}": _side(options) for name, (_, options) in TRANSFORMERS.items()}
    return found | {f"yaml:{name}": 64 for name in yaml_models.CONFIGS}


def _side(options: dict[str, Any]) -> int:
    size = options.get("image_size", options.get("vision_config", {}).get("image_size", 64))
    return int(size[0] if isinstance(size, list) else size)


def build(title: str) -> nn.Module:
    """A model with random weights, none of them at its usual starting value."""
    library, _, name = title.partition(":")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        if library == "timm":
            import timm

            return randomised(timm.create_model(name, num_classes=CLASSES))
        if library == "torchvision":
            import torchvision.models

            slow = name.startswith(("vgg", "googlenet", "inception"))
            options = {"init_weights": False} if slow else {}
            return randomised(torchvision.models.get_model(name, num_classes=CLASSES, **options))
        if library == "yaml":
            return randomised(yaml_models.made(name, CLASSES))
        import transformers

        kind, given = TRANSFORMERS[name]
        config = getattr(transformers, kind)(num_labels=CLASSES, **given)
        found = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
        return randomised((found[0] if isinstance(found, tuple) else found)(config))


def check(title: str, size: int, *, onnx: bool = True) -> dict[str, Any]:
    """Everything of one model; what stops it is in "stage" and "reason"."""
    report: dict[str, Any] = {"title": title, "size": size, "stage": "", "reason": "", "saved": False, "onnx": None}
    start = time.perf_counter()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        try:
            _check(title, size, report, Path(folder), onnx)
            report["stage"] = ""
        except by.BrickyardError as error:
            report["reason"] = f"{error.code}: {error}"
        except Exception as error:
            report["reason"] = f"raw {type(error).__name__}: {error}"
    report["seconds"] = round(time.perf_counter() - start, 1)
    return report


def _check(title: str, size: int, report: dict[str, Any], folder: Path, onnx: bool) -> None:
    report["stage"] = "build"
    model = build(title)
    report["parameters"] = sum(p.numel() for p in model.parameters())
    report["stage"] = "trace"
    x = images(3, 1, size).double()
    graph = trace(model.double(), x[:2])
    report["free"], report["turned"] = (
        own_checks.free_parameters(graph),
        own_checks.free_parameters(opened(graph).graph),
    )
    report["pinned"] = sorted({reason for axis in graph.axes if axis.pinned for reason in axis.pinned})[:4]
    report["stage"] = "cut"
    _cut(graph, model, x, report)
    report["stage"] = "component"
    model = build(title)  # some keep values of the type that they ran in
    data = images(2 * CLASSES, 3, size), torch.arange(2 * CLASSES) % CLASSES
    relevance = by.locate(model, data, choose="all")
    budget = by.Budget(flops=0.9, factors=False)
    way = {"select": "mda", "heal": "moments"} if report["free"] else {}  # only damage opens norms
    component = by.disassemble(model, relevance, task=[0, 2, 3], budget=budget, images=data, **way)
    report["stage"] = "save"
    loaded = by.load(component.save(folder / "part.safetensors"))
    with torch.no_grad():
        report["saved"] = torch.equal(component(data[0][:4]), loaded(data[0][:4]))
    if not onnx:
        return
    report["stage"] = "onnx"
    report["onnx"] = export_onnx(component, folder / "part.onnx", check_images=data[0][:5]).error


def _cut(graph: Graph, model: nn.Module, x: Tensor, report: dict[str, Any]) -> None:
    with torch.no_grad():
        keep = checks.drawn_keep(graph, 0)
        part = cut(graph, keep)
        wanted = zeroed_output(graph, keep, x)
        result = model(x)
        path = path_to_logits(result, len(x))
        assert path is not None
        result = at(result, path)
        report["traced"] = checks.relative(_ended(graph, graph.network(x)), result)
        report["zeroed"] = checks.relative(part(x), wanted)
        report["control"] = checks.relative(_ended(graph, part(x)), result)


def _ended(graph: Graph, logits: Tensor) -> Tensor:
    """What the model makes of its logits."""
    return logits.softmax(1) if graph.ending == "softmax" else logits


def images(count: int, seed: int, size: int) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# -- all of them ---------------------------------------------------------------------------------------------------


def run(only: Sequence[str] | None, workers: int, *, write: bool) -> int:
    """Check the models, or those whose title contains a text; write the page if asked."""
    known = {row["title"]: row for row in map(json.loads, NOTES.read_text().splitlines())} if NOTES.exists() else {}
    NOTES.parent.mkdir(parents=True, exist_ok=True)
    chosen = [title for title in every() if only is None or any(text in title for text in only)]
    todo = [title for title in chosen if title not in known]
    with ThreadPoolExecutor(workers) as pool, bar("models", len(todo)) as advance, NOTES.open("a") as file:
        for done in as_completed([pool.submit(_alone, title) for title in todo]):
            row = done.result()
            known[row["title"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(json.dumps(row), flush=True)
            advance(text=row["title"])
    if write:
        PAGE.write_text(page([known[title] for title in chosen]))
    wrong = [title for title in chosen if "zeroed" in known[title] and not exact(known[title])]
    print(f"not exact: {', '.join(wrong)}" if wrong else "all right", file=sys.stderr)
    return bool(wrong)


def _alone(title: str) -> dict[str, Any]:
    """One model in a process of its own."""
    command = [sys.executable, str(Path(__file__).parent), "--family", title]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    failed = {"title": title, "size": every()[title], "stage": "all", "saved": False, "onnx": None}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return {**failed, "reason": f"took more than {LIMIT} s"}
    for line in done.stdout.splitlines():
        if line.startswith("REPORT "):
            found: dict[str, Any] = json.loads(line.removeprefix("REPORT "))
            return found
    return {**failed, "reason": (done.stderr.strip().splitlines() or ["no output"])[-1]}


def exact(row: dict[str, Any]) -> bool:
    return "zeroed" in row and max(row["zeroed"], row["traced"]) < EXACT


TEXT = """# Families of models

Written by `python tests/conformity --families`: one small model of every file of models in timm {timm}, torchvision's
classifiers up to 100 million parameters, {configs} small configurations of classifiers of transformers {transformers},
and {rows} classifiers whose blocks are rows of a configuration, as in people's detectors
(`tests/conformity/yaml_models.py`), with random weights. Brickyard {version}, torch {torch}.

| what holds | timm | torchvision | transformers | rows |
|---|---|---|---|---|
{counts}

- **exact**: a random 30 % of every free axis is cut, and the result equals the source with these channels at zero, in
  float64; the traced network equals the model.
- **saved**: a component at 90 % of the FLOPs is saved, and the file that is read again gives the same bit for bit.
- **onnx**: onnxruntime differs from torch by less than 1e-5, relative, on a batch of another size.
- **free**: more than 70 % of the parameters lie along a free axis; **turned**: the same where residual streams are
  turned, as a budget does.

## What does not hold

{others}

## Less than 70 % free, streams turned

{pinned}
"""


def page(rows: Sequence[dict[str, Any]]) -> str:
    holds = {
        "exact": exact,
        "saved and loaded": lambda row: row["saved"],
        "onnx": lambda row: row["onnx"] is not None and row["onnx"] < CLOSE,
        "free": lambda row: row.get("free", 0) > MOSTLY,
        "free, turned": lambda row: row.get("turned", 0) > MOSTLY,
    }
    libraries = ("timm", "torchvision", "transformers", "yaml")
    groups = [[row for row in rows if row["title"].startswith(f"{name}:")] for name in libraries]
    counts = [
        f"| {what} | " + " | ".join(f"{sum(map(has, own))} of {len(own)}" for own in groups) + " |"
        for what, has in holds.items()
    ]
    others = [f"- `{row['title']}`: {_problem(row)}" for row in rows if _problem(row)]
    pinned = [
        f"- `{row['title']}` ({row['turned']:.0%}): {checks.told('; '.join(row['pinned']), 240)}"
        for row in rows
        if "turned" in row and row["turned"] <= MOSTLY
    ]
    return TEXT.format(
        timm=version("timm"),
        transformers=version("transformers"),
        configs=len(TRANSFORMERS),
        rows=len(yaml_models.CONFIGS),
        version=by.__version__,
        torch=torch.__version__,
        counts="\n".join(counts),
        others="\n".join(others) or "Nothing.",
        pinned="\n".join(pinned) or "None.",
    )


def _problem(row: dict[str, Any]) -> str:
    found = [f"{row['stage']}: {checks.told(row['reason'], 160)}"] if row["reason"] else []
    if "zeroed" in row and not exact(row):
        found.append(f"not exact ({row['zeroed']:.0e}, {row['traced']:.0e})")
    if row["onnx"] is not None and row["onnx"] >= CLOSE:
        found.append(f"onnx differs by {row['onnx']:.0e}")
    return "; ".join(found)
