"""ONNX files as sources: what is read computes the same, cuts right, and everything else is refused by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.base._records import Preprocessing
from brickyard.export._onnx import export_onnx
from brickyard.inputs._datasets import ImageData
from brickyard.sources import _onnx, _onnx_file
from brickyard.sources._loading import load_source
from brickyard.surgery._join import cut
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, randomised, zeroed_output
from conftest import needed_package
from errors import refused
from shell import run, save_folder

onnx = needed_package("onnx")
runtime = needed_package("onnxruntime")
helper = onnx.helper
SIZE = (3, 16, 16)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def relative(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max().clamp_min(1e-12))


def kept(graph, share: float = 0.7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        axis.name: torch.randperm(axis.size, generator=generator)[: max(1, round(share * axis.size))].sort().values
        for axis in graph.free
    }


# -- networks of torchvision -------------------------------------------------------------------------------


def exported(
    model: nn.Module, path: Path, size: int, *, dynamo: bool, static: bool = False, opset: int | None = None
) -> Path:
    images, named = torch.rand(1 if static else 2, 3, size, size), {"input_names": ["x"], "output_names": ["y"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            open_batch = {} if static else {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
            torch.onnx.export(
                model, (images,), path, dynamo=True, external_data=False, verbose=False, **named, **open_batch
            )
        else:
            open_batch = {} if static else {"dynamic_axes": {"x": {0: "batch"}}}
            torch.onnx.export(model, (images,), path, dynamo=False, opset_version=opset, **named, **open_batch)
    return path


def vision(name: str) -> nn.Module:
    models = needed_package("torchvision.models")
    if name == "vit":
        sizes = {"image_size": 32, "patch_size": 16, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64}
        return randomised(models.VisionTransformer(**sizes, num_classes=4))
    more = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = randomised(models.get_model(name, weights=None, num_classes=4, **more))
    for module in model.modules():
        if isinstance(module, nn.Conv2d if name == "squeezenet1_1" else nn.BatchNorm2d):
            module.weight.data.mul_(1.5)  # or the answers of a deep network would not depend on its images
    return model


NETWORKS = [  # name, size of the images, exporter, whether the batch is fixed
    ("squeezenet1_1", 32, True, True),
    ("shufflenet_v2_x0_5", 32, False, True),
    ("squeezenet1_1", 32, False, False),
    ("vit", 32, False, True),
    ("vit", 32, False, False),
    *(
        pytest.param(name, size, dynamo, static, marks=pytest.mark.slow)
        for name, size, dynamo, static in [
            ("mobilenet_v2", 32, True, False),
            ("mobilenet_v3_small", 32, True, True),
            ("shufflenet_v2_x0_5", 32, True, False),
            ("resnet18", 32, True, False),
            ("densenet121", 32, True, False),
            ("densenet121", 32, False, True),
            ("googlenet", 64, True, False),
            ("efficientnet_b0", 32, True, False),
            ("efficientnet_b0", 32, False, True),
            ("regnet_y_400mf", 32, True, False),
            ("convnext_tiny", 32, True, False),
            ("vit", 32, True, False),
            ("swin_t", 64, False, True),
        ]
    ),
]


@pytest.mark.parametrize(("name", "size", "dynamo", "static"), NETWORKS)
def test_a_network_is_read_cut_and_saved_as_the_module_that_it_was_made_from(
    name, size, dynamo, static, tmp_path
) -> None:
    model = vision(name)
    source = load_source(exported(model, tmp_path / f"{name}.onnx", size, dynamo=dynamo, static=static))
    x = torch.rand(3, 3, size, size)
    assert (source.name, source.input_shape, source.classes) == (name, (3, size, size), ("0", "1", "2", "3"))
    with torch.no_grad():
        assert relative(source.model(x), model(x)) < 1e-4
        network, wide = source.model.double(), model.double()
        assert relative(network(x.double()), wide(x.double())) < 1e-4  # batch norms are folded in float32
        assert relative(network(x.double().flip(0)), wide(x.double())) > 1e-3

    graph, own = trace(network, x.double()), trace(wide, x.double())
    assert graph.free_share == pytest.approx(own.free_share, abs=1e-3)
    keep = kept(graph)
    expected = zeroed_output(graph, keep, x.double())
    assert relative(cut(graph, keep)(x.double()), expected) < 1e-9
    assert relative(expected, network(x.double())) > 1e-6

    network.float()
    relevance = by.locate(network, (torch.rand(12, 3, size, size), torch.arange(12) % 4))
    budget = by.Budget(flops=0.8 if name == "vit" else 0.6)
    quick = {} if name == "resnet18" else {"select": "l1", "heal": "none"}
    part = by.disassemble(network, relevance, task=["1", "3"], budget=budget, **quick)
    again = by.load(part.save(tmp_path / "part.safetensors"))
    assert torch.equal(again.logits(x), part.logits(x))
    assert sum(value.numel() for value in part.parameters()) < sum(value.numel() for value in network.parameters())


def test_a_layer_norm_of_an_old_file_is_one_layer(tmp_path) -> None:
    model, x = vision("vit"), torch.rand(3, 3, 32, 32)
    source = load_source(exported(model, tmp_path / "old.onnx", 32, dynamo=False, opset=14))
    kinds = [type(source.model.layer(name)).__name__ for name in source.model.layer_names]
    assert kinds.count("LayerNorm") == sum(isinstance(module, nn.LayerNorm) for module in model.modules())
    assert relative(source.model(x), model(x)) < 1e-5
    assert trace(source.model, x).free_share == pytest.approx(trace(model, x).free_share, abs=1e-3)
    assert "encoder.layers.encoder_layer_0.ln_1" in source.model.layer_names


def test_layers_have_the_names_that_they_have_in_torch(tmp_path) -> None:
    for dynamo in (True, False):
        source = load_source(exported(Residual(), tmp_path / f"r{dynamo}.onnx", 8, dynamo=dynamo))
        assert source.model.layer_names == ("stem", "conv1", "conv2", "conv3", "conv4", "linear")


# -- this library's own exports ----------------------------------------------------------------------------

WAYS = [
    None,
    Preprocessing(size=(8, 8), channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.2)),
    Preprocessing(size=(8, 8), fit="pad"),
    Preprocessing(size=(8, 8), fit="crop", crop=0.8, mean=(0.5,), std=(0.25,)),
]


@pytest.mark.parametrize(
    ("make", "how", "dtype", "reject"),
    [
        (chain, WAYS[0], "float32", False),
        (Branches, WAYS[1], "uint8", False),
        *(
            pytest.param(make, how, dtype, reject, marks=pytest.mark.slow)
            for make, how, dtype, reject in [
                (chain, WAYS[1], "uint8", True),
                (Residual, WAYS[2], "float32", False),
                (SqueezeExcite, WAYS[3], "float32", True),
                (chain, Preprocessing(size=(8, 8), interpolation="bicubic", antialias=False), "uint8", False),
            ]
        ),
    ],
)
def test_an_export_of_a_component_is_a_source_again(make, how, dtype, reject, tmp_path) -> None:
    data = torch.rand(32, 3, 8, 8), torch.arange(32) % 4
    model = make()
    part = by.disassemble(model, by.locate(model, data, preprocessing=how), task=["1", "3"], reject=reject)
    export_onnx(part, tmp_path / "part.onnx", dtype=dtype)
    source = load_source(tmp_path / "part.onnx")
    assert source.classes == ("1", "3", *(["(none of these)"] if reject else []))
    assert source.input_shape == (3, 8, 8)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert relative(source.model(images / 255), part.logits(images / 255)) < 1e-5
    graph = trace(source.model, images / 255)
    assert graph.free
    network = trace(source.model.double(), (images / 255).double())
    keep = kept(network, 0.5)
    found, wanted = (
        f((images / 255).double()) for f in (cut(network, keep), lambda x: zeroed_output(network, keep, x))
    )
    assert relative(found, wanted) < 1e-9


# -- hand-built files --------------------------------------------------------------------------------------


class Built:
    """A graph that is written operator by operator; weights are drawn."""

    def __init__(self, shape: Sequence[int | str] = (1, *SIZE), opset: int = 13, kind: type = np.float32) -> None:
        self.opset, self.kind, self.shape = opset, kind, shape
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.random = np.random.default_rng(0)
        self.last = "x"
        self.metadata: dict[str, str] = {}
        self.outputs: list[tuple[str, Sequence[int | str] | None]] = []

    def weight(self, *shape: int, name: str = "", value: Any = None) -> str:
        name = name or f"w{len(self.weights)}"
        drawn = self.random.standard_normal(shape) / max(1, int(np.prod(shape[1:]))) ** 0.5
        array = np.asarray(drawn, self.kind) if value is None else np.asarray(value)
        self.weights.append(onnx.numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, *more: str, on: str | None = None, count: int = 1, **attributes: Any) -> str:
        place = len(self.nodes)
        outputs = [f"v{place}_{k}" for k in range(count)]
        inputs = [self.last if on is None else on, *more] if kind not in ("Constant",) else []
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=f"{kind}_{place}", **attributes))
        self.last = outputs[0]
        return self.last

    def conv(self, out: int, in_: int, kernel: int = 3, **attributes: Any) -> str:
        attributes.setdefault("kernel_shape", [kernel] * 2)
        weight = self.weight(out, in_ // attributes.get("group", 1), *attributes["kernel_shape"])
        return self.add("Conv", weight, self.weight(out), **attributes)

    def head(self, width: int, classes: int = 4) -> Built:
        """Averages over the image, and a linear layer."""
        self.add("GlobalAveragePool")
        self.add("Flatten")
        self.add("Gemm", self.weight(width, classes), self.weight(classes))
        return self

    def ints(self, *values: int) -> str:
        return self.weight(value=np.asarray(values, np.int64))

    def proto(self) -> Any:
        elem = {np.float32: 1, np.float64: 11, np.float16: 10, np.uint8: 2}[self.kind]
        images = helper.make_tensor_value_info("x", elem, self.shape)
        outputs = self.outputs or [(self.last, None)]
        ports = [helper.make_tensor_value_info(name, 1 if elem == 2 else elem, shape) for name, shape in outputs]
        graph = helper.make_graph(self.nodes, "built", [images], ports, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        helper.set_model_props(model, self.metadata)
        return model

    def save(self, path: Path) -> Path:
        path.write_bytes(self.proto().SerializeToString())
        return path


def answers(path: Path, images: Tensor) -> Tensor:
    """What ONNX Runtime answers, image by image."""
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return torch.cat([torch.from_numpy(session.run(None, {"x": image[None].numpy()})[0]) for image in images])


def plain(b: Built) -> None:
    b.conv(8, 3, pads=[1, 1, 1, 1])
    b.add("Relu")
    b.conv(6, 8)


def asymmetric(b: Built) -> None:
    b.conv(8, 3, pads=[0, 1, 2, 1], strides=[2, 2])
    b.add("Relu")
    b.add("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    b.add("AveragePool", kernel_shape=[2, 2], pads=[1, 0, 0, 1])
    b.add("AveragePool", kernel_shape=[2, 2], pads=[1, 0, 0, 1], count_include_pad=1)
    b.conv(6, 8, 1)


def same(auto: str) -> Callable[[Built], None]:
    def make(b: Built) -> None:
        b.conv(8, 3, auto_pad=auto, strides=[2, 2])
        b.add("Relu")
        b.add("MaxPool", kernel_shape=[2, 2], auto_pad=auto)
        b.conv(6, 8, 4, auto_pad=auto)

    return make


def clips(b: Built) -> None:
    b.conv(8, 3)
    b.add("Clip", b.weight(value=np.float32(0)), b.weight(value=np.float32(6)))
    b.conv(8, 8)
    b.add("Clip", b.weight(value=np.float32(0)))
    b.add("Clip", "", b.weight(value=np.float32(0.5)))
    b.add("Clip", b.weight(value=np.float32(-1)), b.weight(value=np.float32(0.25)))
    b.conv(6, 8)


def activations(b: Built) -> None:
    value = b.conv(8, 3)
    b.add("Abs")
    positive = b.add("Add", b.weight(value=np.float32(0.2)))
    found = [
        b.add(kind, on=value, **attributes)
        for kind, attributes in [
            *(("LeakyRelu", {"alpha": 0.2}), ("HardSigmoid", {"alpha": 1 / 6}), ("HardSigmoid", {}), ("HardSwish", {})),
            *(("Softplus", {}), ("Elu", {"alpha": 0.7}), ("Selu", {}), ("Celu", {"alpha": 0.8}), ("Softsign", {})),
            *(("Tanh", {}), ("Sigmoid", {}), ("Erf", {}), ("Exp", {}), ("Neg", {}), ("Sin", {}), ("Cos", {})),
            *(("Mish", {}), ("Gelu", {}), ("Gelu", {"approximate": "tanh"})),
        ]
    ]
    found += [b.add(kind, on=positive) for kind in ("Sqrt", "Log", "Reciprocal")]
    found += [b.add("PRelu", b.weight(*shape), on=value) for shape in ((8, 1, 1), (1,), (1, 14, 14))]
    b.add("Sum", *found, on=value)
    b.conv(6, 8)


def arithmetic(b: Built) -> None:
    one = b.conv(8, 3)
    two = b.add("Relu")
    b.add("Add", one)
    b.add("Mul", b.weight(1, 8, 1, 1))
    b.add("Sub", two)
    b.add("Div", b.weight(value=np.float32(1.7)))
    b.add("Pow", b.weight(value=np.float32(2)))
    b.add("Max", one, two)
    b.add("Min", b.weight(value=np.float32(3)))
    b.add("Max", b.weight(value=np.float32(0.1)))
    b.add("Sub", b.last, on=b.weight(value=np.float32(1)))
    b.add("Add", b.weight(8, 1, 1))
    b.add("Sum", one, two)
    b.conv(6, 8)


def moves(b: Built) -> None:
    b.conv(8, 3, pads=[1, 1, 1, 1])
    left = b.add("Split", b.ints(3, 5), axis=1, count=2)
    right = f"{left[:-1]}1"
    b.add("Concat", left, on=right, axis=1)
    b.add("Slice", b.ints(1, 0), b.ints(9, 2**62), b.ints(2, 3), b.ints(2, 1))
    b.add("Slice", b.ints(0), b.ints(6), b.ints(1))
    b.add("Gather", b.ints(4, 2, 0, 5, 1, 3), axis=1)
    b.add("Pad", b.ints(0, 0, 1, 0, 0, 0, 0, 2), b.weight(value=np.float32(0.5)))
    b.add("Pad", b.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")
    b.add("Unsqueeze", b.ints(2))
    b.add("Squeeze", b.ints(2))
    b.add("Transpose", perm=[0, 2, 3, 1])
    b.add("Add", b.weight(6))
    b.add("Transpose", perm=[0, 3, 1, 2])
    b.add("Identity")
    b.conv(6, 6)


def static_shapes(b: Built) -> None:
    b.conv(8, 3, pads=[1, 1, 1, 1])
    b.add("Reshape", b.ints(1, 2, 4, 16, 16))
    b.add("Transpose", perm=[0, 2, 1, 3, 4])
    b.add("Reshape", b.ints(1, -1, 16, 16))
    b.add("Reshape", b.ints(0, 8, 8, 32))
    b.conv(6, 8)
    b.add("Concat", b.weight(1, 2, 6, 30), axis=1)
    b.conv(6, 8)


def computed_shapes(b: Built) -> None:
    value = b.conv(8, 3, pads=[1, 1, 1, 1])
    b.add("Shape")
    count = b.add("Gather", b.weight(value=np.int64(0)), axis=0)
    one = b.add("Unsqueeze", b.ints(0), on=count)
    b.add("Concat", b.ints(4, -1), b.ints(16), on=one, axis=0)
    b.add("Reshape", b.last, on=value)
    grid = b.last
    b.add("ConstantOfShape", on=b.ints(1, 4, 1, 1), value=helper.make_tensor("c", 1, [1], [0.5]))
    token = b.last
    b.add("Concat", b.ints(4, 1, 16), on=one, axis=0)
    spread = b.add("Expand", b.last, on=token)
    b.add("Concat", grid, on=spread, axis=2)
    b.conv(6, 4)


def resized(b: Built) -> None:
    b.conv(8, 3)
    scales = b.weight(value=np.asarray([1, 1, 2, 2], np.float32))
    b.add("Resize", "", scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    b.add("Resize", "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    b.add("Resize", "", "", b.ints(1, 8, 20, 20), mode="linear", coordinate_transformation_mode="align_corners")
    b.add("ConvTranspose", b.weight(8, 6, 3, 3), b.weight(6), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
    b.add("ConvTranspose", b.weight(6, 6, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER")
    b.add("DepthToSpace", on=b.conv(24, 6), blocksize=2)


def norms(b: Built) -> None:
    b.conv(8, 3)
    positive = b.weight(value=np.abs(b.random.standard_normal(8)).astype(np.float32) + 0.5)
    b.add("BatchNormalization", b.weight(8), b.weight(8), b.weight(8), positive)
    b.add("InstanceNormalization", b.weight(8), b.weight(8))
    b.add("Dropout")
    b.conv(6, 8)


def sums(b: Built) -> None:
    value = b.conv(6, 3)
    gates = [
        b.add("ReduceMean", on=value, axes=[2, 3]),
        b.add("ReduceMax", on=value, axes=[2, 3]),
        b.add("ReduceMin", on=value, axes=[-1, -2]),
        b.add("ReduceSum", b.ints(2, 3), on=value),
        b.add("ReduceL2", on=value, axes=[2, 3]),
        b.add("ReduceLogSumExp", on=value, axes=[2, 3]),
        b.add("GlobalMaxPool", on=value),
    ]
    b.add("Sigmoid", on=gates[0])
    for gate in gates[1:]:
        b.add("Add", gate)
    b.add("Mul", value)


FORMS: dict[str, Callable[[Built], None]] = {
    "plain": plain,
    "asymmetric": asymmetric,
    "same upper": same("SAME_UPPER"),
    "same lower": same("SAME_LOWER"),
    "clips": clips,
    "activations": activations,
    "arithmetic": arithmetic,
    "moves": moves,
    "static shapes": static_shapes,
    "computed shapes": computed_shapes,
    "resized": resized,
    "norms": norms,
    "sums": sums,
}


@pytest.mark.parametrize("batch", [1, "batch"])
@pytest.mark.parametrize("form", FORMS)
def test_operators_compute_what_onnx_runtime_computes(form, batch, tmp_path) -> None:
    if form in ("static shapes", "resized") and batch != 1:
        pytest.skip("the form fixes its batch")
    built = Built((batch, *SIZE), opset=20 if form == "activations" else 13)
    FORMS[form](built)
    path = built.head(6).save(tmp_path / "m.onnx")
    source = load_source(path)
    images = torch.rand(3, *SIZE)
    wanted = answers(path, images)
    assert relative(source.model(images), wanted) < 1e-4
    assert relative(source.model(images[1:2]), wanted[1:2]) < 1e-4
    assert relative(source.model(images.flip(0)), wanted) > 1e-4
    graph = trace(source.model.double(), images.double())
    assert graph.free
    keep = kept(graph)
    found = cut(graph, keep)(images.double())
    assert relative(found, zeroed_output(graph, keep, images.double())) < 1e-8
    assert source.model.from_spec(source.model.to_spec()).layer_names == source.model.layer_names


RESIZES = {
    "nearest by halves": {"scale": 1.5},
    "nearest down": {"scale": 0.5, "nearest_mode": "round_prefer_ceil"},
    "nearest corners": {"scale": 0.6, "coordinate_transformation_mode": "align_corners", "nearest_mode": "ceil"},
    "nearest symmetric": {
        "scale": 1.7,
        "coordinate_transformation_mode": "half_pixel_symmetric",
        "nearest_mode": "floor",
    },
    "nearest of TensorFlow": {"scale": 0.3, "coordinate_transformation_mode": "tf_half_pixel_for_nn"},
    "nearest of opset 10, up": {"scale": 1.7, "opset": 10},
    "nearest of opset 10, down": {"scale": 0.6, "opset": 10},
    "linear by a factor that rounds": {"scale": 1.3, "mode": "linear"},
    "cubic by a factor that rounds": {"scale": 0.7, "mode": "cubic"},
    "some axes": {"scale": 2, "axes": [2, 3], "mode": "linear", "opset": 18},
}


@pytest.mark.parametrize("form", RESIZES)
def test_pixels_are_resized_by_the_rules_of_the_file(form, tmp_path) -> None:
    own = dict(RESIZES[form])
    scale, opset = own.pop("scale"), own.pop("opset", 13 if "symmetric" not in form else 19)
    built = Built((1, *SIZE), opset=opset)
    built.conv(6, 3)
    scales = built.weight(value=np.asarray([scale] * 2 if "axes" in own else [1, 1, scale, scale], np.float32))
    built.add("Resize", *([scales] if opset == 10 else ["", scales]), **own)
    built.add("Sigmoid", on=built.conv(6, 6, strides=[2, 2]))
    path = built.head(6).save(tmp_path / "m.onnx")
    images = torch.rand(2, *SIZE)
    assert relative(load_source(path).model(images), answers(path, images)) < 1e-4
    assert relative(load_source(path).model(images.flip(3)), answers(path, images)) > 1e-4


@pytest.mark.parametrize(
    "own", [{"antialias": 1}, {"mode": "cubic", "exclude_outside": 1}, {"mode": "cubic", "cubic_coeff_a": -0.5}]
)
def test_ways_to_resize_that_torch_lacks_are_refused(own, tmp_path) -> None:
    built = Built((1, *SIZE), opset=18)
    built.conv(6, 3)
    built.add("Resize", "", built.weight(value=np.asarray([1, 1, 0.7, 0.7], np.float32)), **{"mode": "linear", **own})
    with refused("file-unknown-operation", "Resize", next(iter(own.keys() - {"mode"}))):
        load_source(built.head(6).save(tmp_path / "m.onnx"))


def test_a_selu_has_the_factors_of_the_file(tmp_path) -> None:
    found = []
    for own in ({}, {"alpha": 1.0, "gamma": 2.0}):
        built = Built()
        built.conv(6, 3)
        built.add("Selu", **own)
        path = built.head(6).save(tmp_path / "m.onnx")
        images = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(1))
        found.append(load_source(path).model(images))
        assert relative(found[-1], answers(path, images)) < 1e-4
    assert relative(*found) > 1e-4  # the control


def test_the_two_ways_to_pad_to_the_same_size_differ(tmp_path) -> None:
    upper, lower = Built(), Built()
    FORMS["same upper"](upper)
    FORMS["same lower"](lower)
    images = torch.rand(2, *SIZE)
    found = [load_source(b.head(6).save(tmp_path / f"{k}.onnx")).model(images) for k, b in enumerate((upper, lower))]
    assert relative(*found) > 1e-3


def test_old_forms_with_attributes_are_read(tmp_path) -> None:
    b = Built(opset=9)
    value = b.conv(8, 3, auto_pad="NOTSET", pads=[1, 1, 1, 1])
    b.add("Clip", min=0.0, max=6.0)
    b.add("Slice", starts=[0], ends=[6], axes=[1])
    b.add("Unsqueeze", axes=[1])
    b.add("Squeeze", axes=[1])
    b.add("Pad", pads=[0, 0, 1, 1, 0, 0, 1, 1])
    b.add("Upsample", b.weight(value=np.asarray([1, 1, 2, 2], np.float32)), mode="nearest")
    b.add("Split", axis=1, split=[2, 4], count=2)
    b.add("Concat", f"{b.last[:-1]}0", on=f"{b.last[:-1]}1", axis=1)
    b.add("ReduceSum", axes=[2], keepdims=1)
    b.add("Dropout", ratio=0.5)
    b.head(6)
    b.add("Softmax")
    assert value
    path = b.save(tmp_path / "old.onnx")
    source, images = load_source(path), torch.rand(2, *SIZE)
    assert relative(source.model(images), answers(path, images)) < 1e-5
    assert trace(source.model, images).ending == "softmax"


def test_channels_that_come_last_in_the_file_come_first_here(tmp_path, capsys) -> None:
    first, last = Built(), Built((1, 16, 16, 3))
    last.add("Transpose", perm=[0, 3, 1, 2])
    for b in (first, last):
        plain(b)
        b.head(6)
    sources = [load_source(b.save(tmp_path / f"{k}.onnx")) for k, b in enumerate((first, last))]
    assert "channels last" in capsys.readouterr().err
    assert [s.input_shape for s in sources] == [SIZE, SIZE]
    images = torch.rand(2, *SIZE)
    assert torch.equal(sources[0].model(images), sources[1].model(images))
    assert "permute" not in {node.target for node in sources[1].model.nodes}


def test_a_network_between_transposes_as_keras_has_it(tmp_path) -> None:
    b = Built((1, 16, 16, 3))
    b.add("Sub", b.weight(3))
    b.add("Transpose", perm=[0, 3, 1, 2])
    b.conv(8, 3, auto_pad="SAME_UPPER", strides=[2, 2])
    b.add("Transpose", perm=[0, 2, 3, 1])
    b.add("Add", b.weight(8))
    b.add("Relu")
    b.add("Transpose", perm=[0, 3, 1, 2])
    b.conv(6, 8)
    b.add("Transpose", perm=[0, 2, 3, 1])
    b.add("ReduceMean", axes=[1, 2], keepdims=0)
    b.add("MatMul", b.weight(6, 4))
    b.add("Add", b.weight(4))
    path = b.save(tmp_path / "keras.onnx")
    source, images = load_source(path), torch.rand(2, *SIZE)
    assert relative(source.model(images), answers(path, images.permute(0, 2, 3, 1).contiguous())) < 1e-5
    graph = trace(source.model.double(), images.double())
    assert graph.free_share == 1
    keep = kept(graph)
    assert relative(cut(graph, keep)(images.double()), zeroed_output(graph, keep, images.double())) < 1e-9


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_floating_point_types(kind, tmp_path, capsys) -> None:
    b = Built(kind=kind)
    b.conv(8, 3)
    b.add("Relu")
    b.add("ReduceMean", axes=[2, 3], keepdims=0)
    b.add("Gemm", b.weight(8, 4), b.weight(4))
    source = load_source(b.save(tmp_path / "m.onnx"))
    wanted = torch.float64 if kind is np.float64 else torch.float32
    assert {value.dtype for value in source.model.parameters()} == {wanted}
    assert ("not compared" in capsys.readouterr().err) == (kind is np.float64)  # the runtime has no such convolution
    relevance = by.locate(source.model, (torch.rand(8, *SIZE).to(wanted), torch.arange(8) % 4))
    assert by.disassemble(source.model, relevance, task=["1", "3"]).classes == ("1", "3")


def test_layers_that_share_weights_share_their_axis(tmp_path) -> None:
    b = Built()
    b.conv(8, 3)
    weight = b.weight(8, 8, 1, 1)
    b.add("Conv", weight)
    b.add("Relu")
    b.add("Conv", weight)
    source = load_source(b.head(8).save(tmp_path / "m.onnx"))
    assert len(source.model.layer_names) == 3
    graph = trace(source.model.double(), torch.rand(2, *SIZE).double())
    keep, x = kept(graph), torch.rand(2, *SIZE).double()
    assert relative(cut(graph, keep)(x), zeroed_output(graph, keep, x)) < 1e-9


def test_weights_beside_the_file(tmp_path) -> None:
    b = Built()
    plain(b)
    model = b.head(6).proto()
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    one.write_bytes(model.SerializeToString())
    onnx.save_model(model, str(two), save_as_external_data=True, location="two.data", size_threshold=0)
    images = torch.rand(2, *SIZE)
    assert torch.equal(load_source(one).model(images), load_source(two).model(images))
    (tmp_path / "two.data").write_bytes((tmp_path / "two.data").read_bytes()[:-8])
    with refused("file-damaged", "two.data"):
        load_source(two)
    (tmp_path / "two.data").unlink()
    with refused("file-missing", "two.data"):
        load_source(two)


def test_weights_are_read_from_the_folder_of_the_file_alone(tmp_path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    b = Built()
    plain(b)
    (tmp_path / "secret.data").write_bytes(bytes(1 << 16))
    for location in ("../secret.data", str(tmp_path / "secret.data")):
        model = b.proto()
        model.graph.initializer[0].ClearField("raw_data")
        model.graph.initializer[0].data_location = 1
        model.graph.initializer[0].external_data.add(key="location", value=location)
        (inner / "m.onnx").write_bytes(model.SerializeToString())
        with refused("file-path-invalid", location[:12]):  # a long one is cut
            load_source(inner / "m.onnx")
    (inner / "link.data").symlink_to(tmp_path / "secret.data")
    model.graph.initializer[0].external_data[0].value = "link.data"
    (inner / "m.onnx").write_bytes(model.SerializeToString())
    with refused("file-path-invalid", "link.data"):
        load_source(inner / "m.onnx")


# -- what is said of it ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "names"),
    [
        ("classes", json.dumps(["ant", "bee", "cow", "dog"]), ("ant", "bee", "cow", "dog")),
        ("names", "{0: 'ant', 1: 'bee', 2: \"cow\", 3: 'dog'}", ("ant", "bee", "cow", "dog")),
        ("labels", "ant, bee, cow, dog", ("ant", "bee", "cow", "dog")),
        ("class_names", json.dumps({"1": "bee", "0": "ant", "3": "dog", "2": "cow"}), ("ant", "bee", "cow", "dog")),
        ("classes", json.dumps(["ant", "bee"]), ("0", "1", "2", "3")),
        ("classes", json.dumps(["ant", "ant", "cow", "dog"]), ("0", "1", "2", "3")),
        ("classes", "[" * 100000, ("0", "1", "2", "3")),
        ("names", json.dumps([1, 2, 3, 4]), ("0", "1", "2", "3")),
    ],
)
def test_class_names_of_the_file(key, text, names, tmp_path) -> None:
    b = Built()
    plain(b)
    b.head(6)
    b.metadata = {key: text}
    path = b.save(tmp_path / "m.onnx")
    assert load_source(path).classes == names
    assert load_source(path, classes=["p", "q", "r", "s"]).classes == ("p", "q", "r", "s")


def test_the_size_of_images_that_a_file_leaves_open(tmp_path) -> None:
    b = Built(("batch", 3, "height", "width"))
    plain(b)
    path = b.head(6).save(tmp_path / "m.onnx")
    with refused("option-source-size", "--size"):
        load_source(path)
    assert load_source(path, preprocessing=Preprocessing(size=(20, 24))).input_shape == (3, 20, 24)
    fixed = Built()
    plain(fixed)
    with refused("option-source-size", "16x16", "20x24"):
        load_source(fixed.head(6).save(tmp_path / "f.onnx"), preprocessing=Preprocessing(size=(20, 24)))


def test_of_several_outputs_the_logits_are_taken(tmp_path, capsys) -> None:
    b = Built()
    plain(b)
    logits = b.head(6).last
    shares = b.add("Softmax")
    best = b.add("ArgMax", on=logits, axis=1)
    b.outputs = [(shares, None), (logits, None)]
    model = b.proto()
    model.graph.output.append(helper.make_tensor_value_info(best, 7, None))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    source, images = load_source(path), torch.rand(2, *SIZE)
    assert f"{logits} holds the logits" in capsys.readouterr().err
    assert relative(source.model(images).softmax(1), answers(path, images)) < 1e-5
    assert relative(source.model(images), answers(path, images)) > 1e-2


# -- what is refused ---------------------------------------------------------------------------------------


def _heads(b: Built) -> None:
    value = b.conv(8, 3)
    b.add("GlobalAveragePool")
    flat = b.add("Flatten")
    one, two = (b.add("Gemm", b.weight(8, 4), on=flat) for _ in range(2))
    assert value
    b.outputs = [(one, None), (two, None)]


def _unknown(b: Built) -> None:
    b.conv(8, 3)
    b.add("LRN", size=3)
    b.add("Hardmax")
    b.head(8)


def _quantised(b: Built) -> None:
    b.conv(8, 3)
    b.add("QuantizeLinear", b.weight(value=np.float32(0.1)), b.weight(value=np.uint8(3)))
    b.add("DequantizeLinear", b.weight(value=np.float32(0.1)), b.weight(value=np.uint8(3)))
    b.head(8)


def _int8_weights(b: Built) -> None:
    b.add("Conv", b.weight(value=np.ones((8, 3, 3, 3), np.int8)))
    b.head(8)


def _not_finite(b: Built) -> None:
    b.add("Conv", b.weight(value=np.full((8, 3, 3, 3), np.nan, np.float32)))
    b.head(8)


def _batch_dropped(b: Built) -> None:
    b.conv(4, 3)
    b.add("GlobalAveragePool")
    b.add("Squeeze")
    b.add("Squeeze", b.ints(0))


def _maps(b: Built) -> None:
    b.conv(8, 3)


def _flow(b: Built) -> None:
    b.conv(8, 3)
    inner = helper.make_graph(
        [helper.make_node("Relu", [b.last], ["inside"])], "then", [], [helper.make_tensor_value_info("inside", 1, None)]
    )
    b.nodes.append(
        helper.make_node("If", [b.weight(value=np.bool_(True))], ["if"], then_branch=inner, else_branch=inner)
    )
    b.last = "if"
    b.head(8)


def _huge(b: Built) -> None:
    b.conv(8, 3)
    b.add("Expand", b.ints(1 << 20, 1 << 20), on=b.weight(1, 1))
    b.add("ReduceMean", keepdims=0)
    b.add("Add", b.nodes[0].output[0])
    b.head(8)


def _unfit(b: Built) -> None:
    b.conv(8, 3)
    b.conv(6, 5)
    b.head(6)


REFUSED = {
    "two heads": (_heads, "trace-output", "v3_0", "v4_0"),
    "unknown operators": (_unknown, "file-unknown-operation", "LRN", "LRN_1", "1 other"),
    "quantised": (_quantised, "trace-not-floating-point", "QuantizeLinear"),
    "int8 weights": (_int8_weights, "trace-not-floating-point", "w0", "int8"),
    "not finite": (_not_finite, "file-not-finite", "w0"),
    "the batch is dropped": (_batch_dropped, "trace-batch", "Squeeze"),
    "maps": (_maps, "trace-output", "(1, 8, 14, 14)"),
    "control flow": (_flow, "file-unknown-operation", "If"),
    "too many numbers": (_huge, "file-too-costly", "Expand"),
    "sizes that do not fit": (_unfit, "file-network-invalid", "Conv_1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(name, tmp_path) -> None:
    make, code, *quoted = REFUSED[name]
    b = Built()
    make(b)
    with refused(code, *quoted):
        load_source(b.save(tmp_path / "m.onnx"))


def _whole() -> Any:
    b = Built()
    plain(b)
    return b.head(6).proto()


def _change(change: Callable[[Any], object]) -> Callable[[], bytes]:
    def make() -> bytes:
        model = _whole()
        change(model)
        return bytes(model.SerializeToString())

    return make


def _reversed(model: Any) -> None:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _cycle(model: Any) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def _second_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("extra", 1, [1, 3]))


def _opset(version: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.opset_import[0].version = version

    return change


def _no_text(what: bytes) -> Callable[[], bytes]:
    """A file in which a name has bytes that are no UTF-8."""
    return lambda: _whole().SerializeToString().replace(what, b"\xff" * len(what))


def _words(model: Any) -> None:
    model.graph.output[0].type.tensor_type.elem_type = 7


def _rank(model: Any) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[2:]


def _short(model: Any) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def _twice(model: Any) -> None:
    model.graph.node[1].output[0] = model.graph.node[0].output[0]


def _many(model: Any) -> None:
    for place in range(_onnx_file.MAX_NODES):
        model.graph.node.append(helper.make_node("Relu", ["x"], [f"more{place}"]))


def _foreign(model: Any) -> None:
    model.graph.node[1].domain = "com.example"


DAMAGED = {
    "text": (lambda: b"this is no network", "file-damaged"),
    "nothing": (lambda: b"", "file-damaged"),
    "cut off": (lambda: _whole().SerializeToString()[:-100], "file-damaged"),
    "cut off at the start": (lambda: _whole().SerializeToString()[40:], "file-damaged"),
    "not in order": (_change(_reversed), "file-network-invalid", "before it is computed"),
    "a cycle": (_change(_cycle), "file-network-invalid", "before it is computed"),
    "written twice": (_change(_twice), "file-network-invalid", "v0_0"),
    "two inputs": (_change(_second_input), "trace-forward-inputs", "extra"),
    "no images": (_change(_rank), "trace-forward-inputs", "(1, 3)"),
    "an operator that is no text": (_no_text(b"Flatten"), "file-damaged"),
    "a value that is no text": (_no_text(b"v0_0"), "file-damaged"),
    "an attribute that is no text": (_no_text(b"kernel_shape"), "file-damaged"),
    "whole numbers": (_change(_words), "trace-output"),
    "an old opset": (_change(_opset(6)), "file-unknown-operation", "opset 6"),
    "a new opset": (_change(_opset(99)), "file-newer-version", "opset 99"),
    "a tensor cut short": (_change(_short), "file-damaged", "w0"),
    "too many operators": (_change(_many), "file-too-large"),
    "operators of others": (_change(_foreign), "file-unknown-operation", "com.example.Relu"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_and_foreign_files_are_refused(name, tmp_path) -> None:
    make, code, *quoted = DAMAGED[name]
    (tmp_path / "m.onnx").write_bytes(make())
    with refused(code, "m.onnx", *quoted):
        load_source(tmp_path / "m.onnx")


def test_what_cannot_be_given_beside_a_file(tmp_path) -> None:
    (tmp_path / "m.onnx").write_bytes(_whole().SerializeToString())
    with refused("option-conflict", "w.safetensors"):
        load_source(tmp_path / "m.onnx", weights=tmp_path / "w.safetensors")
    with refused("file-missing", "none.onnx"):
        load_source(tmp_path / "none.onnx")
    with refused("file-missing", "folder.onnx"):
        (tmp_path / "folder.onnx").mkdir()
        load_source(tmp_path / "folder.onnx")
    with refused("task-class-count", "4 outputs"):
        load_source(tmp_path / "m.onnx", classes=["a", "b"])


def test_unknown_operators_are_told_before_weights_are_read(tmp_path, monkeypatch) -> None:
    b = Built()
    _unknown(b)
    monkeypatch.setattr(_onnx_file._Tensors, "read", lambda self, proto: pytest.fail("read a tensor"))
    with refused("file-unknown-operation", "LRN"):
        load_source(b.save(tmp_path / "m.onnx"))


def test_a_network_that_was_read_wrongly_is_refused(tmp_path, monkeypatch) -> None:
    (tmp_path / "m.onnx").write_bytes(_whole().SerializeToString())
    load_source(tmp_path / "m.onnx")
    monkeypatch.setitem(_onnx._KINDS, "Relu", _onnx._KINDS["Sigmoid"])
    with refused("trace-mismatch", "ONNX Runtime"):
        load_source(tmp_path / "m.onnx")


def test_a_comparison_that_shows_little_is_told(tmp_path, capsys) -> None:
    for scale, told in ((1, False), (1e-8, True)):
        b = Built()
        plain(b)
        b.add("Mul", b.weight(value=np.float32(scale)))
        load_source(b.head(6).save(tmp_path / "m.onnx"))
        assert ("hardly depend" in capsys.readouterr().err) == told


def test_without_the_runtime_the_check_is_left_out_and_that_is_said(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "m.onnx").write_bytes(_whole().SerializeToString())
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    load_source(tmp_path / "m.onnx")
    assert "onnxruntime is not installed" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with refused("option-missing-package", "brickyard[onnx]"):
        load_source(tmp_path / "m.onnx")


def test_a_detector_is_refused_with_the_shapes_of_its_outputs(shared) -> None:
    with refused("trace-output", "(1, 3549, 85)", "one row of logits per image"):
        load_source(shared / "models" / "yolox_nano-coco80.onnx")


# -- the command line --------------------------------------------------------------------------------------


def test_the_command_line_goes_from_a_file_to_a_component_and_back(tmp_path) -> None:
    b = Built()
    plain(b)
    b.head(6)
    b.metadata = {"classes": "ant,bee,cow,dog"}
    b.save(tmp_path / "net.onnx")
    grey = torch.randint(0, 256, (24, 1, 16, 16), dtype=torch.uint8)
    save_folder(ImageData(grey, torch.arange(24) % 4, ("ant", "bee", "cow", "dog"), "drawn"), tmp_path / "photos")
    given = (tmp_path / "net.onnx", "--data", tmp_path / "photos")
    run("show", tmp_path / "net.onnx")
    run("locate", *given, "-o", tmp_path / "net.relevance.safetensors")
    run("disassemble", *given, "--task", "bee,dog", "--flops", "0.6", "-o", tmp_path / "part.safetensors")
    part = by.load(tmp_path / "part.safetensors")
    assert part.classes == ("bee", "dog")
    assert part.manifest.source.name == "net"
    run("export", tmp_path / "part.safetensors", "-o", tmp_path / "part.onnx")
    again = load_source(tmp_path / "part.onnx")
    images = torch.rand(3, *SIZE)
    assert again.classes == ("bee", "dog")
    assert relative(again.model(images), part.logits(images)) < 1e-5
