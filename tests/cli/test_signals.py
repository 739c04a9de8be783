"""Networks of signals and cubes the whole way from the command line, with arrays that are drawn here."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import brickyard as by
from brickyard.export import export_module
from brickyard.sources import load_source
from errors import refused
from shell import run

NETS = """
from torch import nn

def waves():
    return nn.Sequential(
        nn.Conv1d(3, 24, 5, padding=2), nn.BatchNorm1d(24), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(24, 32, 5, padding=2),
        nn.BatchNorm1d(32), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 4))

def cubes():
    return nn.Sequential(
        nn.Conv3d(1, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(), nn.Conv3d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 4))
"""
SHAPES = {"waves": (3, 60), "cubes": (1, 3, 5, 24)}
MEAN, STD = 0.5, 3.0


def drawn(shape: tuple[int, ...], count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Waves of four frequencies, of any phase and strength, in noise."""
    draw, labels = np.random.default_rng(seed), np.arange(count) % 4
    angle = np.array([0.2, 0.45, 0.8, 1.3])[labels, None] * np.arange(shape[-1]) + draw.uniform(0, 6, (count, 1))
    waves = np.sin(angle).reshape(count, *[1] * (len(shape) - 1), shape[-1]) * draw.uniform(
        0.5, 2, (count, shape[0], *[1] * (len(shape) - 1))
    )
    return (MEAN + STD * (waves + draw.normal(0, 0.5, (count, *shape)))).astype(np.float32), labels


@pytest.fixture(scope="module", params=SHAPES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of networks, trained weights, arrays, and a part of classes 0 and 1 and one of 2 and 3."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    (folder / "net.py").write_text(NETS.replace(f"def {name}", "def make"))
    parts = {part: drawn(SHAPES[name], count, k) for k, (part, count) in enumerate([("train", 240), ("test", 120)])}
    np.savez(
        folder / "d.npz",
        **{f"{key}_{part}": value for part in parts for key, value in zip("xy", parts[part], strict=True)},
    )
    np.save(folder / "test.npy", parts["test"][0])
    model, (x, y) = made(folder), map(torch.from_numpy, parts["train"])
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(8):
        for chosen in torch.randperm(len(x), generator=draw).split(24):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model((x[chosen] - MEAN) / STD), y[chosen]).backward()
            optimizer.step()
    save_file(model.state_dict(), folder / "net.safetensors")
    for task in ("0,1", "2,3"):
        run(
            "disassemble",
            *words(folder),
            "--data",
            folder / "d.npz",
            "--task",
            task,
            "--flops",
            0.5,
            "-o",
            folder / f"{task[0]}.safetensors",
        )
    return folder


def made(folder: Path) -> nn.Module:
    torch.manual_seed(0)
    return load_source(f"{folder / 'net.py'}:make", random_weights=True, input_shape=shape_of(folder)).model.train()


def shape_of(folder: Path) -> tuple[int, ...]:
    return next(shape for name, shape in SHAPES.items() if folder.name.startswith(name))


def words(folder: Path) -> tuple[Any, ...]:
    how = ("--mean", MEAN, "--std", STD)
    return (f"{folder / 'net.py'}:make", "--weights", folder / "net.safetensors", *how)


def test_a_part_of_half_the_flops_answers_a_file(place: Path) -> None:
    part = by.load(place / "0.safetensors")
    assert part.manifest.input_shape == part.input_shape == shape_of(place)
    assert part.manifest.heal.method == "refit"
    assert part.manifest.selection.flops <= 0.5 * part.manifest.source.flops
    source = ("--source", words(place)[0], "--weights", place / "net.safetensors")
    rows = json.loads(run("evaluate", place / "0.safetensors", "--data", place / "d.npz", *source, "--json").stdout)
    accuracy = {row["name"]: row["accuracy"] for row in rows["rows"]}
    assert accuracy["restricted"] > 95
    assert accuracy["component"] >= accuracy["restricted"] - 3
    x = torch.from_numpy(np.load(place / "test.npy").astype(np.float64))
    with torch.no_grad():
        wanted = part.network.double()((x - MEAN) / STD).softmax(1)
    for file in ("test.npy", "d.npz"):  # of the file's splits, predict takes test
        found = json.loads(run("predict", place / "0.safetensors", place / file, "--json").stdout)["predictions"]
        shares = [{item["name"]: item["probability"] for item in row["classes"]} for row in found]
        got = torch.tensor([[row["0"], row["1"]] for row in shares], dtype=torch.float64)
        assert (got - wanted).abs().max() < 1e-4
    with refused("data-type", " x ".join(map(str, shape_of(place)))):
        part.predict("a.png")


@pytest.mark.parametrize("form", ["parallel", "padded", "grouped"])
def test_assemblies_in_all_forms(place: Path, form: str, tmp_path: Path) -> None:
    files = place / "0.safetensors", place / "2.safetensors"
    run("assemble", *files, "--form", form, "-o", tmp_path / "all.safetensors")
    whole, x = by.load(tmp_path / "all.safetensors"), np.load(place / "test.npy")
    assert whole.manifest.form == form
    assert whole.score(x, [str(k % 4) for k in range(len(x))]) > 0.9
    beside = by.assemble([by.load(file) for file in files])
    given = torch.from_numpy(x)
    with torch.no_grad():
        torch.testing.assert_close(whole.side_by_side(given), beside.side_by_side(given), rtol=1e-4, atol=1e-4)


def test_exports_and_pages(place: Path, tmp_path: Path) -> None:
    part, x = by.load(place / "0.safetensors"), np.load(place / "test.npy")
    runtime = pytest.importorskip("onnxruntime")
    run("export", place / "0.safetensors", "-o", tmp_path / "part.onnx", "--data", place / "d.npz")
    logits = runtime.InferenceSession(str(tmp_path / "part.onnx")).run(["logits"], {"images": x})[0]
    assert np.allclose(logits, part.logits(torch.from_numpy(x)).detach().numpy(), atol=1e-4)
    again = load_source(str(tmp_path / "part.onnx"))
    assert again.input_shape == shape_of(place)
    assert np.allclose(again.model(torch.from_numpy(x)).detach().numpy(), logits, atol=1e-4)
    export_module(part, tmp_path / "part.py")
    names = runpy.run_path(str(tmp_path / "part.py"))
    assert np.allclose(names["load"]()(names["preprocess"](torch.from_numpy(x))).detach().numpy(), logits, atol=1e-4)
    run("report", place / "0.safetensors", "--data", place / "d.npz", "-o", tmp_path / "page.html")
    assert "0.safetensors" in (tmp_path / "page.html").read_text()
    with refused("option-conflict", "uint8"):
        by.export.export_onnx(part, tmp_path / "bytes.onnx", dtype="uint8")


def test_the_workbench_builds_them_and_takes_only_pictures(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    from brickyard.workbench._bench import Bench, Plan
    from brickyard.workbench._limits import Limits
    from brickyard.yard._yard import Yard
    from workbench_yard import encoded

    yard, limits = Yard(tmp_path / "yard", create=True), Limits()
    for task in ("0", "2"):
        yard.add(by.load(place / f"{task}.safetensors"), f"part-{task}")
    bench = Bench(yard, limits)
    built = bench.build(Plan.of({"bricks": ["part-0", "part-2"]}, limits), {})
    assert list(built["classes"]) == ["0", "1", "2", "3"]
    with refused("data-type", "shows pictures only", "brickyard predict"):
        bench.classify(built["id"], [("a.png", encoded(np.zeros((8, 8), np.uint8)))])
    ranked = json.loads(run("yard", "rank", "--yard", yard.path, "--data", place / "d.npz", "--json").stdout)
    assert len(ranked["components"]) == 2


def test_what_does_not_fit_is_one_error(place: Path, tmp_path: Path) -> None:
    _, labels = drawn((3, 60), 8, 0)
    np.savez(tmp_path / "d.npz", x=np.zeros((8, 7, 60), np.float32), y=labels)
    given = ("disassemble", *words(place), "--task", "0,1", "-o", tmp_path / "part.safetensors")
    assert "in no way to read it" in run(*given, "--data", tmp_path / "d.npz", code=1).stderr
    said = run("predict", place / "0.safetensors", tmp_path / "d.npz", code=1).stderr
    assert "is taken" in said
    sized = run(*given, "--data", place / "d.npz", "--size", 32, code=1).stderr
    assert "--size" in sized
    found = by.load(place / "0.safetensors")
    other = by.disassemble(picture(), by.locate(picture(), (torch.rand(8, 3, 8, 8), torch.arange(8) % 4)), task=[2])
    with refused("surgery-input-mismatch", "images"):
        by.assemble([found, other])


def picture() -> nn.Module:
    from brickyard.testing import chain

    return chain()
