"""Wrong and odd commands. In their arguments W/ is a folder that all share, and F/ the row's own."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import brickyard as by
from brickyard.inputs._datasets import load_data
from misuse.rows import NAMES, RGB, Place, Printed, Shell, Write, nothing, png, put, shell

CUT = "disassemble W/s.safetensors --relevance W/r.safetensors --heal none -o F/x.safetensors"
TO = "-o F/x.safetensors"
LOCATE = f"locate W/s.safetensors --data W/train {TO}"
INTO = "locate W/s.safetensors --data W/train -o"
TRAIN = f"train lenet5 --data digits --epochs 1 {TO}"
TUNE = f"finetune W/a.safetensors --data digits {TO}"
JOIN = f"assemble W/a.safetensors {TO}"


def bad(command: str, *quoted: str, also: tuple[str, ...] = (), code: int = 1, write: Write = nothing) -> Shell:
    return Shell((*command.split(), *also), quoted, code, write=write)


def usage(command: str, *quoted: str) -> Shell:
    """The command line itself is wrong."""
    return bad(command, *quoted, code=2)


def task(given: str, *quoted: str, more: str = "") -> Shell:
    return bad(f"{CUT} {more}", *quoted, also=("--task", given))


def located(option: str, value: str, *quoted: str) -> Shell:
    return bad(LOCATE, *quoted, also=(option, value))


def environment(command: str, *quoted: str, **env: str) -> Shell:
    return Shell(command.split(), quoted, env=env)


MISSING = {
    **dict.fromkeys(("train",), "NETWORK"),
    **dict.fromkeys(("locate", "disassemble", "routes"), "SOURCE"),
    **dict.fromkeys(("assemble", "report"), "FILES"),
    **dict.fromkeys(("evaluate", "predict", "export", "push", "distil"), "FILE"),
    "show": "ITEM",
    "build": "RECIPE",
    "yard add": "FILES",
    "yard show": "NAME",
    "yard rm": "NAMES",
}


def no_signs(place: Place, result: Any) -> None:
    """Plain text: no colour and no line that a width has broken."""
    assert "\x1b" not in result.stdout
    assert result.stdout == shell(place, "show", "W/a.safetensors").stdout


def six_digits(place: Place, result: Any) -> None:
    """The same numbers as the library's, from one object on one line."""
    assert len(result.stdout.splitlines()) == 1
    found = json.loads(result.stdout)["predictions"][0]["classes"]
    model = by.load(place.work / "names.safetensors")
    wanted = model.predict_proba(place.work / "photo.png")[0]
    order = wanted.argsort(descending=True).tolist()
    assert [item["name"] for item in found] == [NAMES[k] for k in order]
    assert [item["probability"] for item in found] == pytest.approx(wanted[order].tolist(), abs=1e-6)


def escaped(place: Place, result: Any) -> None:
    for name in NAMES:
        assert (
            name.encode("ascii", "backslashreplace").decode().replace("\x1b", "\\x1b").replace("\n", "\\n")
            in result.stdout
        )
    assert "\x1b" not in result.stdout


def quiet(place: Place, result: Any) -> None:
    assert "犬 ☃\\x1b[2J" in result.stdout
    assert "\x1b" not in result.stdout


def all_scores(place: Place, result: Any) -> None:
    """Rows of 0, 1 and 2 only: the others are left out, and the note about them is not in the JSON."""
    assert len(result.stdout.splitlines()) == 1
    rows = json.loads(result.stdout)["rows"]
    test = load_data("digits", split="test").of_classes([0, 2])
    assert rows[-1]["images"] == len(test)
    model = by.load(place.work / "a.safetensors")
    right = [
        a == test.classes[k]
        for a, k in zip(model.predict(test.images, strangers="answer"), test.labels.tolist(), strict=True)
    ]
    assert rows[-1]["accuracy"] == pytest.approx(100 * sum(right) / len(right))


def one_part(place: Place, result: Any) -> None:
    """The page of an assembly of one part has the accuracy that `evaluate` finds."""
    score = ("evaluate", "W/one.safetensors", "--data", "W/train", "--including-calibration", "--no-latency", "--json")
    row = json.loads(shell(place, *score).stdout)["rows"][-1]
    page = (place.folder / "page.html").read_text(encoding="utf-8")
    assert f"<td><bdi>{row['accuracy']:.1f}±{row['error']:.1f}</bdi></td>" in page


def odd_path(place: Place, result: Any) -> None:
    answer = json.loads(result.stdout)["predictions"][0]
    assert answer["image"] == f"{place.folder}/\udcff.png"
    wanted = by.load(place.work / "a.safetensors").predict(place.folder / "\udcff.png", strangers="answer")
    assert [answer["classes"][0]["name"]] == wanted


def same_as_json(place: Place, result: Any) -> None:
    assert json.loads(result.stdout)["classes"] == ["0", "2"]
    assert by.load(place.folder / "x.safetensors").classes == ("0", "2")


PREDICT = "predict W/names.safetensors W/photo.png"
GIANT = put("x.png", png(np.zeros((1, 9)), size=(30_000, 30_000)))
ROUTES = "routes W/s.safetensors --relevance W/r.safetensors --classes 0 -o F/x.pdf"
DISTIL = f"distil W/a.safetensors {TO}"
ALONE: dict[str, str | None] = {"RANK": "3", "WORLD_SIZE": None}
NARROW: dict[str, str | None] = {"COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb"}

COMMANDS: dict[str, Any] = {
    **{f"{name}: no arguments": usage(name, f"'{what}'") for name, what in MISSING.items()},
    **{
        f"{name}: an option that is none": usage(f"{name} --colour", "--colour")
        for name in ("demo", "workbench", *MISSING, "yard list", "yard search", "yard verify")
    },
    "a command that is none": usage("assembel", "'assembel'"),
    # tasks and budgets
    "a task of an unknown class": task("cat", "'cat'", "0, 1, 2"),
    "an empty task": task("", "0, 1, 2"),
    "a task of commas": task(" , ,", "0, 1, 2"),
    "a class twice in a task": task("0,2,0", "'0'"),
    "a class twice in a task, by a range": task("0-2,1", "'1'"),
    "a range that runs backwards": task("2-0", "'2-0'", "0-2"),
    "a range beyond the classes": task("1-7", "'1-7'", "0 to 2"),
    "a negative class": task("-1", "'-1'", "0, 1, 2"),
    "a task that is no UTF-8": task("\udcff", "'\\udcff'", "0, 1, 2"),
    **{
        f"a budget of {share}": task("0", "flops", str(float(share)), more=f"--flops {share}")
        for share in ("0", "200", "-1", "nan", "inf")
    },
    "a budget of abc": usage(f"{CUT} --task 0 --flops abc", "'--flops'"),
    "two budgets": task("0", "flops=", "parameters=", "2", more="--flops 0.5 --parameters 0.5"),
    "a budget too small for any channel": task("0", "1e-09", more="--flops 1e-9"),
    "multiples without a budget": task("0", "--round-to 8", "--flops", more="--round-to 8"),
    "a threshold of 7": task("0", "alpha", "7", more="--alpha 7"),
    "no relevances and no data": bad("disassemble W/s.safetensors --task 0 -o F/x.safetensors", "--relevance"),
    "a repair without images": bad(CUT.replace("--heal none", "--task 0"), "'refit'"),
    "a repair that is none": bad(f"{CUT} --task 0 --heal glue", "heal", "'glue'", "'refit'"),
    # numbers and names
    "a seed beyond 64 bits": usage(f"{LOCATE} --seed {2**70}", "'--seed'"),
    "a threshold that is no number": located("--alpha", "nan", "alpha", "nan"),
    "a size that is a word": located("--size", "big", "--size", "'big'", "32x48"),
    "a size with a raised two": located("--size", "3²", "--size", "'3²'", "32x48"),
    "a size of nothing": located("--size", "0", "(0, 0)", "size.0"),
    "means that are words": located("--mean", "a,b", "--mean", "'a,b'"),
    "a mean without a deviation": located("--mean", "0.5", "mean", "std"),
    "too few class names": located("--class-names", "a,b", "lenet5", "3 outputs", "2 class names"),
    "a class name twice": located("--class-names", "a,b,a", "'a'"),
    "a class name that is empty": located("--class-names", "a,,b", "''"),
    "a class name that is no UTF-8": located("--class-names", "a,b,\udcff", "'\\udcff'", "UTF-8"),
    "a learning rate that is no number": bad(f"{TRAIN} --lr nan", "lr", "nan"),
    "a network with its own count of classes": bad(TRAIN.replace("lenet5", "lenet5?classes=7"), "classes=7", "10"),
    "classes that the data lack": bad(f"{TRAIN} --classes cat", "'cat'", "0, 1, 2"),
    # files
    "a file that is not there": bad("show F/no.safetensors", "no.safetensors"),
    "a file of something else": bad("show F/x.safetensors", "x.safetensors", write=put("x.safetensors", b"nothing")),
    "relevances for a component": bad("evaluate W/r.safetensors --data digits", "r.safetensors"),
    "images that are not there": bad("evaluate W/a.safetensors --data F/no", "/no"),
    "a folder for a file": bad("show W/folder.safetensors", "folder.safetensors"),
    "a file for a folder of images": bad("evaluate W/a.safetensors --data W/photo.png", "photo.png"),
    "a file for a yard": bad("yard list --yard W/photo.png", "photo.png"),
    "a yard that is not there": bad("yard verify --yard F/no", "/no"),
    "a recipe that is a picture": bad("build W/photo.png", "photo.png", "UTF-8"),
    "a recipe that is not there": bad("build F/no.yaml", "no.yaml"),
    "a source for a component": bad("export W/s.safetensors -o F/x.onnx", "s.safetensors", "--weights"),
    "an assembly for a component": bad("yard add W/one.safetensors --yard W/yard", "one.safetensors", "assembly"),
    "a class to leave out that is none": bad(f"{JOIN} --without cat", "'cat'", "0, 2"),
    "two teachers": bad(f"{TUNE} --teacher W/a.safetensors --source x", "--teacher", "--source"),
    "features of no source": bad(f"{TUNE} --features 1", "--features 1", "--source"),
    "photographs that are not there": bad(f"{DISTIL} --images F/no --like zoo:cnn", "/no"),
    "a student that is none": bad(f"{DISTIL} --images digits --like zoo:cnm", "'cnm'", "cnn"),
    "an optimiser that is none": bad(f"{TUNE} --optimizer lion", "optimizer", "'lion'", "'adamw'"),
    "a picture for a component": bad("predict W/photo.png W/a.safetensors", "photo.png"),
    "a picture that is not there": bad("predict W/a.safetensors F/no.png", "no.png"),
    "a picture that is text": bad("predict W/a.safetensors F/x.jpg", "x.jpg", write=put("x.jpg", b"text")),
    "a giant picture": bad("predict W/a.safetensors F/x.png", "x.png", write=GIANT),
    "a name longer than names may be, of a picture": bad(f"predict W/a.safetensors {'x' * 300}", "xxx"),
    "a name longer than names may be, of an output": bad(f"{INTO} {'x' * 300}", "xxx"),
    "an output that exists": bad(f"{INTO} W/a.safetensors", "a.safetensors", "--force"),
    "an output that is a folder": bad(f"{INTO} W/train --force", "train"),
    "an output in a folder that is not there": bad(f"{INTO} F/no/x", "no/x"),
    "an output that is the source": bad(f"{INTO} W/s.safetensors --force", "s.safetensors"),
    "an output that is a part": bad(f"{JOIN} -o W/train/../a.safetensors --force", "train/../a.safetensors"),
    "a table that is the component": bad(
        "evaluate W/a.safetensors --data W/train --csv W/a.safetensors --force", "a.safetensors"
    ),
    "a format that is none": bad("export W/a.safetensors -o F/x.pt", "x.pt", ".onnx"),
    "a picture format that is none": bad(ROUTES, "x.pdf", ".png", ".svg"),
    # options that do not go together
    "images of classes that the source does not know": bad(
        f"locate W/s.safetensors --data digits?classes=7-9 {TO}", "digits", "0, 1, 2"
    ),
    "few-shot images that are missing": bad(f"{JOIN} --shots 3", "--shots 3", "--images"),
    "a source that no form needs": bad(f"{JOIN} --source W/s.safetensors", "--source", "--form union"),
    "weights of no source": bad(f"{JOIN} --weights W/s.safetensors", "--weights", "--source"),
    "a size for a component": bad("show W/a.safetensors --size 9", "--size", "a.safetensors"),
    "a part twice": bad(f"{JOIN} W/a.safetensors", "'0'", "part 0 (lenet5 (s))", "part 1", "on_duplicate"),
    "a name in a yard that leaves it": bad("yard add W/a.safetensors --yard W/yard --name ../x", "'../x'"),
    "a repository that is none": bad("push W/r.safetensors a/b", "r.safetensors", "relevance"),
    # the environment
    **{
        f"WORLD_SIZE={value!r}": environment("show W/a.safetensors", "WORLD_SIZE", repr(value), WORLD_SIZE=value)
        for value in ("abc", "-3", "1e3", "", "²")
    },
    **{
        f"RANK={rank!r} of two": environment(LOCATE, "RANK", repr(rank), "0 to 1", WORLD_SIZE="2", RANK=rank)
        for rank in ("abc", "7", "-1")
    },
    "a port that is none": environment(
        LOCATE, "MASTER_PORT", "'x'", "65535", WORLD_SIZE="2", RANK="0", MASTER_PORT="x"
    ),
    "RANK alone silences nothing": Printed(f"{CUT} --task 0,2 --json".split(), same_as_json, env=ALONE),
    "a narrow terminal without colour": Printed(("show", "W/a.safetensors"), no_signs, env=NARROW),
    "JSON is one object, whatever the names": Printed(f"{PREDICT} --json".split(), six_digits),
    "JSON is ASCII where nothing else can be printed": Printed(
        f"{PREDICT} --json".split(), six_digits, charset="ascii"
    ),
    "names that the terminal cannot write": Printed(PREDICT.split(), escaped, charset="ascii"),
    "names that a terminal would obey": Printed(PREDICT.split(), quiet),
    "a picture whose name is no UTF-8": Printed(
        ("predict", "W/a.safetensors", "F/\udcff.png", "--json"), odd_path, write=put("\udcff.png", png(RGB))
    ),
    "a page at a port that is none": usage("workbench --yard W/yard --port 99999", "'--port'"),
    "a page at an address that is none": bad("workbench --yard W/yard --host 999.1.1.1", "--host 999.1.1.1"),
    "a demo in a file": bad("demo -o W/photo.png", "photo.png", "-o"),
    "JSON is one object, beside a note": Printed(
        ["evaluate", "W/a.safetensors", "--data", "digits", "--no-latency", "--json"], all_scores, note="left out"
    ),
    "a report of an assembly of one part": Printed(
        ["report", "W/one.safetensors", "--data", "W/train", "--including-calibration", "-o", "F/page.html"], one_part
    ),
}
