"""Wrong and odd files, yards, exports, pages, examples and sources."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.export._html import export_html
from brickyard.export._hub import from_pretrained, push_to_hub, save_pretrained
from brickyard.export._module import export_module
from brickyard.export._onnx import export_onnx, export_state_dict
from brickyard.inputs._datasets import load_data
from brickyard.recipes._reader import load_recipe
from brickyard.reports._page import report
from brickyard.sources._loading import load_source
from brickyard.testing import chain
from brickyard.yard._yard import Yard
from misuse.world import DATA, NAN, Case, World, X, answers, wrong

BAD_PATHS: list[tuple[str, Any, str, str]] = [
    ("None", None, "None", "NoneType"),
    ("a number", 5, "5", "int"),
    ("bytes", b"x.safetensors", "b'x.safetensors'", "bytes"),
    ("a zero byte", "a\0b", r"'a\x00b'", "null byte"),
    ("half a surrogate pair", "\ud800.safetensors", r"'\ud800.safetensors'", "surrogates"),
    ("5,000 letters", "a" * 5000, "'aaa", "too long"),
]
THINGS = {"None": "NoneType", "source": "Sequential", "relevance": "Relevance", "assembly": "Assembly"}


def thing(w: World, name: str) -> Any:
    return None if name == "None" else getattr(w, name)


def load(w: World, path: Any) -> Any:
    return by.load(path)


def save(w: World, kind: str, path: Any) -> Path:
    return getattr(w, kind).save(path)


def saved(w: World, *place: str) -> Path:
    return w.component.save(w.folder.joinpath(*place))


def saved_nan(w: World) -> Path:
    return with_nan(w.component).save(w.folder / "nan.safetensors")


def saved_meta(w: World) -> Path:
    return copy.deepcopy(w.component).to("meta").save(w.folder / "meta.safetensors")


def with_nan(component: by.Component) -> by.Component:
    broken = copy.deepcopy(component)
    next(iter(broken.parameters())).data.view(-1)[0] = NAN
    return broken


SAVED = [
    *[Case(f"load {name}", partial(load, path=path), "file-path-invalid", *words) for name, path, *words in BAD_PATHS],
    *[
        Case(f"save {kind} to {name}", partial(save, kind=kind, path=path), "file-path-invalid", *words)
        for kind in ("component", "assembly", "relevance")
        for name, path, *words in BAD_PATHS
    ],
    Case("load a folder", lambda w: by.load(w.folder), "file-unreadable", "misuse"),
    Case("load a missing file", lambda w: by.load(w.folder / "no.safetensors"), "file-missing", "no.safetensors"),
    Case("load a text", lambda w: by.load(w.folder / "text.safetensors"), "file-not-safetensors", "text.safetensors"),
    Case("load by a text", lambda w: by.load(str(w.folder / "component.safetensors"))(X), answers),
    Case("save to a folder", lambda w: saved(w), "file-exists", "misuse", "overwrite=True"),
    Case("save where there is no folder", lambda w: saved(w, "no", "x.pt"), "file-path-invalid", "no/x.pt"),
    Case("save below a file", lambda w: saved(w, "text.safetensors", "x"), "file-path-invalid", "text.safetensors/x"),
    Case("save over a file", lambda w: saved(w, "component.safetensors"), "file-exists", "component.safetensors"),
    Case("save from the meta device", saved_meta, "file-meta-device", "'conv1.weight'"),
    Case("save NaN", saved_nan, "file-not-finite", "'network.conv1.weight'"),
]


def added(w: World, name: str) -> Any:
    return w.yard().add(b"x" if name == "bytes" else thing(w, name))


def named(w: World, name: Any) -> Any:
    return w.yard().add(w.other, name)


def search(w: World, **query: Any) -> Any:
    return w.yard().search(**query)


def choose(w: World, classes: Any = ("1",), **options: Any) -> Any:
    return w.yard().choose(classes, **options)


ADDED = {**THINGS, "bytes": "bytes"}
YARDS = [
    Case("a yard at None", lambda w: Yard(None), "file-path-invalid", "NoneType"),
    Case("a yard that is missing", lambda w: Yard(w.folder / "no"), "file-missing", "misuse", "create=True"),
    Case("a yard that is a file", lambda w: Yard(w.folder / "text.safetensors"), "file-missing", "text.safetensors"),
    *[Case(f"add {name}", partial(added, name=name), "option-wrong-object", kind) for name, kind in ADDED.items()],
    *wrong("yard.add", named, "name", "file-path-invalid", 5, "", "a/b", "../x", ".hidden", "\ud800"),
    Case("yard.entry(near miss)", lambda w: w.yard().entry("smal"), "file-unknown-component", "'smal'", "'small'"),
    Case("yard.load(None)", lambda w: w.yard().load(None), "file-unknown-component", "None", "1"),
    Case("yard.remove(unknown)", lambda w: w.yard().remove("zebra"), "file-unknown-component", "'zebra'", "1"),
    *wrong("yard.search", search, "classes", "option-type", "1", 5),
    *wrong("yard.search", search, "min_accuracy", "option-range", 2, "x"),
    *wrong("yard.search", search, "max_parameters", "option-range", "x"),
    *wrong("yard.search", search, "max_flops", "option-range", -1),
    *wrong("yard.search", search, "text", "option-type", 5),
    *wrong("yard.search", search, "source", "option-type", 5),
    Case("yard.choose(nothing)", lambda w: choose(w, []), "task-empty", "class"),
    Case("yard.choose(unknown)", lambda w: choose(w, ["zz"]), "task-not-in-yard", "'zz'"),
    Case("yard.choose(one twice)", lambda w: choose(w, ["1", "1"]), "task-duplicate-class", "'1'"),
    *wrong("yard.choose", choose, "classes", "option-type", "1", None),
    Case("yard.choose(a number)", lambda w: choose(w, [5]), "option-type", "5"),
    *wrong("yard.choose", choose, "max_parameters", "option-range", 0),
]


def exported(w: World, call: Any, name: str) -> Any:
    return call(thing(w, name), w.folder / "never")


def to_none(w: World, call: Any) -> Any:
    return call(w.component, None)


def revised(w: World) -> Any:
    return from_pretrained(w.folder, revision="main")


def page(w: World) -> str:
    return report([w.component], data=[DATA], sources=[w.model], including_calibration=True)


def shared_page(w: World) -> str:
    return report([w.component], data=[DATA], sources=[w.source], including_calibration=True)


EXPORTS = (export_html, export_module, export_onnx, export_state_dict, save_pretrained)
OTHERS = [
    *[
        Case(f"{call.__name__}({name})", partial(exported, call=call, name=name), "option-wrong-object", THINGS[name])
        for call in EXPORTS
        for name in ("None", "source", "relevance")
    ],
    *[Case(f"{c.__name__} to None", partial(to_none, call=c), "file-path-invalid", "NoneType") for c in EXPORTS],
    Case("push_to_hub(None)", lambda w: push_to_hub(None, "someone/pets"), "option-wrong-object", "NoneType"),
    Case("from_pretrained(None)", lambda w: from_pretrained(None), "file-path-invalid", "NoneType"),
    Case("from_pretrained(empty)", lambda w: from_pretrained(w.folder), "file-missing", "brickyard.safetensors"),
    Case("a folder's revision", revised, "option-without-effect", "revision='main'", "misuse"),
    Case("report about nothing", lambda w: report([]), "option-type", "components"),
    Case("report about a component alone", lambda w: report(w.component), "option-type", "Component"),
    Case("report about a source", lambda w: report([w.source]), "option-wrong-object", "Sequential"),
    Case("report, too many names", lambda w: report([w.component], names=["a", "b"]), "option-count", "2 names", "1"),
    Case("report, source a number", lambda w: report([w.component], sources=[5]), "trace-not-module", "int"),
    Case("report, wrapped source", page, shared_page, model=lambda: nn.DataParallel(chain())),
    Case("trace with None", lambda w: trace(w.source, None), "trace-example", "NoneType"),
    Case("trace with an array", lambda w: trace(w.source, X.numpy()), "trace-example", "ndarray"),
    Case("trace with whole numbers", lambda w: trace(w.source, X.long()), "trace-example", "int64"),
    Case("trace with no image", lambda w: trace(w.source, X[:0]), "trace-example", "(0, 3, 8, 8)"),
    Case("trace with NaN", lambda w: trace(w.source, X * NAN), "trace-not-finite", "Sequential", "NaN"),
    Case("trace with meta images", lambda w: trace(w.source, X.to("meta")), "trace-run-failed", "Sequential", "meta"),
    Case("load_source(None)", lambda w: load_source(None), "option-type", "None", "NoneType"),
    Case("load_source(bytes)", lambda w: load_source(b"zoo:cnn"), "option-type", "b'zoo:cnn'", "bytes"),
    Case("load_source(unknown)", lambda w: load_source("nope"), "option-source-unknown", "'nope'", "zoo:NAME"),
    Case("load_data(None)", lambda w: load_data(None), "data-missing", "'None'", "'digits'"),
    Case("load_recipe(None)", lambda w: load_recipe(None), "file-path-invalid", "NoneType"),
    Case("load_recipe(a folder)", lambda w: load_recipe(w.folder), "file-unreadable", "misuse"),
]

CASES = [*SAVED, *YARDS, *OTHERS]
