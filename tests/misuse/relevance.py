"""Wrong and odd uses of `locate`: its options, its data, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import brickyard as by
from brickyard.reports._routes import routes
from brickyard.testing import Residual
from misuse.world import DATA, LONG, NAN, Case, Labelled, World, X, Y, plain_relevance, wrong

ODD_NAMES = ["\u00e9", "\u65e5\u672c", "\U0001f9f1", "two\nlines"]


def names(w: World, given: Any) -> tuple[str, ...]:
    return w.locate(classes=given).classes


def reread(w: World) -> tuple[str, ...]:
    component = w.cut(relevance=w.locate(classes=ODD_NAMES), task=ODD_NAMES)
    return by.load(component.save(w.folder / "odd.safetensors")).classes


def normalised(w: World, **how: Any) -> by.Relevance:
    return w.locate(preprocessing=by.Preprocessing(**how))


LOCATE = [
    *wrong("locate", World.locate, "choose", "option-choice", "best", None, 3, ["all"]),
    *wrong("locate", World.locate, "per_class", "option-range", 0, -1, 1.5, "2", None, True),
    *wrong("locate", World.locate, "batch_size", "option-range", 0, -1, 2.5, "8", None),
    *wrong("locate", World.locate, "seed", "option-range", 1.5, "x", None, 2**80),
    *wrong("locate", World.locate, "thresholds", "option-type", 0.3, {"alpha": 0.1}),
    *wrong("locate", World.locate, "preprocessing", "option-type", "x", {"size": 4}),
    *wrong("locate", World.locate, "keep_sums", "option-type", "no", 1),
    *wrong("locate", World.locate, "name", "option-syntax", 5, "", LONG, "\ud800"),
    Case("locate(choose=near miss)", lambda w: w.locate(choose="confidnet"), "option-choice", "choose", "'confident'"),
    Case("locate(per_class=numpy)", lambda w: w.locate(per_class=np.int64(2)), plain_relevance),
    Case("locate(batch_size beyond the images)", lambda w: w.locate(batch_size=10**12), plain_relevance),
    Case("locate(seed=-1)", lambda w: w.locate(seed=-1), plain_relevance),
    Case("locate(unknown=1)", lambda w: w.locate(unknown=1), TypeError, "locate()", "unknown"),
    Case("locate(resume=5)", lambda w: w.locate(resume=5), "file-path-invalid", "5", "int"),
    Case("locate(resume=bytes)", lambda w: w.locate(resume=b"x"), "file-path-invalid", "b'x'", "bytes"),
    Case("locate(classes a text)", lambda w: w.locate(classes="abcd"), "task-type", "'abcd'", "str", "4"),
    Case("locate(classes a number)", lambda w: w.locate(classes=5), "task-type", "5", "int", "4"),
    Case("locate(classes a set)", lambda w: w.locate(classes=set("abcd")), "task-type", "set", "4"),
    Case("locate(too few names)", lambda w: w.locate(classes=["a"]), "task-class-count", "1", "4"),
    Case("locate(too many names)", lambda w: w.locate(classes=list("abcde")), "task-class-count", "5", "4"),
    Case("locate(no names)", lambda w: w.locate(classes=[]), "task-class-count", "0", "4"),
    Case("locate(a name twice)", lambda w: w.locate(classes=list("aabc")), "task-duplicate-class", "'a'"),
    Case("locate(an empty name)", lambda w: w.locate(classes=["", "b", "c", "d"]), "task-class-name", "class 0", "''"),
    Case("locate(a long name)", lambda w: w.locate(classes=["a", LONG, "c", "d"]), "task-class-name", "1", "10,000"),
    Case("locate(half a pair)", lambda w: names(w, [*"ab", "\ud800", "d"]), "task-class-name", "2", r"'\ud800'"),
    Case("locate(a name None)", lambda w: w.locate(classes=[*"abc", None]), "task-class-name", "class 3", "None"),
    Case("locate(names as numbers)", lambda w: names(w, [7, 8, 9, 10]), ("7", "8", "9", "10")),
    Case("locate(names as an array)", lambda w: names(w, np.array(list("abcd"))), tuple("abcd")),
    Case("locate(names in other scripts)", lambda w: names(w, ODD_NAMES), tuple(ODD_NAMES)),
    Case("names in other scripts, written and read", reread, tuple(ODD_NAMES)),
    Case("for other channels", lambda w: normalised(w, mean=(0.5,) * 2, std=(1,) * 2), "data-wrong-size", "3", "2"),
    Case("for too small a size", lambda w: normalised(w, size=(1, 1)), "trace-run-failed", "(2, 3, 1, 1)"),
]


class Items(Dataset[Any]):
    """A data set that gives what a function says."""

    def __init__(self, item: Callable[[int], Any], count: int = 12) -> None:
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(X[i], int(Y[i])) for i in range(12)])


def broken(index: int) -> Any:
    raise OSError("the disk is gone")


def failing_batches() -> Iterator[Any]:
    yield DATA
    raise RuntimeError("the network is gone")


def pair(index: int) -> Any:
    return X[index], index % 4


def uneven(index: int) -> Any:
    return X[index, :, : 8 - index % 2], index % 4


def loader(*tensors: Any, **how: Any) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), batch_size=5, **how)


def data(name: str, make: Callable[[], Any], expect: Any = plain_relevance, *quoted: str) -> Case:
    return Case(f"data: {name}", lambda w: w.locate(data=make()), expect, *quoted)


DATA_CASES = [
    data("None", lambda: None, "data-type", "NoneType"),
    data("a text", lambda: "digits", "data-type", "str"),
    data("a dict", lambda: {"images": X}, "data-type", "dict"),
    data("images alone", lambda: X, "data-no-labels", "labels"),
    data("labels None", lambda: (X, None), "data-no-labels", "labels"),
    data("three tensors", lambda: (X, Y, Y), "data-type", "Tensor"),
    data("labels as fractions", lambda: (X, Y.float()), "data-label-mismatch", "12", "float32"),
    data("too few labels", lambda: (X, Y[:3]), "data-label-mismatch", "12", "(3,)"),
    data("labels as a column", lambda: (X, Y[:, None]), "data-label-mismatch", "12", "(12, 1)"),
    data("labels beyond the classes", lambda: (X, Y + 1), "data-label-out-of-range", "1 to 4", "0 to 3"),
    data("labels below 0", lambda: (X, Y - 1), "data-label-out-of-range", "-1 to 2", "0 to 3"),
    data("labels as texts", lambda: (X, np.array(list("abcd" * 3))), "data-type", "ndarray"),
    data("a class without an image", lambda: (X, Y * 0), "data-class-without-images", "'1'", "12"),
    data("whole numbers as images", lambda: ((X * 255).long(), Y), "data-type", "int64", "uint8"),
    data("bytes as images", lambda: ((X * 255).round().byte(), Y)),
    data("doubles as images", lambda: (X.double(), Y)),
    data("labels as a list", lambda: (X, Y.tolist())),
    data("labels as a list, images as an array", lambda: [X.numpy(), Y.tolist()]),
    data("labels as a list of numpy's numbers", lambda: (X, list(Y.numpy()))),
    data("labels as a list of tensors", lambda: (X, list(Y))),
    data("labels as a list, too short", lambda: (X, Y.tolist()[:3]), "data-label-mismatch", "12", "(3,)"),
    data("labels as a list of fractions", lambda: (X, [0.5] * 12), "data-label-mismatch", "12", "float32"),
    data("labels as a list of texts", lambda: (X, list("abcd" * 3)), "data-type", "list", "index"),
    data("labels as an empty list", lambda: (X, []), "data-label-mismatch", "12", "(0,)"),
    data("arrays", lambda: (X.numpy(), Y.numpy())),
    data("images of a tensor subclass", lambda: (X.as_subclass(Labelled), Y)),
    data("images that want a gradient", lambda: (X.clone().requires_grad_(), Y)),
    data("NaN", lambda: (X * NAN, Y), "data-not-finite", "NaN"),
    data("infinity", lambda: (X / 0, Y), "data-not-finite", "infinity"),
    data("too small", lambda: (X[..., :1, :1], Y), "trace-run-failed", "Sequential", "(2, 3, 1, 1)"),
    data("one channel of three", lambda: (X[:, :1], Y), "trace-run-failed", "Sequential", "(2, 1, 8, 8)"),
    data("one image without a batch", lambda: (X[0], Y[:3]), "trace-run-failed", "Sequential", "(2, 8, 8)"),
    data("five dimensions", lambda: (X[None], Y[:1]), "trace-run-failed", "Sequential", "(2, 12, 3, 8, 8)"),
    data("six dimensions", lambda: (X[None, None], Y[:1]), "data-shape", "(1, 1, 12, 3, 8, 8)"),
    data("no image", lambda: (X[:0], Y[:0]), "data-shape", "(0, 3, 8, 8)"),
    data("on the meta device", lambda: (X.to("meta"), Y), "data-type", "meta"),
    data("sparse", lambda: (X.to_sparse(), Y), "data-type", "torch.sparse_coo"),
    data("a generator of batches", lambda: iter([(X[:6], Y[:6]), (X[6:], Y[6:])])),
    data("a list of single images", lambda: [(X[i], int(Y[i])) for i in range(12)]),
    data("an empty generator", lambda: iter(()), "data-no-images", "locate"),
    data("a generator of numbers", lambda: iter((1, 2)), "data-type", "int"),
    data("a generator that fails", failing_batches, "data-not-batchable", "RuntimeError: the network is gone"),
    data("a loader of batches", lambda: loader(X, Y)),
    data("a loader that shuffles", lambda: loader(X, Y, shuffle=True)),
    data("a loader of a stream", lambda: DataLoader(Stream(), batch_size=5)),
    data("a loader of images alone", lambda: loader(X), "data-type", "list"),
    data("a loader of three", lambda: loader(X, Y, Y), "data-type", "list"),
    data("a loader of texts", lambda: DataLoader(["a", "b"]), "data-type", "str"),
    data("a data set that fails", lambda: Items(broken), "data-not-batchable", "OSError: the disk is gone"),
    data("a data set of None", partial(Items, lambda i: None), "data-not-batchable", "NoneType"),
    data("a data set of dicts", partial(Items, lambda i: {"x": X[i]}), "data-type", "dict"),
    data("a data set of mixed sizes", lambda: Items(uneven), "data-not-batchable", "[3, 8, 8]", "[3, 7, 8]"),
    data("a data set that claims too many", lambda: Items(pair, 99), "data-not-batchable", "IndexError"),
    data("a data set with labels None", partial(Items, lambda i: (X[i], None)), "data-not-batchable", "NoneType"),
    data("a data set of pairs", lambda: Items(pair)),
]


def asked(w: World, method: str, place: str | None) -> Any:
    return getattr(w.relevance, method)(place)


def other_thresholds(w: World) -> by.Relevance:
    return w.relevance.with_thresholds(by.Thresholds(alpha=0.1), None)


def thresholds_number(w: World) -> by.Relevance:
    return w.relevance.with_thresholds(0.3, w.relevance.graph(w.source))


RESULT = [
    *[
        Case(f"relevance.{method}({place!r})", partial(asked, method=method, place=place), "option-not-located", *words)
        for method in ("hard", "sum", "contribution", "axis", "relevant")
        for place in ("conv9", None)
        for words in [(repr(place), "conv1, conv2, linear")]
    ],
    Case("no sums", lambda w: w.locate(keep_sums=False).sum("conv1"), "option-sums-not-kept", "'conv1'", "keep_sums"),
    Case("relevance.with_thresholds(0.3)", thresholds_number, "option-type", "thresholds", "0.3", "float"),
    Case("relevance.with_thresholds(..., None)", other_thresholds, "option-type", "graph"),
    Case("relevance.graph(None)", lambda w: w.relevance.graph(None), "trace-not-module", "torch.nn.Module", "NoneType"),
    Case("another graph", lambda w: w.relevance.graph(w.model), "data-wrong-source", "'Sequential'", model=Residual),
    Case("Relevance()", lambda w: by.Relevance(), TypeError, "__init__", "'classes'"),
    Case("routes of nothing", lambda w: routes(w.relevance, []), "task-empty", "0, 1, 2, 3"),
    Case("routes of an unknown class", lambda w: routes(w.relevance, ["zz"]), "task-unknown-class", "'zz'", "0, 1"),
    Case("routes of a component", lambda w: routes(w.component, ["1"]), "option-wrong-object", "Component"),
    *wrong("routes", lambda w, **o: routes(w.relevance, ["1"], **o), "most_links", "option-range", -1),
]

CASES = [*LOCATE, *DATA_CASES, *RESULT]
