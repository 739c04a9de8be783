"""The command line, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.inputs._datasets import load_data
from brickyard.sources._loading import load_source
from shell import COMMANDS, run, save_folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with two sources, their relevances, two components and an assembly."""
    folder = tmp_path_factory.mktemp("work")
    for name, classes, network in (("a", "0-2", "lenet5?width=0.5"), ("b", "7-9", "cnn?width=0.25")):
        run(
            *("train", network, "--data", "digits", "--classes", classes, "--epochs", 4, "--batch-size", 32),
            *("--lr", 0.05, "--size", 16, "-o", folder / f"{name}.source.safetensors"),
        )
    for name, task in (("a", "0,2"), ("b", "9,7")):
        source = folder / f"{name}.source.safetensors"
        data = f"digits?classes={'0-2' if name == 'a' else '7-9'}"
        images = load_data(data).renumbered(list(range(3)) if name == "a" else [7, 8, 9])
        save_folder(images, folder / f"{name}-train")
        run("locate", source, "--data", folder / f"{name}-train", "-o", folder / f"{name}.relevance.safetensors")
        run(
            *("disassemble", source, "--relevance", folder / f"{name}.relevance.safetensors", "--task", task),
            *("--data", folder / f"{name}-train", "--flops", 0.6, "-o", folder / f"{name}.safetensors"),
        )
    run("assemble", folder / "a.safetensors", folder / "b.safetensors", "-o", folder / "ab.safetensors")
    return folder


SLOW = {"torch", "numpy", "PIL", "sklearn", "scipy", "yaml", "safetensors"}


def imported(*words: str) -> set[str]:
    """The packages that a Python imports, by its own account."""
    done = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}


def test_help_imports_nothing_that_is_slow() -> None:
    assert imported("-m", "brickyard", "--help") & SLOW == set()
    code = (
        "from typer.testing import CliRunner\nfrom brickyard.cli._app import app\n"
        f"for command in {COMMANDS!r}:\n"
        "    assert CliRunner().invoke(app, [command, '--help']).exit_code == 0"
    )
    assert imported("-c", code) & SLOW == set()
    assert imported("-c", "import brickyard") & {*SLOW, "typer"} == set()
    assert imported("-c", "import brickyard; brickyard.locate") & SLOW  # the control


def test_finetune_and_distil(work, tmp_path) -> None:
    a, both = work / "a.safetensors", work / "ab.safetensors"
    data = ("--data", work / "a-train", "--data", work / "b-train")
    out = tmp_path / "tuned.safetensors"
    found = json.loads(run("finetune", both, *data, "--epochs", 2, "-o", out, "--json").stdout)
    assert by.load(out).manifest.tuned.model_dump(mode="json") == {k: v for k, v in found.items() if k != "output"}
    assert found["epochs"] == 2
    taught = tmp_path / "taught.safetensors"
    options = ("--source", work / "a.source.safetensors", "--features", 0.5, "--epochs", 1, "--lr", 1e-3)
    assert "taught by" in run("finetune", a, "--data", work / "a-train", *options, "-o", taught).stdout
    again = ("finetune", a, "--data", work / "a-train", "--epochs", 2, "--resume", tmp_path / "state")
    run(*again, "-o", tmp_path / "1.safetensors")
    run(*again, "-o", tmp_path / "2.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    student = tmp_path / "student.safetensors"
    options = ("--teacher", both, "--data", "digits", "--epochs", 1, "--size", 16)
    run("distil", "cnn?width=0.125", *options, "-o", student)
    assert load_source(str(student)).classes == ("0", "2", "9", "7")
    assert "--data" in run("finetune", both, *data[:2], "-o", tmp_path / "x", code=1).stderr
    nowhere = ("--data", work / "a-train", "--device", "abacus", "-o", tmp_path / "x")
    for command in (("finetune", a), ("distil", "cnn", "--teacher", a), ("train", "cnn")):
        assert "'abacus'" in run(*command, *nowhere, code=1).stderr
    same = ("--data", work / "a-train", "--epochs", 1, "--json", "-o", tmp_path / "same.safetensors", "--force")
    plain, there = (run("finetune", a, *same, *device).stdout for device in ((), ("--device", "cpu")))
    assert plain == there


def test_the_way_from_sources_to_a_classifier(work) -> None:
    a, whole = by.load(work / "a.safetensors"), by.load(work / "ab.safetensors")
    assert a.classes == ("0", "2")
    assert whole.classes == ("0", "2", "9", "7")
    assert a.manifest.selection.flops <= 0.6 * a.manifest.source.flops
    assert a.manifest.preprocessing.size == (16, 16)
    relevance = by.load(work / "a.relevance.safetensors")
    assert relevance.classes == ("0", "1", "2")
    assert a.manifest.source.sha256 == relevance.source_sha256


def test_evaluate_prints_json_and_csv(work, tmp_path) -> None:
    result = run(
        *("evaluate", work / "a.safetensors", "--data", work / "a-train", "--source", work / "a.source.safetensors"),
        *("--no-latency", "--json", "--csv", tmp_path / "rows.csv"),
    )
    value = json.loads(result.stdout)
    names = [row["name"] for row in value["rows"]]
    assert names == ["base", "restricted", "component"]
    assert value["rows"][2]["accuracy"] > 80
    assert (tmp_path / "rows.csv").read_text().startswith("name,images,accuracy")
    both = run(
        *("evaluate", work / "ab.safetensors", "--data", work / "a-train", "--data", work / "b-train"),
        *("--source", work / "a.source.safetensors", "--source", work / "b.source.safetensors", "--no-latency"),
    )
    assert "assembled" in both.stdout
    assert "oracle" in both.stdout


def test_predict_is_what_the_library_says(work) -> None:
    pictures = sorted((work / "a-train" / "2").iterdir())[:3]
    value = json.loads(run("predict", work / "ab.safetensors", *pictures, "--json", "--top", 2).stdout)
    whole = by.load(work / "ab.safetensors")
    expected = whole.predict(pictures)
    assert [answer["classes"][0]["name"] for answer in value["predictions"]] == expected
    assert len(set(whole.predict(sorted((work / "b-train").rglob("*.png")))) & {"7", "9"}) == 2
    best = whole.predict_proba(pictures).max(1).values
    for answer, probability in zip(value["predictions"], best.tolist(), strict=True):
        assert answer["classes"][0]["probability"] == pytest.approx(probability, abs=1e-5)


def test_show_everything(work) -> None:
    for name in ("a.safetensors", "ab.safetensors", "a.relevance.safetensors"):
        assert "lenet5" in run("show", work / name, "--axes").stdout
    assert "conv1" in run("show", work / "a.source.safetensors").stdout
    table = run("show", "zoo:resnet20").stdout
    assert "layer1.0.conv1" in table
    value = json.loads(run("show", work / "a.safetensors", "--json").stdout)
    assert value["classes"] == ["0", "2"]


def test_few_shot_scaling_from_the_command_line(work, tmp_path) -> None:
    run(
        *("assemble", work / "a.safetensors", work / "b.safetensors", "--scaling", "joint-head", "--shots", 3),
        *("--images", work / "a-train", "--images", work / "b-train", "-o", tmp_path / "s.safetensors"),
    )
    whole = by.load(tmp_path / "s.safetensors")
    assert whole.manifest.scaling.images == 12
    assert not torch.equal(whole.matrix, torch.eye(4, dtype=torch.float64))


def test_labels_follow_class_names(work, tmp_path) -> None:
    """The second source's classes 0, 1, 2 are the digits 7, 8, 9: labels of `digits` must not be taken as they are."""
    source = work / "b.source.safetensors"
    place = ("--source", source, "--no-latency", "--json")
    by_name = run("evaluate", work / "b.safetensors", "--data", "digits", *place)
    assert by_name.stderr  # that images of other classes were left out
    row = next(row for row in json.loads(by_name.stdout)["rows"] if row["name"] == "component")
    component = by.load(work / "b.safetensors")
    test = load_data("digits", split="test").of_classes(component.classes)
    named = [test.classes[k] for k in test.labels.tolist()]
    right = [a == b for a, b in zip(component.predict(test.images), named, strict=True)]
    assert row["images"] == len(test)
    assert row["accuracy"] == pytest.approx(100 * sum(right) / len(right))
    run("locate", source, "--data", "digits", "-o", tmp_path / "all.safetensors")
    run("locate", source, "--data", work / "b-train", "-o", tmp_path / "own.safetensors")
    whole, own = (by.load(tmp_path / f"{name}.safetensors") for name in ("all", "own"))
    assert whole.task == own.task
    assert torch.equal(whole.sum("seq.4"), own.sum("seq.4"))
    (tmp_path / "cats" / "cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "cats" / "cat" / "1.png")
    assert "--class-names" in run("evaluate", work / "b.safetensors", "--data", tmp_path / "cats", code=1).stderr


def test_relevances_from_a_file_keep_their_thresholds(work, tmp_path) -> None:
    source, file = work / "a.source.safetensors", tmp_path / "strict.safetensors"
    run("locate", source, "--data", work / "a-train", "--alpha", 0.7, "--beta", 0.6, "-o", file)
    cut = ("disassemble", source, "--relevance", file, "--task", "0", "--heal", "none", "--json", "-o")
    kept = json.loads(run(*cut, tmp_path / "kept.safetensors").stdout)
    usual = json.loads(run(*cut, tmp_path / "usual.safetensors", "--alpha", 0.3, "--beta", 0.2).stdout)
    assert by.load(tmp_path / "kept.safetensors").manifest.selection.thresholds["alpha"] == 0.7
    assert kept["flops"] < usual["flops"]
    idle = run(*cut, tmp_path / "no.safetensors", "--flops", 0.5, "--alpha", 0.2, "--size", 8, code=1)
    assert "--size, --alpha" in idle.stderr
    assert not (tmp_path / "no.safetensors").exists()


def test_size_alone_keeps_what_the_source_says(work, tmp_path) -> None:
    source = work / "a.source.safetensors"
    run("locate", source, "--data", work / "a-train", "--size", 16, "-o", tmp_path / "sized.safetensors")
    sized, own = by.load(tmp_path / "sized.safetensors"), by.load(work / "a.relevance.safetensors")
    assert sized.preprocessing == own.preprocessing
    assert own.preprocessing.mean is not None
    refused = run("train", "vgg16", "--data", "digits", "--size", 4, "-o", tmp_path / "tiny.safetensors", code=1)
    assert "4x4" in refused.stderr


def test_csv_is_not_overwritten_unasked(work, tmp_path) -> None:
    (tmp_path / "rows.csv").write_text("precious")
    score = ("evaluate", work / "a.safetensors", "--data", "digits", "--no-latency", "--csv", tmp_path / "rows.csv")
    assert "rows.csv" in run(*score, code=1).stderr
    assert (tmp_path / "rows.csv").read_text() == "precious"
    run(*score, "--force")
    assert (tmp_path / "rows.csv").read_text().startswith("name,")


def test_ctrl_c_leaves_no_file(work, tmp_path, monkeypatch) -> None:
    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("brickyard.storage._safefile.save_file", stop)
    arguments = ("disassemble", work / "a.source.safetensors", "--data", work / "a-train", "--task", "0,1")
    run(*arguments, "-o", tmp_path / "x.safetensors", code=130)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    run(*arguments, "-o", tmp_path / "x.safetensors")
    first = (tmp_path / "x.safetensors").read_bytes()
    run(*arguments, "-o", tmp_path / "x.safetensors", "--force")
    assert (tmp_path / "x.safetensors").read_bytes() == first  # the same call, the same bytes


def test_the_version() -> None:
    assert run("--version").stdout.strip() == f"brickyard {by.__version__}"


def test_routes_and_report_say_what_the_files_say(work, tmp_path) -> None:
    source, relevance = work / "a.source.safetensors", work / "a.relevance.safetensors"
    picture, page = tmp_path / "routes.svg", tmp_path / "report.html"
    result = run(
        *("routes", source, "--relevance", relevance, "--classes", "0,2", "--data", work / "a-train"),
        *("--seeds", 2, "-o", picture, "--json"),
    )
    value = json.loads(result.stdout)
    assert value["classes"] == ["0", "2"]
    located = by.load(relevance)
    for entry in value["relevant"][1:-1]:
        assert entry["channels"] == located.relevant(entry["axis"])[[0, 2]].sum(1).tolist()
    assert [row["name"] for row in value["faithfulness"]] == ["0", "2"]
    assert value["faithfulness"][0]["whole"]["hits"] > 80
    assert "Decision routes" in picture.read_text()
    other = run(
        "routes", work / "b.source.safetensors", "--relevance", relevance, "--classes", 0, "-o", picture, code=1
    )
    assert picture.name in other.output
    other = run("routes", work / "b.source.safetensors", "--relevance", relevance, "--classes", 0, "-o", page, code=1)
    assert ".svg" in other.output
    result = run(
        *(
            "report",
            work / "a.safetensors",
            work / "ab.safetensors",
            "--relevance",
            relevance,
            "--data",
            work / "a-train",
        ),
        *("--data", work / "a-train", "--data", work / "b-train", "--source", source, "-o", page, "--json"),
    )
    value = json.loads(result.stdout)
    assert value["items"] == ["a.safetensors", "ab.safetensors", "a.relevance.safetensors"]
    assert value["bytes"] == len(page.read_bytes())
    measured = json.loads(
        run("evaluate", work / "a.safetensors", "--data", work / "a-train", "--no-latency", "--json").stdout
    )
    row = measured["rows"][-1]
    assert f"<td><bdi>{row['accuracy']:.1f}±{row['error']:.1f}</bdi></td>" in page.read_text(encoding="utf-8")
    for arguments, message in [
        (("report", relevance, "-o", page), page.name),
        (("report", work / "ab.safetensors", *["--data", "digits"] * 3, "-o", tmp_path / "x.html"), "2 parts"),
        (("report", relevance, "--faithfulness", "-o", tmp_path / "x.html"), "--source"),
    ]:
        assert message in run(*arguments, code=1).output
    assert not (tmp_path / "x.html").exists()
