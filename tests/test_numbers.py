"""Numbers: the same bytes from the same seed, agreement between types and threads, and what cannot get worse."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import brickyard as by
from brickyard import healing
from brickyard.finetuning import finetune
from brickyard.graph import trace
from brickyard.healing import heal_network
from brickyard.options import Schedule
from brickyard.surgery import cut
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, randomised
from nets import Drawn, images, keep_sets, plans

ROOT = Path(__file__).parent.parent
DATA = (torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 4)
NETS = [chain, Residual, Branches, SqueezeExcite]
CHOICES = ("mda", "damage", "l1", "fpgm", "hrank", "activation", "taylor", "random")
SCALINGS = ("none", "log-probability", "logit-mean", "magnitude", "mahalanobis", "affine", "joint-head", "lda")


# -- the same bytes ------------------------------------------------------------------------------------------


def made(folder: Path, seed: int = 0) -> dict[str, str]:
    """A hash of every kind of file that can be made, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model, other = randomised(Residual(), 0), randomised(chain(), 1)
    relevance = by.locate(model, DATA, seed=seed)
    found = {"relevance": relevance}
    for select in CHOICES:
        found[select] = by.disassemble(
            model, relevance, task=["2", "0"], budget=by.Budget(flops=0.5), select=select, seed=seed
        )
    second = by.disassemble(other, by.locate(other, DATA, classes=["e", "f", "g", "h"], seed=seed), task=["e", "h"])
    parts = [found["mda"], second]
    for scaling in SCALINGS:
        found[f"scaled {scaling}"] = by.assemble(parts, scaling=scaling, images=[DATA, DATA], shots=5, seed=seed)
    schedule = Schedule(epochs=2, augment=True, batch_size=8, seed=seed)
    found["trained"] = finetune(found["mda"], DATA, schedule=schedule)
    hashes = {}
    for name, item in found.items():
        path = item.save(folder / f"{name}.safetensors", overwrite=True)
        hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def test_the_same_seed_gives_the_same_bytes_here_and_in_another_process(tmp_path) -> None:
    first, second = made(tmp_path / "1"), made(tmp_path / "2")
    assert first == second
    other = made(tmp_path / "3", seed=5)
    assert other["relevance"] != first["relevance"]
    assert other["random"] != first["random"]
    assert other["trained"] != first["trained"]
    code = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(1); torch.manual_seed(99)\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r}); from test_numbers import made\n"
        "print(sorted(made(Path('made')).items()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == repr(sorted(first.items())), done.stderr


# -- types, threads, layouts, batches ------------------------------------------------------------------------


def component(make, dtype=torch.float32, threads: int = 1, batch_size: int = 64, last: bool = False):
    """Relevances, a component, and its answers in float64."""
    model = randomised(make(), 0).to(dtype)
    x = DATA[0].contiguous(memory_format=torch.channels_last) if last else DATA[0]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        relevance = by.locate(model, (x, DATA[1]), batch_size=batch_size)
        part = by.disassemble(model, relevance, task=["1", "3"], budget=by.Budget(flops=0.5))
    finally:
        torch.set_num_threads(before)
    with torch.no_grad():
        return relevance, part, part.logits(DATA[0]).double()


@cache
def exact(make):
    return component(make, torch.float64)


def far(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest entry."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


# Bounds of docs/trust.md: of contributions, and of a component's logits; shares of the largest entry.
BOUNDS = {
    "float32": ({"dtype": torch.float32}, 2e-6, 1e-4),
    "two threads": ({"threads": 2}, 2e-6, 1e-4),
    "batches of 7": ({"batch_size": 7}, 2e-6, 1e-4),
    "batches of 1": ({"batch_size": 1}, 2e-6, 1e-4),
    "channels last": ({"last": True}, 2e-6, 1e-4),
    "float16": ({"dtype": torch.float16}, 5e-3, 5e-3),
    "bfloat16": ({"dtype": torch.bfloat16}, 4e-2, 5e-2),
}


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("name", BOUNDS)
def test_types_threads_batches_and_layouts_agree(make, name) -> None:
    options, sums, logits = BOUNDS[name]
    relevance, part, answers = component(make, **options)
    wanted, best, goal = exact(make)
    for layer in wanted.layers:
        assert far(relevance.sum(layer), wanted.sum(layer)) <= sums, layer
    if "dtype" not in options or options["dtype"] == torch.float32:
        assert all(torch.equal(relevance.hard(layer), wanted.hard(layer)) for layer in wanted.layers)
        assert part.manifest.axes == best.manifest.axes
    if part.manifest.axes == best.manifest.axes:
        assert far(answers, goal) <= logits
    assert all(bool(torch.isfinite(value).all()) for value in part.state_dict().values())
    assert next(part.parameters()).dtype == options.get("dtype", torch.float32)


@pytest.mark.parametrize("make", NETS)
def test_two_threads_give_the_same_bytes_on_small_networks(make, tmp_path) -> None:
    """Not promised for large ones: there a library may add in another order with other numbers of threads."""
    files = [component(make, threads=n)[1].save(tmp_path / f"{n}").read_bytes() for n in (1, 2)]
    assert files[0] == files[1]


def test_another_network_is_not_within_the_bounds() -> None:
    found = component(chain)[2]
    other = randomised(chain(), 1)
    part = by.disassemble(other, by.locate(other, DATA), task=["1", "3"], budget=by.Budget(flops=0.5))
    assert far(part.logits(DATA[0]).detach(), found) > 0.3


# -- blocks and training -------------------------------------------------------------------------------------


def pair() -> list[by.Component]:
    found = []
    for seed, names in enumerate((["a", "b", "c", "d"], ["e", "f", "g", "h"])):
        model = randomised(chain(), seed).double()
        found.append(by.disassemble(model, by.locate(model, DATA, classes=names), task=names[:2]))
    return found


def stepped(whole: by.Assembly, first: int, last: int) -> by.Assembly:
    """After training steps with the loss of some columns only."""
    for parameter in whole.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(whole.parameters(), 0.05, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(whole(DATA[0])[:, first:last], DATA[1] % 2).backward()
        optimizer.step()
    return whole


@pytest.mark.parametrize("form", ["parallel", "grouped", "padded"])
def test_blocks_are_the_parts_after_training_one_of_them(form) -> None:
    first, second = pair()
    schedule = Schedule(epochs=2, batch_size=8, lr=0.05)
    trained = finetune(first, DATA, schedule=schedule, validation=0)
    whole = by.assemble([trained, second], form=form)
    x = DATA[0].double()
    with torch.no_grad():
        torch.testing.assert_close(whole(x), torch.cat([trained(x), second(x)], 1), rtol=1e-9, atol=1e-9)
        assert far(whole(x)[:, :2], first(x)) > 1e-3  # it did train
        before = by.assemble([first, second], form=form)(x)
        torch.testing.assert_close(whole(x)[:, 2:], before[:, 2:], rtol=1e-9, atol=1e-9)


def test_training_steps_on_one_part_leave_the_others_bits_alone() -> None:
    with torch.no_grad():
        before = by.assemble(pair())(DATA[0])
    whole = stepped(by.assemble(pair()), 0, 2)
    with torch.no_grad():
        found = whole(DATA[0])
    assert far(found[:, :2], before[:, :2]) > 1e-3
    assert torch.equal(found[:, 2:], before[:, 2:])


@pytest.mark.parametrize("form", ["grouped", "padded"])
def test_one_network_of_parts_trains_as_one_network(form) -> None:
    """What lies between the parts is trained as all else: they may learn of each other."""
    whole = by.assemble(pair(), form=form)
    weight = whole.joined.layer("linear").weight.detach().clone()
    assert bool((weight == 0).any())
    stepped(whole, 0, 4)
    trained = whole.joined.layer("linear").weight.detach()
    assert bool((trained[weight == 0] != 0).any())


# -- the refit -----------------------------------------------------------------------------------------------


def residuals(make_network, graph, keep, batches, ridge: float) -> list[tuple[str, float, float]]:
    """For each layer that is refitted: the squared error of its targets before and after its own refit."""
    seen: list[tuple[str, float, float]] = []
    refit = healing._refit

    def error(job) -> float:
        return sum(float(missing.double().square().sum()) for _, _, missing in job.residuals())

    def watched(job, strength, report):
        before = error(job)
        done = refit(job, strength, report)
        seen.append((job.name, before, error(job)))
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(healing, "_refit", watched)
        patch.setattr(healing, "ROUNDS", 0)
        heal_network(graph, keep, make_network, batches, "refit", ridge)
    return seen


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), plan=plans(), ridge=st.sampled_from([0.0, 1e-6, 1e-3, 1.0]), double=st.booleans())
def test_a_refit_never_raises_the_residual(data, plan, ridge, double) -> None:
    dtype = torch.float64 if double else torch.float32
    model = Drawn(plan).to(dtype).eval()
    x = images(12).to(dtype)
    graph = trace(model, x[:2])
    keep = data.draw(keep_sets({axis.name: axis.size for axis in graph.free if not axis.output}))
    whole = {**graph.everything(), **keep}
    for name, before, after in residuals(cut(graph, whole), graph, whole, [x], ridge):
        assert after <= before * (1 + (1e-9 if double else 1e-4)) + 1e-12, name


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e4, 1e8])
@pytest.mark.parametrize("ridge", [0.0, 1e-9, 1e-3])
def test_a_refit_of_inputs_that_hardly_differ_does_not_raise_the_residual(scale, ridge) -> None:
    """Inputs that are almost copies of each other, at several sizes, in float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.Flatten(), nn.LazyLinear(4))
    model(torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        first, second = model[0], model[2]
        first.weight[1:5] = first.weight[0] * (1 + 1e-6 * torch.randn(4, 1, 1, 1))
        first.bias[1:5] = first.bias[0]
        first.weight *= scale
        first.bias *= scale
        second.weight /= scale
    x = DATA[0]
    graph = trace(model.eval(), x[:2])
    keep = {**graph.everything(), "0": torch.tensor([0, 1, 2, 3, 5])}
    seen = residuals(cut(graph, keep), graph, keep, [x], ridge)
    assert {name for name, _, _ in seen} == {"0", "2", "4"}
    for name, before, after in seen:
        assert after <= before * (1 + 1e-4) + 1e-30, name


# -- far from usual ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [-20, -10, 10, 18, 30])
@pytest.mark.parametrize("select", ["mda", "damage"])
def test_extreme_weights_give_finite_numbers_or_one_error(power, select, tmp_path) -> None:
    model = chain()
    with torch.no_grad():
        for parameter in itertools.islice(model.parameters(), 2):
            parameter.mul_(10.0**power)
    said = ""
    try:
        relevance = by.locate(model, DATA)
        part = by.disassemble(model, relevance, task=["0", "2"], budget=by.Budget(flops=0.5), select=select)
        part.save(tmp_path / "part.safetensors")
    except by.BrickyardError as error:
        said = str(error)
    if said:
        assert power > 0
        assert any(word in said for word in ("finite", "infinite", "overflow")), said
        assert not list(tmp_path.iterdir())
        return
    again = by.load(tmp_path / "part.safetensors")
    assert torch.isfinite(again.logits(DATA[0])).all()


def test_contributions_that_overflow_name_their_layer(monkeypatch) -> None:
    model = chain()
    relevance = by.locate(model, DATA)
    sums = {name: relevance.sum(name)[0].clone() for name in relevance.layers}
    graph = relevance.graph(model)
    relevance.add_class(0, sums, graph)
    sums["linear"][0, 0] = float("inf")
    with pytest.raises(by.BrickyardError, match="layer 'linear' are not finite"):
        relevance.add_class(0, sums, graph)
