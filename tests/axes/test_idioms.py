"""Ways in which people write forward methods that once gave wrong answers without a word, each with its siblings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brickyard as by
from brickyard.axes._graph import Graph, trace
from brickyard.network._arguments import ALIASES, OPERANDS, ORDER
from brickyard.network._functions import FUNCTIONS
from brickyard.surgery import _steps
from brickyard.surgery._join import cut
from brickyard.testing import randomised, zeroed_output
from errors import refused
from nets import images, relative

X = images(3)
EXTRA = torch.rand(1, 6, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


class Middle(nn.Module):
    """A convolution of six channels, something in the middle, and a classifier of whatever that returns."""

    def __init__(self, middle: Callable[[Tensor], Any], width: int = 6) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, width, 3, padding=1)
        self.middle = [middle]
        self.fc = nn.Linear(self.flat(X.float()).shape[1], 3)
        randomised(self.double())

    def flat(self, x: Tensor) -> Tensor:
        return self.middle[0](self.a(x)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flat(x))


def same(x: Tensor) -> Tensor:
    return x


def sized(x: Tensor) -> Tensor:
    """A size decides: such a model is read with torch.export."""
    return F.avg_pool2d(x, 2) if x.shape[-1] > 64 else x


class Small(nn.Module):
    """A convolution, a mean and a classifier, with something done to the images before and to the logits at the end."""

    def __init__(self, before: Any = same, end: Any = same, outputs: int = 3) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, outputs)
        self.around = [before, end]
        randomised(self.double())

    def logits(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.a(self.around[0](x))).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.around[1](self.logits(x))


def masked(model: nn.Module, graph: Graph, keep: dict[str, Tensor], x: Tensor) -> Tensor:
    """The eager source with dropped channels at zero where its layers read them: nothing of the library runs."""
    kept = torch.ones(graph.channels, dtype=torch.float64)
    for name, channels in keep.items():
        axis = graph.axis(name)
        kept[axis.channels] = 0
        kept[axis.start + channels] = 1

    def hook(name: str) -> Callable[..., Any]:
        reads = graph.at(name, "in")
        assert reads is not None
        return lambda layer, given: (
            given[0] * kept[torch.from_numpy(reads)].reshape(-1, *[1] * (2 if isinstance(layer, nn.Conv2d) else 0)),
        )

    mixing = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in mixing]
    with torch.no_grad():
        found: Tensor = model(x)
    for one in hooks:
        one.remove()
    return found


def exact(model: nn.Module, hooks: bool = True) -> Graph:
    """The graph of a model whose cuts are checked against eager hooks, or the zeroed source where sums are scaled."""
    graph = trace(model, X)
    keeps = [{axis.name: torch.arange(axis.size)[at::2] for axis in graph.free if axis.size > 1} for at in (0, 1)]
    for keep in keeps:
        with torch.no_grad():
            found = cut(graph, keep)(X)
        right = masked(model, graph, keep, X) if hooks and not graph.sums else zeroed_output(graph, keep, X)
        assert relative(found, right) < 1e-10
        with torch.no_grad():
            assert not keep or relative(found, model(X)) > 1e-9  # the control: something was dropped
            assert torch.allclose(cut(graph, keep)(X[:1]), found[:1])
    return graph


# -- every operation in every spelling -------------------------------------------------------------------------

CALLS: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in ("relu", "sigmoid", "tanh", "abs", "square", "exp", "sin", "cos", "erf", "neg", "clone")],
    ("leaky_relu", {"negative_slope": 0.2}),
    ("clamp", {"min": -0.3, "max": 0.5}),
    ("pow", {"exponent": 2}),
    ("tensor_add", {"other": EXTRA, "alpha": 2}),
    ("tensor_mul", {"other": EXTRA}),
    ("maximum", {"other": EXTRA}),
    ("mean", {"dim": (2, 3)}),
    ("mean", {"dim": 1, "keepdim": True}),
    ("sum", {"dim": (2, 3), "keepdim": True}),
    ("amax", {"dim": (2, 3)}),
    ("norm", {"p": 2, "dim": (2, 3), "keepdim": True}),
    ("flatten", {"start_dim": 1}),
    ("flatten", {"start_dim": 2, "end_dim": 3}),
    ("permute", {"dims": (0, 2, 3, 1)}),
    ("transpose", {"dim0": 1, "dim1": 3}),
    ("unsqueeze", {"dim": 2}),
    ("chunk", {"chunks": 2, "dim": 1}),
    ("split", {"split_size": 3, "dim": 1}),
    ("unbind", {"dim": 2}),
    ("flip", {"dims": (3,)}),
    ("roll", {"shifts": 1, "dims": 2}),
    ("tensor_softmax", {"dim": 1}),
    ("softmax", {"dim": 2}),
    ("log_softmax", {"dim": 3}),
    ("normalize", {"p": 2.0, "dim": 1}),
    ("pad", {"pad": (1, 1, 1, 1), "mode": "constant", "value": 0.0}),
    ("repeat", {"repeats": (1, 1, 2, 1)}),
    ("expand", {"size": (-1, -1, -1, -1)}),
    ("max_pool2d", {"kernel_size": 2, "stride": 1}),
    ("adaptive_avg_pool2d", {"output_size": 2}),
]


def spellings(name: str, values: dict[str, Any]) -> list[tuple[str, Callable[[Tensor], Any]]]:
    """All ways to write a call that torch takes: as function or method, by place or name, under any of the names."""
    entry, numpy = FUNCTIONS[name], {new: old for old, new in ALIASES.items()}
    found: list[tuple[str, Callable[[Tensor], Any]]] = []
    calls: list[tuple[str, Callable[..., Any]]] = [("function", one) for one in (*entry.same, entry.call)]
    calls += [("method", lambda x, *a, m=method, **k: getattr(x, m)(*a, **k)) for method in entry.methods]
    calls += [("method of the class", getattr(Tensor, method)) for method in entry.methods]
    for kind, call in calls:
        if getattr(call, "__qualname__", "").startswith("_guarded"):
            continue
        by_place = {key: values[key] for key in ORDER[name][1:] if key in values}
        others = {numpy.get(key, key): value for key, value in values.items()}
        for how, args, kwargs in (
            ("by place", tuple(by_place.values()), {}),
            ("by name", (), values),
            ("by another name", (), others),
        ):
            found.append((f"{kind} {how}", lambda x, c=call, a=args, k=kwargs: c(x, *a, **k)))
        if kind == "function":
            found.append(("all by name", lambda x, c=call: c(**{OPERANDS[name][0]: x}, **values)))
            found.append(("all by another name", lambda x, c=call, o=others: c(x=x, **o)))
    found = [(how, call) for how, call in found if runs(call)]
    several = name in ("chunk", "split", "unbind")
    return [(how, lambda x, c=call: c(x)[0]) for how, call in found] if several else found


def runs(call: Callable[[Tensor], Any]) -> bool:
    try:
        call(EXTRA)
    except (TypeError, RuntimeError, IndexError):
        return False
    return True


@pytest.mark.parametrize(("name", "values"), CALLS, ids=lambda value: str(value) if isinstance(value, str) else "")
def test_a_call_means_the_same_however_it_is_written(name: str, values: dict[str, Any]) -> None:
    expected: dict[str, int] | None = None
    forms = spellings(name, values)
    assert len(forms) >= (1 if name in ("repeat", "expand") else 2)
    for how, call in forms:
        free = {axis.name: axis.size for axis in exact(Middle(call)).free}
        assert expected is None or free == expected, how
        expected = free


def test_functions_without_an_order_do_not_exist() -> None:
    assert set(ORDER) == set(FUNCTIONS)
    assert all(set(OPERANDS[name]) <= set(order) for name, order in ORDER.items())


def test_a_softmax_without_a_dimension_takes_torchs_choice() -> None:
    for call in (lambda x: F.softmax(x), lambda x: F.log_softmax(x), nn.Softmax(), nn.LogSoftmax()):
        sizes = [[axis.size for axis in exact(Middle(one)).free] for one in (call, nn.Softmax(1))]
        assert sizes[0] == sizes[1]
        rows = lambda x, c=call: c(x.flatten(2))  # noqa: E731  # of three dimensions: over the batch
        with refused("trace-batch"):
            trace(Middle(rows), X)


# -- lists, places, shapes -------------------------------------------------------------------------------------

PAIRS: dict[str, Callable[[Tensor], Any]] = {
    "cat to the batch": lambda y: torch.cat(y.chunk(2, 1), 0).unflatten(0, (2, y.shape[0])).amax(0),
    "stack behind": lambda y: torch.stack(y.chunk(2, 1), -1).amax(-1),
    "stack before": lambda y: torch.stack(y.split(3, 1), 0).amax(0),
    "unbind of a view": lambda y: torch.stack(y.unflatten(1, (2, 3)).unbind(1), 2).amax(2),
    "a list of lists": lambda y: torch.stack(list(y.chunk(2, dim=1)), dim=0).sum(0),
}


@pytest.mark.parametrize("name", PAIRS)
def test_partners_of_a_list_passed_whole_stay_together(name: str) -> None:
    """Channel i of the convolution and its partner i + 3 meet: they are one channel of one axis."""
    graph = exact(Middle(PAIRS[name]), hooks=False)
    written = [axis for axis in graph.axes if "a" in axis.writers]
    assert [axis.size for axis in written] == [3]


def test_a_list_joined_as_it_was_is_no_tie() -> None:
    graph = exact(Middle(lambda y: torch.cat(y.chunk(2, 1), 1)))
    assert sum(axis.size for axis in graph.free) == 6


class Indexed(nn.Module):
    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(4 * 64, 3)
        self.register_buffer("index", index)
        randomised(self.double())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.a(x)[:, self.index].flatten(1))


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([5, 3, 1, 0]),
        torch.tensor([5, 3, 1, 0], dtype=torch.int32),
        torch.tensor([True, False, True, True, False, True]),
        torch.tensor([[5, 3], [1, 0]]),
    ],
    ids=["places", "int32", "mask", "table"],
)
def test_places_in_a_buffer_are_as_places_in_a_list(index: Tensor, tmp_path) -> None:
    model = Indexed(index)
    graph = trace(model, X)
    assert not any("a" in axis.writers for axis in graph.free)
    data = X.float().repeat(4, 1, 1, 1), torch.arange(12) % 3
    source = model.float()
    component = by.disassemble(source, by.locate(source, data), task=[0, 1, 2], heal="none")
    with torch.no_grad():
        assert relative(component(data[0]), source(data[0])) < 1e-6
        assert torch.equal(by.load(component.save(tmp_path / "c.safetensors"))(data[0]), component(data[0]))


class Conditional(nn.Module):
    """Weights mixed for each image: the batch lies among the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.r, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2), nn.Conv2d(4, 6, 1)
        self.w, self.fc = nn.Parameter(torch.randn(2, 4, 4, 3, 3)), nn.Linear(6, 3)
        randomised(self.double())

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        b, c, h, w = x.shape
        kernel = (torch.sigmoid(self.r(x.mean((2, 3)))) @ self.w.view(self.w.size(0), -1)).view(b * c, c, 3, 3)
        x = F.conv2d(x.reshape(1, b * c, h, w), kernel, padding=1, groups=b).view(b, c, h, w)
        return self.fc(F.relu(self.b(x)).mean((2, 3)))


def test_a_batch_among_the_channels_is_kept_whole() -> None:
    assert {axis.writers for axis in exact(Conditional(), hooks=False).free} == {("b",)}


SHAPES: dict[str, Callable[[Tensor], Any]] = {
    "the first sizes and the rest": lambda y: y.view(y.shape[:2] + (-1,)).mean(2),  # noqa: RUF005
    "the first sizes by name": lambda y: y.reshape(y.size(0), y.size(1), -1).amax(2),
    "a product": lambda y: y.reshape(y.shape[0] * y.shape[1], -1).mean(1).view(y.shape[0], y.shape[1]),
    "the whole shape": lambda y: y.view(y.shape) * 2,
    "as another": lambda y: y.flatten(2).view(y.size()),
}


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_are_computed_for_any_batch(name: str) -> None:
    graph = exact(Middle(SHAPES[name]))
    with torch.no_grad():
        for count in (1, 5):
            x = images(count)
            assert relative(graph.network(x), Middle(SHAPES[name])(x)) < 1e-12


def test_a_pool_read_by_export_sees_each_image() -> None:
    class Sized(nn.Module):
        def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.a, self.fc, self.pool = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 3), [pool]
            randomised(self.double())

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] > 64:
                x = F.avg_pool2d(x, 2)
            return self.fc(self.pool[0](F.relu(self.a(x))).flatten(1))

    pools: list[Callable[[Tensor], Tensor]] = [
        lambda x: F.adaptive_max_pool2d(x, 1),
        lambda x: F.adaptive_max_pool2d(x, 1, return_indices=True)[0],
        lambda x: F.adaptive_max_pool2d(x, (2, 2)).amax((2, 3)),
        lambda x: F.max_pool2d(x, 8, return_indices=True)[0],
        lambda x: x.flatten(2).max(2)[0],
    ]
    for pool in pools:
        exact(Sized(pool))


# -- in place, names, endings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sub_ and div_", "mul_", "isub", "add_ of a view", "inplace=True"])
def test_a_model_may_change_its_input(name: str) -> None:
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "sub_ and div_": lambda x: x.sub_(0.4).div_(0.2),
        "mul_": lambda x: x.mul_(2.0),
        "isub": lambda x: x.__isub__(0.5),
        "add_ of a view": lambda x: x[:, :, 1:].add_(0.3),
        "inplace=True": lambda x: F.relu(x, inplace=True),
    }

    model, mine = Small(changes[name]), X.clone()
    graph = trace(model, mine)
    with torch.no_grad():
        assert relative(graph.network(mine), model(X.clone())) < 1e-12
        cut(graph, {axis.name: torch.arange(axis.size - 1) for axis in graph.free if axis.size > 1})(mine)
    assert torch.equal(mine, X)


@pytest.mark.parametrize("name", ["layer", "step", "nodes", "walk", "training_", "forward_", "tensor"])
def test_layers_may_have_any_name(name: str, tmp_path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.get_submodule(name)(x))

    source, data = randomised(Net()), (torch.rand(8, 3, 8, 8), torch.arange(8) % 4)
    component = by.disassemble(source, by.locate(source, data), task=[0, 1], budget=by.Budget(flops=0.7), heal="none")
    again = by.load(component.save(tmp_path / "c.safetensors"))
    with torch.no_grad():
        assert torch.equal(again(data[0]), component(data[0]))
        assert relative(component.fused()(data[0]), component(data[0])) < 1e-5


ENDS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "softmax": (lambda z: z.softmax(1), "softmax"),
    "log_softmax": (lambda z: F.log_softmax(z, dim=-1), "log_softmax"),
    "a layer": (nn.Softmax(dim=1), "softmax"),
    "sigmoid": (torch.sigmoid, "sigmoid"),
    "its logarithm": (lambda z: F.softmax(z, 1).log(), "softmax and log"),
    "none": (lambda z: z, ""),
    "a product": (lambda z: z * 1.0, ""),
}


@pytest.mark.parametrize("before", [same, sized])
@pytest.mark.parametrize("name", ENDS)
def test_logits_are_taken_before_a_final_softmax(name: str, before: Callable[[Tensor], Tensor]) -> None:
    end, ending = ENDS[name]
    model = Small(before, end)
    graph = trace(model, X)
    assert graph.ending == ending
    with torch.no_grad():
        assert relative(graph.network(X), model.logits(X)) < 1e-12
    data = X.repeat(4, 1, 1, 1), torch.arange(12) % 3
    relevance = by.locate(model, data)
    component = by.disassemble(model, relevance, task=[0, 1, 2], heal="none")
    assert component.manifest.located is not None
    assert component.manifest.located.ending == (ending or None)
    assert (f"before the source's {ending}" in str(component)) == bool(ending)


@pytest.mark.parametrize("name", ["cat([-z, z])", "[1 - p, p]"])
def test_two_classes_of_one_logit(name: str) -> None:
    ends: dict[str, Callable[[Tensor], Tensor]] = {
        "cat([-z, z])": lambda z: torch.cat([-z, z], 1),
        "[1 - p, p]": lambda z: torch.cat([1 - z.sigmoid(), z.sigmoid()], 1),
    }
    model, data = Small(end=ends[name], outputs=1).float(), (torch.rand(12, 3, 8, 8), torch.arange(12) % 2)
    relevance = by.locate(model, data)
    assert torch.equal(relevance.hard("fc")[0], relevance.hard("fc")[1])
    component = by.disassemble(model, relevance, task=[0, 1], budget=by.Budget(flops=1.0), heal="none")
    with torch.no_grad():
        right = model(data[0])
        right = right.softmax(1) if name == "cat([-z, z])" else right
    assert relative(component.predict_proba(data[0]), right.double()) < 1e-6


# -- guards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["the mean over the batch", "the first image", "softmax over the batch"])
def test_images_that_depend_on_each_other_are_refused(name: str) -> None:
    mixes: dict[str, Callable[[Tensor], Tensor]] = {
        "the mean over the batch": lambda y: y - y.mean(0, keepdim=True),
        "the first image": lambda y: y + y[:1],
        "softmax over the batch": lambda y: y.softmax(0),
    }
    with refused("trace-batch", "images of its batch"):
        trace(Middle(mixes[name]), X)


@pytest.mark.parametrize("middle", [lambda y: y + torch.zeros(2, 1, 1, 1), lambda y: y.view(2, 6, -1)])
def test_a_batch_written_as_a_number_is_refused(middle: Callable[[Tensor], Tensor]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(middle(self.a(x)).flatten(2).mean(2))

    with refused("trace-batch", "size of a batch"):
        trace(Net(), torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("rule", ["mean", "getitem", "view"])
def test_a_cut_that_is_wrong_is_never_made(rule: str, monkeypatch) -> None:
    """The control of the check after every cut: with one rule of surgery broken, it names the layer or fails before."""
    middles: dict[str, Callable[[Tensor], Any]] = {
        "mean": lambda y: y * y.mean(1, keepdim=True).sigmoid(),
        "getitem": lambda y: torch.cat([y[:, 3:], y[:, :3]], 1),
        "view": lambda y: y.view(-1, 6, 64),
    }
    model = Middle(middles[rule]).float()
    data = X.float().repeat(4, 1, 1, 1), torch.arange(12) % 3
    relevance = by.locate(model, data)
    options: dict[str, Any] = {"task": [0, 1, 2], "budget": by.Budget(flops=0.6), "select": "mda", "heal": "none"}
    by.disassemble(model, relevance, **options)
    broken = {**_steps._REWRITE}
    if rule == "getitem":
        broken[rule] = lambda plan, node: node
    else:
        del broken[rule]
    monkeypatch.setattr(_steps, "_REWRITE", broken)
    with refused("surgery-check-failed"):
        by.disassemble(model, relevance, **options)
