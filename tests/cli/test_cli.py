"""The command line, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.axes import trace
from brickyard.inputs._datasets import load_data
from brickyard.sources._loading import load_source
from brickyard.surgery._join import cut
from shell import COMMANDS, run, save_folder


def command(line: str, work: Path, own: Path | None = None, code: int = 0):
    """Run a command as one types it: W/ is the folder of `work`, F/ the test's own, and .st a .safetensors."""
    line = line.replace("W/", f"{work}/").replace("F/", f"{own}/").replace(".st", ".safetensors")
    return run(*line.split(), code=code)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with two sources, their relevances, two components and an assembly."""
    folder = tmp_path_factory.mktemp("work")
    for a, classes, network, task in (("a", "0-2", "lenet5?width=0.5", "0,2"), ("b", "7-9", "cnn?width=0.25", "9,7")):
        images = load_data(f"digits?classes={classes}")
        save_folder(images.renumbered(sorted(set(images.labels.tolist()))), folder / f"{a}-train")
        how = "--epochs 4 --batch-size 32 --lr 0.05 --size 16"
        command(f"train {network} --data digits --classes {classes} {how} -o W/{a}.source.st", folder)
        command(f"locate W/{a}.source.st --data W/{a}-train -o W/{a}.relevance.st", folder)
        cut = f"disassemble W/{a}.source.st --relevance W/{a}.relevance.st --data W/{a}-train"
        command(f"{cut} --task {task} --flops 0.6 -o W/{a}.st", folder)
    command("assemble W/a.st W/b.st -o W/ab.st", folder)
    return folder


@pytest.fixture
def typed(work, tmp_path):
    return lambda line, code=0: command(line, work, tmp_path, code)


def printed(result) -> dict:
    return json.loads(result.stdout)


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


def test_finetune_and_distil(typed, tmp_path) -> None:
    data = "--data W/a-train --data W/b-train"
    found = printed(typed(f"finetune W/ab.st {data} --epochs 2 -o F/tuned.st --json"))
    tuned = by.load(tmp_path / "tuned.safetensors").manifest.tuned.model_dump(mode="json")
    assert tuned == {k: v for k, v in found.items() if k != "output"}
    assert found["epochs"] == 2
    taught = "--source W/a.source.st --features 0.5 --epochs 1 --lr 1e-3 -o F/taught.st"
    assert "taught by" in typed(f"finetune W/a.st --data W/a-train {taught}").stdout
    for name in "12":
        typed(f"finetune W/a.st --data W/a-train --epochs 2 --resume F/state -o F/{name}.st")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    student = "--images W/a-train --like zoo:cnn?width=0.125"
    typed(f"distil W/ab.st {student} --epochs 1 -o F/student.st")
    assert by.load(tmp_path / "student.safetensors").classes == ("0", "2", "9", "7")
    assert "--data" in typed("finetune W/ab.st --data W/a-train -o F/x", 1).stderr
    for line in ("finetune W/a.st --data W/a-train", f"distil W/a.st {student}", "train cnn --data W/a-train"):
        assert "'abacus'" in typed(f"{line} --device abacus -o F/x", 1).stderr
    same = "finetune W/a.st --data W/a-train --epochs 1 --json -o F/same.st --force"
    assert typed(same).stdout == typed(f"{same} --device cpu").stdout


def test_the_way_from_sources_to_a_classifier(work) -> None:
    a, whole = by.load(work / "a.safetensors"), by.load(work / "ab.safetensors")
    assert a.classes == ("0", "2")
    assert whole.classes == ("0", "2", "9", "7")
    assert a.manifest.selection.flops <= 0.6 * a.manifest.source.flops
    assert a.manifest.preprocessing.size == (16, 16)
    relevance = by.load(work / "a.relevance.safetensors")
    assert relevance.classes == ("0", "1", "2")
    assert a.manifest.source.sha256 == relevance.source_sha256


def test_evaluate_prints_json_and_csv(typed, tmp_path) -> None:
    own = "--data W/a-train --including-calibration --source W/a.source.st"
    rows = printed(typed(f"evaluate W/a.st {own} --no-latency --json --csv F/rows.csv"))["rows"]
    assert [row["name"] for row in rows] == ["base", "restricted", "component"]
    assert rows[2]["accuracy"] > 80
    assert (tmp_path / "rows.csv").read_text().startswith("name,images,accuracy")
    both = typed(f"evaluate W/ab.st {own} --data W/b-train --source W/b.source.st --no-latency")
    assert "assembled" in both.stdout
    assert "oracle" in both.stdout


def test_predict_is_what_the_library_says(work) -> None:
    pictures = sorted((work / "a-train" / "2").iterdir())[:3]
    value = json.loads(run("predict", work / "ab.safetensors", *pictures, "--json", "--top", 2).stdout)
    whole = by.load(work / "ab.safetensors")
    expected = whole.predict(pictures, strangers="answer")
    assert [answer["classes"][0]["name"] for answer in value["predictions"]] == expected
    assert len(set(whole.predict(sorted((work / "b-train").rglob("*.png")), strangers="answer")) & {"7", "9"}) == 2
    best = whole.predict_proba(pictures).max(1).values
    for answer, probability in zip(value["predictions"], best.tolist(), strict=True):
        assert answer["classes"][0]["probability"] == pytest.approx(probability, abs=1e-5)


def test_show_everything(typed) -> None:
    for name in ("a", "ab", "a.relevance"):
        assert "lenet5" in typed(f"show W/{name}.st --axes").stdout
    assert "conv1" in typed("show W/a.source.st").stdout
    assert "layer1.0.conv1" in typed("show zoo:resnet20").stdout
    assert printed(typed("show W/a.st --json"))["classes"] == ["0", "2"]


def test_few_shot_scaling_from_the_command_line(typed, tmp_path) -> None:
    images = "--images W/a-train --images W/b-train"
    typed(f"assemble W/a.st W/b.st --scaling joint-head --shots 3 {images} -o F/s.st")
    whole = by.load(tmp_path / "s.safetensors")
    assert whole.manifest.scaling.images == 12
    assert not torch.equal(whole.matrix, torch.eye(4, dtype=torch.float64))


def test_one_budget_for_all_parts(typed, tmp_path) -> None:
    images = "--calibration W/a-train --calibration W/b-train"
    value = printed(typed(f"assemble W/a.st W/b.st --flops 0.7 {images} --json -o F/s.st"))
    whole = by.load(tmp_path / "s.safetensors")
    before, after = (sum(one[key] for one in value["budget"]["parts"]) for key in ("before", "after"))
    assert after <= 0.7 * before
    assert after == sum(part.selection.flops for part in whole.manifest.parts)
    assert whole.manifest.budget.model_dump(mode="json") == value["budget"]
    assert "calibration=" in typed("assemble W/a.st W/b.st --flops 0.7 -o F/x.st", 1).stderr
    assert "--flops" in typed(f"assemble W/a.st W/b.st {images} -o F/x.st", 1).stderr
    assert "2 times" in typed("assemble W/a.st W/b.st --flops 0.7 --calibration W/a-train -o F/x.st", 1).stderr


def test_labels_follow_class_names(typed, work, tmp_path) -> None:
    """The second source's classes 0, 1, 2 are the digits 7, 8, 9: labels of `digits` must not be taken as they are."""
    by_name = typed("evaluate W/b.st --data digits --source W/b.source.st --no-latency --json")
    assert by_name.stderr  # that images of other classes were left out
    row = next(row for row in printed(by_name)["rows"] if row["name"] == "component")
    component = by.load(work / "b.safetensors")
    test = load_data("digits", split="test").of_classes(component.classes)
    named = [test.classes[k] for k in test.labels.tolist()]
    right = [a == b for a, b in zip(component.predict(test.images, strangers="answer"), named, strict=True)]
    assert row["images"] == len(test)
    assert row["accuracy"] == pytest.approx(100 * sum(right) / len(right))
    typed("locate W/b.source.st --data digits -o F/all.st")
    typed("locate W/b.source.st --data W/b-train -o F/own.st")
    whole, own = (by.load(tmp_path / f"{name}.safetensors") for name in ("all", "own"))
    assert whole.task == own.task
    assert torch.equal(whole.sum("seq.4"), own.sum("seq.4"))
    (tmp_path / "cats" / "cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "cats" / "cat" / "1.png")
    assert "brickyard rename" in typed("evaluate W/b.st --data F/cats", 1).stderr


def test_relevances_from_a_file_keep_their_thresholds(typed, tmp_path) -> None:
    typed("locate W/a.source.st --data W/a-train --linear-alpha 0.9 --linear-beta 0.9 -o F/strict.st")
    cut = "disassemble W/a.source.st --relevance F/strict.st --task 0 --heal none --json"
    kept, usual = (
        printed(typed(f"{cut} {how}"))
        for how in ("-o F/kept.st", "-o F/usual.st --linear-alpha 0.1 --linear-beta 0.05")
    )
    assert by.load(tmp_path / "kept.safetensors").manifest.selection.thresholds["linear_alpha"] == 0.9
    assert kept["parameters"] < usual["parameters"]
    assert "--size, --alpha" in typed(f"{cut} -o F/no.st --flops 0.5 --alpha 0.2 --size 8", 1).stderr
    assert not (tmp_path / "no.safetensors").exists()


def test_size_alone_keeps_what_the_source_says(typed, work, tmp_path) -> None:
    typed("locate W/a.source.st --data W/a-train --size 16 -o F/sized.st")
    sized, own = by.load(tmp_path / "sized.safetensors"), by.load(work / "a.relevance.safetensors")
    assert sized.preprocessing == own.preprocessing
    assert own.preprocessing.mean is not None
    assert "4x4" in typed("train vgg16 --data digits --size 4 -o F/tiny.st", 1).stderr


def test_csv_is_not_overwritten_unasked(typed, tmp_path) -> None:
    (tmp_path / "rows.csv").write_text("precious")
    score = "evaluate W/a.st --data digits --no-latency --csv F/rows.csv"
    assert "rows.csv" in typed(score, 1).stderr
    assert (tmp_path / "rows.csv").read_text() == "precious"
    typed(f"{score} --force")
    assert (tmp_path / "rows.csv").read_text().startswith("name,")


def test_ctrl_c_leaves_no_file(typed, tmp_path, monkeypatch) -> None:
    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("brickyard.storage._safefile.save_file", stop)
    cut = "disassemble W/a.source.st --data W/a-train --task 0,1 -o F/x.st"
    typed(cut, 130)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    typed(cut)
    first = (tmp_path / "x.safetensors").read_bytes()
    typed(f"{cut} --force")
    assert (tmp_path / "x.safetensors").read_bytes() == first  # the same call, the same bytes


def test_the_version() -> None:
    assert run("--version").stdout.strip() == f"brickyard {by.__version__}"


def test_routes_and_report_say_what_the_files_say(typed, work, tmp_path) -> None:
    picture, page = tmp_path / "routes.svg", tmp_path / "report.html"
    routes = "routes W/a.source.st --relevance W/a.relevance.st --classes"
    value = printed(typed(f"{routes} 0,2 --data W/a-train --including-calibration --seeds 2 -o F/routes.svg --json"))
    assert value["classes"] == ["0", "2"]
    located = by.load(work / "a.relevance.safetensors")
    for entry in value["relevant"][1:-1]:
        assert entry["channels"] == located.relevant(entry["axis"])[[0, 2]].sum(1).tolist()
    assert [row["name"] for row in value["faithfulness"]] == ["0", "2"]
    assert value["faithfulness"][0]["whole"]["hits"] > 80
    assert "Decision routes" in picture.read_text()
    other = routes.replace("a.source", "b.source")
    assert "routes.svg" in typed(f"{other} 0 -o F/routes.svg", 1).output
    assert ".svg" in typed(f"{other} 0 -o F/report.html", 1).output
    data = "--data W/a-train --data W/a-train --data W/b-train --source W/a.source.st --including-calibration"
    value = printed(typed(f"report W/a.st W/ab.st --relevance W/a.relevance.st {data} -o F/report.html --json"))
    assert value["items"] == ["a.safetensors", "ab.safetensors", "a.relevance.safetensors"]
    assert value["bytes"] == len(page.read_bytes())
    row = printed(typed("evaluate W/a.st --data W/a-train --including-calibration --no-latency --json"))["rows"][-1]
    assert f"<td><bdi>{row['accuracy']:.1f}±{row['error']:.1f}</bdi></td>" in page.read_text(encoding="utf-8")
    for line, message in [
        ("W/a.relevance.st -o F/report.html", "report.html"),
        ("W/ab.st --data digits --data digits --data digits -o F/x.html", "2 parts"),
        ("W/a.relevance.st --faithfulness -o F/x.html", "--source"),
    ]:
        assert message in typed(f"report {line}", 1).output
    assert not (tmp_path / "x.html").exists()


def test_show_says_what_can_be_cut(tmp_path) -> None:
    """As a cut that keeps one channel of each free axis says; and what keeps the rest whole."""
    (tmp_path / "net.py").write_text(
        "from torchvision.models import VisionTransformer\n"
        "def make():\n    return VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=3)\n"
    )
    found = json.loads(run("show", f"{tmp_path / 'net.py'}:make", "--size", "32", "--json").stdout)["free"]
    model = load_source(f"{tmp_path / 'net.py'}:make", preprocessing=by.Preprocessing(size=(32, 32)))
    graph = trace(model.model, torch.zeros(2, 3, 32, 32))
    least = cut(graph, {axis.name: torch.tensor([0]) for axis in graph.free})
    whole, left = (sum(p.numel() for p in net.parameters()) for net in (graph.network, least))
    assert found["parameters"] == pytest.approx(1 - left / whole)
    assert (found["opened"]["turned"], found["opened"]["norms"]) == (1, 0)
    assert found["opened"]["parameters"] > 0.9 > found["parameters"] > 0.3
    assert found["kept_whole"] == {}  # once it is turned
    told = run("show", "timm:convnext_atto").stdout
    assert "can be cut: " in told
    assert "with a budget, which writes 17 norms as steps: " in told
    assert "turns" not in told
    (tmp_path / "odd.py").write_text(
        "from torch import nn\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Softmax(1), nn.Flatten(), nn.Linear(600, 3))\n"
    )
    assert "kept whole: Softmax mixes channels" in run("show", f"{tmp_path / 'odd.py'}:make", "--size", "12").stdout
