"""Parts with a common beginning: an assembly runs and stores it once, and answers as if each part ran by itself."""

from __future__ import annotations

import copy
import importlib
import json
from functools import cache

import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import brickyard as by
from brickyard.assembly._assembly import Assembly
from brickyard.export._module import export_module
from brickyard.export._onnx import export_onnx
from brickyard.network._cost_limit import Bounds
from brickyard.runtime._profiling import count_flops, count_parameters
from brickyard.sources._zoo_resnet import resnet20
from brickyard.testing import Residual, randomised
from brickyard.training import TrainingOptions
from errors import refused

DATA = (torch.rand(48, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(48) % 4)
HOW = by.Preprocessing(mean=(0.5,), std=(0.25,))
WHOLE = by.Budget(flops=1.0)  # only the last layer is cut


def assemble(components, *, scaling="none", **options) -> by.Assembly:
    """Join parts with their logits as they are, unless a scaling is named."""
    return by.assemble(components, scaling=scaling, **options)


def headed(count: int = 2) -> list[nn.Module]:
    """Sources with one frozen backbone, and a last linear layer each."""
    first = randomised(resnet20(4, 0.5), 0)
    made = [first]
    for seed in range(1, count):
        other = copy.deepcopy(first)
        other.linear = randomised(nn.Linear(first.linear.in_features, 4), seed)
        made.append(other)
    return made


@cache
def heads(count: int = 2, how: by.Preprocessing = HOW) -> tuple[by.Component, ...]:
    found = []
    for index, model in enumerate(headed(count)):
        names = [f"{letter}{index}" for letter in "abcd"]
        relevance = by.locate(model, DATA, classes=names, preprocessing=how)
        found.append(by.disassemble(model, relevance, task=names[: 3 + index % 2], budget=WHOLE))
    return tuple(found)


def apart(whole: Assembly) -> Assembly:
    """The same assembly whose parts run one after the other, from the first step to the last."""
    made = whole.unshared()
    assert not {id(p) for p in made.parts[0].parameters()} & {id(p) for p in made.parts[1].parameters()}
    return made


def cost(assembly: Assembly) -> int:
    """The oracle: what torch counts while the assembly runs."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        assembly(DATA[0][:1])
    return int(counter.get_total_flops())


def test_two_heads_on_one_backbone_cost_one_backbone(tmp_path) -> None:
    parts = heads()
    whole = assemble(parts)
    source = parts[0].manifest.source
    expected = torch.cat([part(part.preprocess(DATA[0])) for part in parts], 1)
    assert torch.equal(whole(DATA[0]), expected)
    assert torch.equal(apart(whole)(DATA[0]), expected)
    assert cost(whole) <= 1.05 * source.flops < cost(apart(whole))
    assert cost(whole) == sum(count_flops(*pair) for pair in whole.distinct_networks())
    trunk = sum(p.numel() for p in parts[0].network.parameters()) - sum(
        p.numel() for p in parts[0].network.layer("linear").parameters()
    )
    assert count_parameters(whole) == count_parameters(apart(whole)) - trunk
    assert whole.manifest.shared_parameters == trunk
    assert whole.manifest.shared_flops == cost(apart(whole)) - cost(whole)
    assert f"{trunk:,}" in str(whole)
    one = tensor_bytes(parts[0].save(tmp_path / "one.safetensors"))
    both = tensor_bytes(whole.save(tmp_path / "both.safetensors"))
    assert both < 1.1 * one < tensor_bytes(apart(whole).save(tmp_path / "apart.safetensors"))


def tensor_bytes(path) -> int:
    return sum(value.numel() * value.element_size() for name, value in load_file(path).items() if "net" in name)


def test_a_file_gives_the_same_assembly_back(tmp_path) -> None:
    whole = assemble(heads(3))
    again = by.load(whole.save(tmp_path / "whole.safetensors"))
    assert torch.equal(again(DATA[0]), whole(DATA[0]))
    assert (again.manifest, again.sharing) == (whole.manifest, whole.sharing)
    assert count_parameters(again) == count_parameters(whole)
    assert again.save(tmp_path / "again.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    names = load_file(tmp_path / "whole.safetensors").keys()
    assert "networks.0.conv1.weight" in names
    assert "networks.1.conv1.weight" not in names
    assert "networks.1.linear.weight" in names
    old = by.load(apart(whole).save(tmp_path / "old.safetensors"))  # as before: each part with all its tensors
    assert torch.equal(old(DATA[0]), whole(DATA[0]))
    assert cost(old) == cost(whole)


def rewritten(path, change):
    with safe_open(path, framework="pt") as file:
        text = json.loads(file.metadata()["brickyard"])
    tensors = load_file(path)
    change(text, tensors)
    save_file(tensors, path, {"brickyard": json.dumps(text)})
    return path


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda t, x: t["shared"].update({"1.conv1": "0.linear"}), "file-inconsistent"),
        (lambda t, x: t["shared"].update({"1.conv1": "7.conv1"}), "file-inconsistent"),
        (lambda t, x: t["shared"].update({"1.none": "0.conv1"}), "file-inconsistent"),
        (lambda t, x: t["shared"].update({"0.conv1": "1.conv1"}), "file-inconsistent"),
        (lambda t, x: t["shared"].pop("1.conv1"), "file-tensor-mismatch"),
        (lambda t, x: x.update({"networks.1.conv1.weight": x["networks.0.conv1.weight"] + 1}), "file-tensor-mismatch"),
        (lambda t, x: x.pop("networks.0.conv1.weight"), "file-tensor-mismatch"),
        (lambda t, x: t["shared"].update({"x": "0.conv1"}), "file-inconsistent"),
    ],
)
def test_what_a_file_says_is_shared_is_checked(tmp_path, change, code) -> None:
    path = rewritten(assemble(heads()).save(tmp_path / "whole.safetensors"), change)
    with refused(code):
        by.load(path)


class Tables(nn.Module):
    """Bare tensors before the last layer: one that is trained, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
        self.register_buffer("scale", torch.rand(4, 1, 1))
        self.shift = nn.Parameter(torch.rand(4, 1, 1))
        randomised(self)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x) * self.scale + self.shift).mean((2, 3)))


def test_bare_tensors_are_shared_too(tmp_path) -> None:
    sources = [Tables(), Tables()]
    sources[1].load_state_dict(sources[0].state_dict())
    sources[1].linear = randomised(nn.Linear(4, 4), 3)
    parts = []
    for names, source in zip(("abcd", "efgh"), sources, strict=True):
        relevance = by.locate(source, DATA, classes=list(names))
        parts.append(by.disassemble(source, relevance, task=list(names), budget=WHOLE))
    whole = assemble(parts)
    assert {"1.conv", "1.scale", "1.shift"} == set(whole.sharing.ties)
    again = by.load(whole.save(tmp_path / "whole.safetensors"))
    expected = torch.cat([part(part.preprocess(DATA[0])) for part in parts], 1)
    assert torch.equal(whole(DATA[0]), expected)
    assert torch.equal(again(DATA[0]), expected)
    both, apart_too = copy.deepcopy(whole).double(), whole.unshared().double()
    assert torch.equal(both(DATA[0].double()), apart_too(DATA[0].double()))
    assert not {"networks.1.scale", "networks.1.shift"} & load_file(both.save(tmp_path / "double.safetensors")).keys()


def test_only_parallel_files_share(tmp_path) -> None:
    path = assemble(heads(), form="padded").save(tmp_path / "padded.safetensors")
    with refused("file-inconsistent"):
        by.load(rewritten(path, lambda text, tensors: text["shared"].update({"0.bn1": "0.layer1.0.bn1"})))


def test_a_file_is_bounded_by_what_runs(tmp_path, monkeypatch) -> None:
    """Each step that runs counts once; parts that claim to be the same, and do not run as one, count by themselves."""
    whole = assemble(heads())
    path = whole.save(tmp_path / "whole.safetensors")
    numbers = sum(value.numel() for value in load_file(path).values())
    bounds = Bounds(10**9)
    for network, shape in whole.distinct_networks():
        bounds.run(copy.deepcopy(network).to("meta"), shape)
    monkeypatch.setattr("brickyard.base._limits.RATIO", 0)
    monkeypatch.setattr("brickyard.base._limits.WORK", int(1.5 * bounds.work) - 256 * numbers)
    assert torch.equal(by.load(path)(DATA[0]), whole(DATA[0]))

    def prepared_differently(text, tensors) -> None:
        text["manifest"]["parts"][1]["preprocessing"]["mean"] = [0.25]

    with refused("file-too-costly"):
        by.load(rewritten(path, prepared_differently))
    monkeypatch.undo()
    claimed = by.load(path)
    assert not claimed.sharing.runs
    assert not torch.equal(claimed(DATA[0]), whole(DATA[0]))


def test_onnx_runs_the_backbone_once(tmp_path) -> None:
    whole = assemble(heads())
    onnx = pytest.importorskip("onnx")
    path = export_onnx(whole, tmp_path / "whole.onnx").path
    nodes = onnx.load(path).graph.node
    layers = map(whole.parts[0].network.layer, whole.parts[0].network.layer_names)
    assert sum(node.op_type == "Conv" for node in nodes) == sum(isinstance(layer, nn.Conv2d) for layer in layers)
    found = onnxruntime.InferenceSession(path).run(["logits"], {"images": DATA[0].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), apart(whole)(DATA[0]), rtol=1e-4, atol=1e-4)
    assert path.stat().st_size < 1.1 * export_onnx(whole.parts[0], tmp_path / "part.onnx").path.stat().st_size


def test_plain_modules_run_the_backbone_once(tmp_path, monkeypatch) -> None:
    whole = assemble(heads())
    record = export_module(whole, tmp_path / "shared_heads.py")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("shared_heads")
    model = module.load()
    assert torch.equal(model(module.preprocess(DATA[0])), whole(DATA[0]))
    assert sum(p.numel() for p in model.parameters()) == count_parameters(whole)
    assert model.state_dict().keys() >= {"parts.0.conv1.weight", "parts.1.linear.weight"}
    assert "parts.1.conv1.weight" not in model.state_dict()
    assert record.weights_bytes < 1.1 * export_module(whole.parts[0], tmp_path / "one_head.py").weights_bytes


def test_parts_that_are_cut_or_prepared_differently_share_nothing() -> None:
    source = randomised(Residual(), 0)
    relevance = by.locate(source, DATA)
    cut = [
        by.disassemble(source, relevance, task=[0], heal="none"),
        by.disassemble(source, relevance, task=[1], budget=WHOLE),
    ]
    assert assemble(cut).manifest.shared_flops == 0
    uncut = [by.disassemble(source, relevance, task=task, budget=WHOLE) for task in ([0, 1], [2, 3])]
    assert assemble(uncut).manifest.shared_parameters == sum(p.numel() for p in source.parameters()) - 28
    one, other = heads()[0], heads(how=by.Preprocessing(mean=(0.4,), std=(0.25,)))[1]
    whole = assemble([one, other])
    assert not whole.sharing.runs
    assert torch.equal(whole(DATA[0]), torch.cat([part(part.preprocess(DATA[0])) for part in (one, other)], 1))


@pytest.mark.parametrize("scaling", ["mahalanobis", "lda"])
def test_features_of_the_parts_are_those_of_parts_alone(scaling) -> None:
    whole = assemble(heads(), scaling=scaling, images=None if scaling == "mahalanobis" else [DATA, DATA])
    alone = apart(whole)
    for found, wanted in zip(whole.signals(DATA[0], features=True), alone.signals(DATA[0], features=True), strict=True):
        assert (found is None) == (wanted is None)
        assert found is None or torch.equal(found, wanted)
    assert torch.equal(whole(DATA[0]), alone(DATA[0]))
    assert cost(whole) < 0.6 * cost(alone)


def test_opened_assemblies_share_with_further_parts() -> None:
    three = heads(3)
    more = assemble([assemble(three[:2]), three[2]], without=["a0", "b0", "c0"])
    assert len(more.manifest.parts) == 2
    expected = torch.cat([part(part.preprocess(DATA[0])) for part in three[1:]], 1)
    assert torch.equal(more(DATA[0]), expected)
    assert cost(more) <= 1.05 * three[0].manifest.source.flops


def test_the_components_stay_as_they_are() -> None:
    parts = heads()
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
    layers = [part.network.layer("conv1") for part in parts]
    whole = assemble(parts)
    assert [part.network.layer("conv1") for part in parts] == layers
    assert layers[0] is not layers[1]
    assert whole.parts[1].network.layer("conv1") is layers[0]
    for part, state in zip(parts, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())


@pytest.mark.parametrize("change", [lambda m: m.double(), lambda m: m.bfloat16(), copy.deepcopy, lambda m: m.fused()])
def test_what_is_made_of_it_shares_too(change) -> None:
    whole = assemble(heads())
    alone = apart(whole)
    changed, expected = change(copy.deepcopy(whole)), change(alone)
    assert torch.equal(changed(DATA[0]), expected(DATA[0]))
    assert cost(changed) < 0.6 * cost(alone)
    assert count_parameters(changed) < 0.6 * count_parameters(alone)


def test_training_an_assembly_trains_what_is_shared_once() -> None:
    parts = heads()
    whole = assemble(parts)
    trained = by.finetune(whole, [DATA, DATA], training=TrainingOptions(epochs=1), validation=0)
    assert not torch.equal(trained(DATA[0]), whole(DATA[0]))
    assert torch.equal(trained(DATA[0]), apart(trained)(DATA[0]))
    assert trained.sharing == whole.sharing
    assert int(trained.parts[1].network.layer("bn1").num_batches_tracked) == int(
        trained.parts[0].network.layer("bn1").num_batches_tracked
    )
    lone = by.finetune(parts[1], DATA, training=TrainingOptions(epochs=1), validation=0)
    mixed = assemble([parts[0], lone])
    assert not mixed.sharing.runs  # the control: a part that was trained by itself has numbers of its own
    assert torch.equal(mixed(DATA[0]), torch.cat([p(p.preprocess(DATA[0])) for p in (parts[0], lone)], 1))


def test_parts_that_are_not_shared_train_by_themselves() -> None:
    whole = assemble(heads())
    for made, alone in ((apart(whole), True), (copy.deepcopy(whole), False)):
        before = made(DATA[0])
        optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
        made(DATA[0])[:, :3].logsumexp(1).sum().backward()
        optimizer.step()
        assert not torch.equal(made(DATA[0])[:, :3], before[:, :3])
        assert torch.equal(made(DATA[0])[:, 3:], before[:, 3:]) == alone


def test_a_shared_assembly_compiles_as_one_graph() -> None:
    torch.compiler.reset()  # other assemblies of this process count among the versions of its code
    whole = assemble(heads(), scaling="auto")
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(DATA[0]), whole(DATA[0]), rtol=1e-5, atol=1e-5)


def test_other_forms_are_as_before() -> None:
    parts = heads()
    for form in ("padded", "grouped"):
        whole = assemble(parts, form=form)
        assert whole.manifest.shared_flops == 0
        assert not whole.sharing.runs
        torch.testing.assert_close(whole(DATA[0]), assemble(parts)(DATA[0]), rtol=1e-4, atol=1e-4)
