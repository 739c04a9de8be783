"""What goes out as Python is the model: it computes the same bits where Brickyard cannot be imported."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import itertools
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.component._component import Component
from brickyard.component._predictor import REJECT
from brickyard.export._module import export_module
from brickyard.export._onnx import export_state_dict
from brickyard.network._network import Network, Node, Ref
from brickyard.outputs._kinds import OUTPUTS, OneOfMany
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, randomised
from conftest import needed_package
from errors import refused
from nets import SequenceFirst
from shell import python, run

WRITTEN = Path(__file__).parents[1] / "written"
OTHERS = ("names", "yard")
DATA = (torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 4)
HOW = by.Preprocessing(size=(8, 8), channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
IMPORTS = {"torch", "torch.nn.functional as F", "safetensors.safe_open", "torch.nn"}

ALONE = """
import importlib, json, os, sys
sys.modules["brickyard"] = None
folder = sys.argv[1]
sys.path.insert(0, folder)
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
before = set(os.listdir(folder))
images, outputs, told = load_file(os.path.join(folder, "images.st")), {}, {}
for name in sorted(images):
    module = importlib.import_module(name.split("-")[0])
    model = module.load()
    with torch.no_grad():
        outputs[name] = model(module.preprocess(images[name])).contiguous()
    told[name] = [list(module.CLASSES), sorted(model.state_dict()), model.training]
assert not any(name.split(".")[0] == "brickyard" for name in sys.modules if sys.modules[name] is not None)
assert set(os.listdir(folder)) - before <= {"__pycache__"}, os.listdir(folder)
save_file(outputs, os.path.join(folder, "outputs.st"))
print(json.dumps(told))
"""


def part(make: Any = chain, task: Any = ("1", "3"), how: Any = None, classes: Any = None, **options: Any) -> Component:
    model = randomised(make() if callable(make) else make)
    relevance = by.locate(model, DATA, preprocessing=how, classes=classes)
    return by.disassemble(model, relevance, task=list(task), **options)


@functools.cache
def plain() -> Component:
    return part(task=range(4))


def with_network(network: Network, shape: tuple[int, ...] = (3, 8, 8), **changes: Any) -> Component:
    """A component of a network that nothing was cut from."""
    outputs = len(network(torch.rand(2, *shape))[0])
    assert outputs == 4
    manifest = plain().manifest.model_copy(update={"input_shape": shape, **changes})
    return Component(network.eval(), manifest)


def random_images(model: Any, count: int = 3, seed: int = 0) -> Tensor:
    shape = model.manifest.parts[0].input_shape
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alone(models: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Export models, run all of them in a process without Brickyard, and compare all bits; what the files tell."""
    images = {}
    for name, model in models.items():
        export_module(model, folder / f"{name}.py")
        x = random_images(model)
        images |= {f"{name}-float": x.float(), f"{name}-double": x, f"{name}-bytes": (x * 255).to(torch.uint8)}
    save_file(images, folder / "images.st")
    told = json.loads(
        python(
            "import runpy, subprocess, sys; "
            "sys.exit(subprocess.run([sys.executable, '-I', '-c', sys.argv[2], sys.argv[1]]).returncode)",
            folder,
            ALONE,
        )
    )
    outputs = load_file(folder / "outputs.st")
    assert outputs.keys() == images.keys()
    for key, found in outputs.items():
        model = models[key.split("-")[0]]
        with torch.no_grad():
            wanted = model.logits(images[key])
        assert found.dtype == wanted.dtype, key
        unit = torch.finfo(wanted.dtype).eps * float(wanted.abs().max())  # BLAS may round by where memory lies
        assert float((found - wanted).abs().max()) <= 16 * unit, key
        assert found.shape[1] < 2 or not torch.equal(found, wanted.roll(1, 1)), key  # the control
        names, state, training = told[key]
        assert names == [*model.classes, *([REJECT] if model.reject else [])]
        assert not training
        if isinstance(model, Component):
            assert state == sorted(model.network.state_dict())
    return told


def imported(path: Path) -> Any:
    """The module in a file, run here."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imports(text: str) -> set[str]:
    """What a text imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name + (f" as {alias.asname}" if alias.asname else "") for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


# -- the same bits without Brickyard -----------------------------------------------------------------------


def test_models_of_every_kind_and_form_compute_the_same_bits(tmp_path) -> None:
    models = {}
    for path in sorted(WRITTEN.glob("*.json")):
        about = {} if path.stem in OTHERS else json.loads(path.read_text())
        if about.get("kind") in ("Component", "Assembly"):
            models[path.stem.replace("-", "_") + "_"] = by.load(path.with_suffix(".safetensors"))
    assert len(models) > 60
    assert {model.manifest.form for model in models.values() if isinstance(model, by.Assembly)} >= {
        *("parallel", "padded", "union", "grouped")
    }
    types = {value.dtype for model in models.values() for value in model.parameters()}
    assert types >= {torch.float16, torch.float32, torch.float64}
    alone(models, tmp_path)


class Odd(nn.Module):
    """A layer that is called twice, bare tensors, slices, an ellipsis, a type, in-place steps, tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.same = nn.Conv2d(6, 6, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(1, 6, 1, 1))
        self.inner = nn.Module()
        self.inner.shift = nn.Parameter(torch.rand(6, 1, 1))
        self.register_buffer("order", torch.tensor([5, 4, 3, 2, 1, 0]))
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(torch.relu(self.same(self.conv(x))))
        x *= self.scale
        x = x[:, self.order]
        y = x[..., 1:, :-1]
        y = torch.cat((y[:, :3], y[:, 3:]), 1) + self.inner.shift
        low, high = y.chunk(2, 1)
        y = torch.cat([high, low], dim=1)
        y = nn.functional.relu(y, inplace=True)
        batch, channels, height, width = y.shape
        y = y.view(batch, channels, height * width)
        y += 1
        return self.linear(y.mean(-1, dtype=torch.float32))


class Names(nn.Module):
    """Layers whose names a module has too, or that are no names in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(
            {"class": nn.Conv2d(3, 4, 3), "2x": nn.BatchNorm2d(4), "lambda": nn.ReLU(), "layer-1": nn.Conv2d(4, 4, 1)}
        )
        self.steps = nn.ModuleList([nn.ModuleList([nn.Conv2d(4, 4, 1), nn.ReLU()]), nn.Conv2d(4, 4, 1)])
        self.gap = nn.Sequential(nn.Dropout(0.5), nn.ReLU())
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for inner in self.parts.values():
            x = inner(x)
        x = self.steps[1](self.steps[0][1](self.steps[0][0](x)))
        return self.head(self.gap[1](x).mean((2, 3)))


def test_networks_of_tests_compute_the_same_bits(tmp_path) -> None:
    numbered = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    models = {
        "chain": part(how=HOW, budget=by.Budget(flops=0.5)),
        "residual": part(Residual, reject=True, how=HOW),
        "branches": part(Branches, task=("2",)),
        "squeeze": part(SqueezeExcite).double(),
        "sequence": part(lambda: SequenceFirst(2)),
        "odd": part(Odd),
        "names": part(Names),
        "numbered": part(lambda: numbered),
        "half": part(Residual, how=HOW).half(),
        "fused": by.load(part(Residual).fused().save(tmp_path / "fused.safetensors")),
    }
    alone(models, tmp_path)


FAST = (
    *(("torchvision", name, 64) for name in ("mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1")),
    ("timm", "vit_tiny_patch16_224", 224),
)
SLOW = (
    *(("torchvision", name, 64) for name in ("densenet121", "convnext_tiny", "efficientnet_b0", "regnet_y_400mf")),
    *(("torchvision", name, 96) for name in ("googlenet", "inception_v3")),
    ("torchvision", "swin_t", 224),
    *(("timm", name, 64) for name in ("skresnet18", "ghostnet_100", "hrnet_w18_small", "nfnet_l0")),
)


@pytest.mark.parametrize("entries", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["fast", "slow"])
def test_networks_of_libraries_compute_the_same_bits(entries, tmp_path) -> None:
    torchvision, timm = needed_package("torchvision"), needed_package("timm")
    models = {}
    for library, name, size in entries:
        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        make = timm.create_model if library == "timm" else torchvision.models.get_model
        net = randomised(make(name, num_classes=4, **more))
        network = trace(net, torch.rand(2, 3, size, size)).network
        models[name] = with_network(network, (3, size, size))
    alone(models, tmp_path)
    for name in models:
        text = (tmp_path / f"{name}.py").read_text()
        assert imports(text) <= IMPORTS
        assert max(map(len, text.splitlines())) <= 160


def holds(value: object) -> bool:
    """Whether a value holds memory of its own: a tensor that the model has not got anyway, or several."""
    several = isinstance(value, tuple) and any(map(holds, value))
    return several or (isinstance(value, Tensor) and not isinstance(value, nn.Parameter))


def test_what_is_no_longer_needed_is_not_kept(tmp_path) -> None:
    for index, make in enumerate((chain, Residual, Branches, SqueezeExcite, Odd)):
        component = part(make)
        export_module(component, tmp_path / f"p{index}.py")
        model = imported(tmp_path / f"p{index}.py").load()
        counts: list[int] = []

        def count(*_: object, model: nn.Module = model, counts: list[int] = counts) -> None:
            frame = inspect.currentframe()
            while frame.f_code.co_name != "forward" or frame.f_locals.get("self") is not model:
                frame = frame.f_back
            counts.append(sum(map(holds, frame.f_locals.values())))

        for inner in model.modules():
            if not list(inner.children()):
                inner.register_forward_pre_hook(count)
        x, most = torch.rand(2, 3, 8, 8), []
        with torch.no_grad():
            model(x)
            for _, node, values in component.network.walk(x):
                if node.op == "layer":
                    most.append(sum(map(holds, values.values())))
        assert counts
        assert max(counts) <= max(most), make


# -- names are data ----------------------------------------------------------------------------------------

HOSTILE = (
    '"""\nimport os\nopen("pwned", "w")\n"""',
    "'''\nimport os\n'''",
    'a"]; import os; x["',
    "\\",
    'ends with a quote"',
    "\\N{BULLET}{x}%s{0}",
    "x\u2028import os\u2029",
    "\x00\x1f\x1b[2J\x0c\r\nimport os",
    "\u202eimport os",
    "Käfer 甲虫 🪲",
    "class",
    "self",
    "__class__",
    "__x",
    "forward",
    "train",
    "parameters",
    "torch",
    "None",
    "2x",
    "x = 1\n    import os",
)


def hostile_network(name: str) -> Network:
    """A network in which a name stands wherever one can."""
    plain = name.replace(".", "")
    layers = {plain: nn.Conv2d(3, 4, 3), f"group.{plain}": nn.Conv2d(4, 4, 1), f"{plain}x.{plain}": nn.Linear(4, 4)}
    tensors = {f"held.{plain}": nn.Parameter(torch.rand(4, 1, 1)), f"other.{plain}": torch.rand(4, 1, 1)}
    nodes = [
        Node("x", "input"),
        Node(name, "layer", plain, (Ref("x"),)),
        Node(f"{name} ", "layer", f"group.{plain}", (Ref(name),)),
        Node("p", "tensor", f"held.{plain}"),
        Node(f" {name}", "tensor", f"other.{plain}"),
        Node(f"{name}1", "function", "add", (Ref(f"{name} "), Ref("p"))),
        Node(f"{name}2", "function", "iadd", (Ref(f"{name}1"), Ref(f" {name}"))),
        Node("mean", "function", "mean", (Ref(f"{name}2"), (2, 3))),
        Node("last", "layer", f"{plain}x.{plain}", (Ref("mean"),)),
        Node("output", "output", args=(Ref("last"),)),
    ]
    return randomised(Network(nodes, layers, tensors))


def test_names_are_never_code(tmp_path) -> None:
    models = {}
    for index, name in enumerate(HOSTILE):
        classes = (name, f"{name}!", "c", "d")
        component = with_network(hostile_network(name))
        source = component.manifest.source.model_copy(update={"name": name, "classes": classes})
        manifest = component.manifest.model_copy(update={"source": source, "classes": classes})
        models[f"hostile{index}"] = Component(component.network, manifest)
    alone(models, tmp_path)
    shape = None
    for name in models:
        text = (tmp_path / f"{name}.py").read_text(encoding="utf-8")
        assert imports(text) <= IMPORTS
        tree = ast.parse(text)
        found = [type(node).__name__ for node in tree.body]
        shape = shape or found
        assert found == shape  # the same statements, whatever the names are
        assert all(c.isprintable() or c == "\n" for c in text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id in {"TypeError", "str", "super", "safe_open", "ValueError", "Model", "Group"}, name


# -- preprocessing -----------------------------------------------------------------------------------------

HOWS = [
    by.Preprocessing(size=size, fit=fit, crop=0.8, interpolation=curve, antialias=smooth)
    for size, fit, curve, smooth in itertools.product(
        [(8, 8), (6, 9)], ["resize", "crop", "pad"], ["bilinear", "bicubic"], [True, False]
    )
]
HOWS += [
    by.Preprocessing(
        size=size, fit=fit, place=place, fill=114 / 255, interpolation=curve, antialias=smooth, order=order
    )
    for (size, fit, place, order), curve, smooth in itertools.product(
        [
            ((8, 8), "letterbox", "centre", "bgr"),
            ((6, 9), "letterbox", "corner", "rgb"),
            ((9, 16), "pad", "corner", "rgb"),
        ],
        ["bilinear", "bicubic"],
        [True, False],
    )
]
HOWS += [
    by.Preprocessing(order="bgr", channels=3, mean=(0.5, 0.1, 0.2), std=(0.25, 1 / 3, 0.1)),
    by.Preprocessing(order="bgr", size=(9, 9), fit="pad", fill=0.3),
    by.Preprocessing(channels=1, mean=(0.5,), std=(0.25,)),
    by.Preprocessing(channels=3, mean=(0.5,), std=(0.25,)),
    by.Preprocessing(channels=3, size=(7, 7), mean=(0.5, 0.1, 0.2), std=(0.25, 1 / 3, 0.1)),
    by.Preprocessing(mean=(0.5, 0.1, 0.2), std=(0.25, 1 / 3, 0.1)),
    by.Preprocessing(),
    by.Preprocessing(unknown=True),
]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_preprocessing_has_the_same_bits(how, tmp_path) -> None:
    component = part().with_preprocessing(how)
    module = imported(export_module(component, tmp_path / "p.py").path)
    generator = torch.Generator().manual_seed(0)
    channels = [3] if how.channels is None else [1, 3]
    for channel, size in itertools.product(channels, [(8, 8), (5, 6), (13, 8), (21, 6), (40, 31)]):
        x = torch.rand(2, channel, *size, generator=generator, dtype=torch.float64)
        for images in (x, x.float(), x.half(), (x * 255).to(torch.uint8)):
            wanted = component.preprocess(images).float()
            found = module.preprocess(images)
            assert found.dtype == torch.float32
            assert torch.equal(found, wanted), (size, images.dtype)
    with pytest.raises(TypeError):
        module.preprocess(torch.zeros(1, 3, 8, 8, dtype=torch.int64))
    if how.mean is not None and len(how.mean) == 3:
        with pytest.raises(ValueError, match="3 channels"):
            module.preprocess(torch.rand(1, 2, 8, 8))
    if how.order == "bgr" and how.channels is None:
        with pytest.raises(ValueError, match="3 channels"):
            module.preprocess(torch.rand(1, 1, 8, 8))
    if how.unknown:
        assert "not known" in module.preprocess.__doc__


# -- files -------------------------------------------------------------------------------------------------


def test_the_file_explains_itself_and_is_the_same_each_time(tmp_path) -> None:
    component = part(Residual, how=HOW, classes=["ape", "bee", "cat", "dog"], task=("bee", "dog"), reject=True)
    record = export_module(component, tmp_path / "a" if (tmp_path / "a").mkdir() else tmp_path / "a" / "part.py")
    again = export_module(component, tmp_path / "part.py")
    assert record.path.read_bytes() == again.path.read_bytes()
    assert record.weights.read_bytes() == again.weights.read_bytes()
    assert (record.weights.name, record.bytes) == ("part.weights.safetensors", record.path.stat().st_size)
    for file in (str(record.path), str(record.weights)):
        assert file in str(record)
        assert file in record.as_dict().values()
    about = ast.get_docstring(ast.parse(record.path.read_text())) or ""
    for word in (by.__version__, "Residual", "bee, dog", "FLOPs", REJECT, "from part import", record.weights.name):
        assert word in about
    assert str(tmp_path) not in record.path.read_text()
    assert "brickyard" not in "".join(imports(record.path.read_text()))


def test_weights_of_another_model_do_not_load(tmp_path) -> None:
    one, other = part(Residual), part(Residual, budget=by.Budget(flops=0.5))
    alike = part(Residual)
    with torch.no_grad():
        next(alike.parameters()).mul_(2)
    paths = [export_module(item, tmp_path / f"p{k}.py") for k, item in enumerate((one, other, alike))]
    module = imported(paths[0].path)
    for record in paths[1:]:
        with pytest.raises(ValueError, match="another model"):
            module.load(str(record.weights))
    save_file(load_file(paths[1].weights), tmp_path / "unmarked.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        module.load(str(tmp_path / "unmarked.safetensors"))
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load(str(one.save(tmp_path / "component.safetensors")))
    tuned = {name: value + 1 for name, value in load_file(paths[0].weights).items()}
    save_file(tuned, tmp_path / "tuned.safetensors")  # numbers of one's own, in the same network
    found = module.load(str(tmp_path / "tuned.safetensors"))
    assert torch.equal(found.state_dict()["stem.weight"], tuned["stem.weight"])
    assert all(value.requires_grad for value in found.parameters())


def test_what_is_there_is_not_replaced(tmp_path, monkeypatch) -> None:
    component = part()
    record = export_module(component, tmp_path / "part.py")
    before = record.path.read_bytes(), record.weights.read_bytes()
    for gone, kept in ((record.path, record.weights), (record.weights, record.path)):
        content = gone.read_bytes()
        gone.unlink()
        with refused("file-exists", str(kept)):
            export_module(component, tmp_path / "part.py")
        gone.write_bytes(content)
    export_module(component, tmp_path / "part.py", overwrite=True)
    assert before == (record.path.read_bytes(), record.weights.read_bytes())
    saved = component.save(tmp_path / "own.weights.safetensors")
    content = saved.read_bytes()
    with refused("file-path-invalid", "own.weights.safetensors"):
        export_module(component, tmp_path / "own.py", overwrite=True)
    assert saved.read_bytes() == content
    assert not (tmp_path / "own.py").exists()


@pytest.mark.parametrize("name", ["torch.py", "my-part.py", "2x.py", "class.py", "json.py", "part.txt", "é.py"])
def test_names_that_cannot_be_imported_are_refused(name, tmp_path) -> None:
    with refused("file-path-invalid", name):
        export_module(part(), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", ["brickyard.export._module.save_file", "pathlib.Path.write_bytes"])
@pytest.mark.parametrize("there", [False, True])
def test_no_half_of_it_is_left(failing, there, tmp_path, monkeypatch) -> None:
    component = part()
    before = {}
    if there:
        export_module(part(Residual), tmp_path / "part.py")
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, refused("file-not-writable"):
        patched.setattr(failing, fails)
        export_module(component, tmp_path / "part.py", overwrite=there)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_model_comes_back_untouched(tmp_path) -> None:
    component = part(Residual).double().train()
    before = {name: value.clone() for name, value in component.state_dict().items()}
    export_module(component, tmp_path / "part.py")
    assert component.training
    assert all(torch.equal(value, before[name]) for name, value in component.state_dict().items())


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch) -> None:
    class Several(OneOfMany):
        def head(self, logits: Tensor, task: Tensor, others: Tensor | None) -> Tensor:
            return super().head(logits, task, others) * 2

    monkeypatch.setitem(OUTPUTS, "several", Several())
    component = part(reject=True).with_manifest(outputs="several")
    with refused("surgery-export-failed", "several", ".onnx"):
        export_module(component, tmp_path / "p.py")
    plain = part().with_manifest(outputs="several")
    assert "several" in export_module(plain, tmp_path / "plain.py").path.read_text()
    network = component.network
    network._foreign["mine"] = torch.relu
    with refused("file-unsupported-operation", "mine"):
        export_module(component, tmp_path / "p.py")
    with refused("option-wrong-object", "Sequential"):
        export_module(chain(), tmp_path / "p.py")
    with refused("file-meta-device"):
        export_module(part().to("meta"), tmp_path / "p.py")
    assert not (tmp_path / "p.py").exists()
    assert not (tmp_path / "p.weights.safetensors").exists()


def test_images_are_not_overwritten(tmp_path) -> None:
    model = nn.Sequential(OrderedDict(act=nn.ReLU(inplace=True), rest=nn.Sequential(*chain())))
    component = part(lambda: model)
    found = imported(export_module(component, tmp_path / "p.py").path).load()
    x = torch.randn(2, 3, 8, 8)
    kept = x.clone()
    with torch.no_grad():
        assert torch.equal(found(x), component(kept.clone()))
    assert torch.equal(x, kept) == component.network.keeps_input or torch.equal(x, kept)


def test_it_can_be_trained_and_read_by_tools(tmp_path) -> None:
    component = part(Residual)
    found = imported(export_module(component, tmp_path / "p.py").path).load()
    found.train()
    loss = F.cross_entropy(found(DATA[0]), DATA[1] % 2)
    loss.backward()
    assert all(value.grad is not None for value in found.parameters())
    found.eval()
    program = torch.export.export(found, (DATA[0][:2],), strict=False)
    torch.testing.assert_close(program.module()(DATA[0][:2]), found(DATA[0][:2]))


# -- the command line --------------------------------------------------------------------------------------


def test_export_from_the_command_line(tmp_path) -> None:
    component = part(how=HOW)
    file = component.save(tmp_path / "part.safetensors")
    before = file.read_bytes()
    value = json.loads(run("export", file, "-o", tmp_path / "part.py", "--json").stdout)
    assert value["path"] == str(tmp_path / "part.py")
    assert value["weights"] == str(tmp_path / "part.weights.safetensors")
    assert file.read_bytes() == before
    found = imported(tmp_path / "part.py").load()
    assert found.state_dict().keys() == component.network.state_dict().keys()
    assert "--force" in run("export", file, "-o", tmp_path / "part.py", code=1).stderr
    (tmp_path / "part.py").unlink()
    assert "part.weights.safetensors" in run("export", file, "-o", tmp_path / "part.py", code=1).stderr
    assert "part.weights.safetensors" in run("export", file, "-o", tmp_path / "part.py", "--force").stdout
    awkward = component.save(tmp_path / "own.weights.safetensors")
    before = awkward.read_bytes()
    assert "input" in run("export", awkward, "-o", tmp_path / "own.py", "--force", code=1).stderr
    assert awkward.read_bytes() == before
    for options, quoted in ((("--uint8",), "--uint8"), (("--int8",), "--int8"), (("--channels", 1), "--channels")):
        assert quoted in run("export", file, "-o", tmp_path / "x.py", *options, code=1).stderr
    assert ".py" in run("export", file, "-o", tmp_path / "x.tflite", code=1).stderr
    assert not (tmp_path / "x.py").exists()


def test_a_state_dict_of_the_network_fits(tmp_path) -> None:
    """What other tools have of the network goes into the plain module under the same names."""
    component = part(Residual)
    found = imported(export_module(component, tmp_path / "p.py").path).Model()
    state = load_file(export_state_dict(component, tmp_path / "numbers.safetensors").path)
    network = {name.removeprefix("network."): v for name, v in state.items() if name.startswith("network.")}
    found.load_state_dict(network, strict=True)
    with torch.no_grad():
        assert torch.equal(found.eval()(DATA[0]), component(DATA[0]))
