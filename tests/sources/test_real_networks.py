"""Trained networks of others as their files lie there: the right answers, and components by one command."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.inputs._datasets import load_data
from brickyard.inputs._decoding import read_images
from brickyard.inputs._preprocessing import preprocess
from brickyard.sources._loading import load_source
from shell import run, save_folder

models = pytest.importorskip("torchvision.models")
pytestmark = pytest.mark.shared
OWN = Path(__file__).with_name("own_networks.py")
BYTE = "0.00392156862745098"  # one in 255: for networks that take 0 to 255


@pytest.fixture(scope="module")
def photographs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """JPEG files of Imagenette, three of each class and as wide and as high as one likes."""
    pq = pytest.importorskip("pyarrow.parquet")
    folder, seen, found = tmp_path_factory.mktemp("photographs"), dict.fromkeys(range(10), 0), []
    for row in pq.read_table(shared / "data" / "imagenette" / "train.parquet").to_pylist():
        if seen[row["label"]] < 3:
            seen[row["label"]] += 1
            path = folder / f"{len(found):02}.jpg"
            image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
            image.crop((0, 0, 224 - 5 * len(found) % 40, 224 - 3 * len(found) % 40)).save(path, quality=95)
            found.append(path)
    return found


def timms(name: str) -> Callable[[Image.Image], Any]:
    timm = pytest.importorskip("timm")
    made: Callable[[Image.Image], Any] = timm.data.create_transform(
        **timm.data.resolve_data_config({}, model=timm.create_model(name))
    )
    return made


LIBRARY: dict[str, tuple[str, Callable[[], Callable[[Image.Image], Any]]]] = {
    "mobilenet_v2-imagenet": (
        "torchvision:mobilenet_v2?transforms=IMAGENET1K_V1",
        models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms,
    ),
    "squeezenet1_1-imagenet": ("torchvision:squeezenet1_1", models.SqueezeNet1_1_Weights.DEFAULT.transforms),
    "efficientnet_lite0-imagenet": ("timm:tf_efficientnet_lite0", lambda: timms("tf_efficientnet_lite0")),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_answers_to_jpeg_files_are_those_of_the_librarys_own_pipeline(
    name: str, shared: Path, photographs: list[Path]
) -> None:
    spec, pipeline = LIBRARY[name]
    source = load_source(spec, weights=shared / "models" / f"{name}.safetensors")
    theirs = pipeline()
    with torch.no_grad():
        ours = [source.model(preprocess(x, source.preprocessing)) for x in read_images(photographs, 1)]
        wanted = [source.model(theirs(Image.open(path).convert("RGB"))[None]) for path in photographs]
        squashed = source.model(preprocess(read_images(photographs[:1], 1)[0], by.Preprocessing(size=(224, 224))))
    assert (torch.cat(ours).softmax(1) - torch.cat(wanted).softmax(1)).abs().max() < 1e-4
    assert not torch.allclose(squashed.softmax(1), wanted[0].softmax(1), atol=1e-4)  # the control


COMMANDS: dict[str, tuple[str, str, tuple[str, ...], str, float]] = {
    "dscnn-kws-mlperf": ("Keywords", "speech-commands/mfcc.npz", (), "0-3", 0.85),
    "gtsrb-cnn-jovanzac": ("signs", "gtsrb/train.parquet", ("--size", "30", "--mean", "0", "--std", BYTE), "0-3", 0.8),
    "resnet8-cifar10-mlperf": (
        "ResNet8",
        "cifar10/test.parquet?classes=3-6",
        ("--size", "32", "--mean", "0,0,0", "--std", ",".join([BYTE] * 3)),
        "3-6",
        0.75,
    ),
    "shufflenetv2_x0_5-cifar10-chenyaofo": (
        "shuffle",
        "cifar10/test.parquet?classes=3-6",
        ("--size", "32", "--mean", ".4914,.4822,.4465", "--std", ".2023,.1994,.2010"),
        "3-6",
        0.75,
    ),
}


LARGE = ("shufflenetv2_x0_5-cifar10-chenyaofo",)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in COMMANDS])
def test_one_command_makes_a_component_of_a_network_of_ones_own(name: str, shared: Path, tmp_path: Path) -> None:
    function, data, options, task, least = COMMANDS[name]
    weights, data = shared / "models" / f"{name}.safetensors", str(shared / "data" / data)
    names = ("--class-names", tmp_path / "names.txt") if function == "signs" else ()
    if names:  # it knows all but the last class of its data
        known = load_data(data, max_images=1).classes[:42]
        names[1].write_text("\n".join(known))
    given = (f"{OWN}:{function}", "--weights", weights, "--data", data, *options, *names)
    run("disassemble", *given, "--task", task, "--flops", 0.8, "--heal", "none", "-o", tmp_path / "part.safetensors")
    part = by.load(tmp_path / "part.safetensors")
    assert part.manifest.selection.flops <= 0.8 * part.manifest.source.flops
    images = load_data(data, max_images=600)
    images = images.of_classes(part.classes)
    assert part.score(images.images, [images.classes[k] for k in images.labels.tolist()]) >= least


def test_a_spectrogram_file_is_answered(shared: Path, tmp_path: Path) -> None:
    weights, data = shared / "models" / "dscnn-kws-mlperf.safetensors", shared / "data" / "speech-commands" / "mfcc.npz"
    given = (f"{OWN}:Keywords", "--weights", weights, "--data", data)
    run("disassemble", *given, "--task", "0-3", "--flops", 0.5, "-o", tmp_path / "part.safetensors")
    answers = json.loads(run("predict", tmp_path / "part.safetensors", data, "--json").stdout)["predictions"]
    assert answers[7]["image"] == f"{data}[7]"
    labels, part = load_data(data).labels, by.load(tmp_path / "part.safetensors")
    inside = [k for k, label in enumerate(labels.tolist()) if label < 4]
    right = sum(answers[k]["classes"][0]["name"] == part.manifest.source.classes[labels[k]] for k in inside)
    assert right > 0.9 * len(inside)
    run("export", tmp_path / "part.safetensors", "-o", tmp_path / "part.onnx")


IMAGENET = ("tench", "church", "golf ball")  # of Imagenette's ten


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (not name.startswith("squeezenet"))) for name in LIBRARY]
)
def test_one_command_makes_a_component_of_a_librarys_network(name: str, shared: Path, tmp_path: Path) -> None:
    weights, data = shared / "models" / f"{name}.safetensors", shared / "data"
    names = tmp_path / "names.txt"
    names.write_text("\n".join(imagenet_names(shared)))
    shown = load_data(data / "imagenette" / "train.parquet", max_images=40).of_classes(IMAGENET)
    save_folder(shown, tmp_path / "photographs")
    given = (LIBRARY[name][0], "--weights", weights, "--class-names", names, "--data", tmp_path / "photographs")
    task = ("--task", ",".join(IMAGENET), "--flops", 0.8)
    run("disassemble", *given, *task, "-o", tmp_path / "part.safetensors")
    part = by.load(tmp_path / "part.safetensors")
    assert part.manifest.selection.flops <= 0.8 * part.manifest.source.flops
    images = load_data(data / "imagenette" / "test.parquet", max_images=100).of_classes(IMAGENET)
    assert part.score(images.images, [images.classes[k] for k in images.labels.tolist()]) > 0.8


def imagenet_names(shared: Path) -> list[str]:
    """The thousand classes, in the order of the outputs."""
    pq = pytest.importorskip("pyarrow.parquet")
    metadata = pq.read_schema(shared / "data" / "imagenet-one-a-class" / "train.parquet").metadata
    return list(json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"])


# -- birds ---------------------------------------------------------------------------------------------------------

BIRDS = ("Passerina cyanea (Indigo Bunting)", "Haliaeetus leucocephalus (Bald Eagle)", "Cygnus atratus (Black Swan)")
HALF = 128 / 255


@pytest.fixture(scope="module")
def birds(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of birds, one JPEG file of each that ImageNet and the network's labels call the same in English."""
    pq = pytest.importorskip("pyarrow.parquet")
    folder, theirs = tmp_path_factory.mktemp("birds"), imagenet_names(shared)
    lines = (shared / "models" / "mobilenet_v2-coral-birds.labels.txt").read_text().splitlines()
    ours = {name.rpartition("(")[2].rstrip(")").casefold(): name for name in lines}
    for row in pq.read_table(shared / "data" / "imagenet-one-a-class" / "train.parquet").to_pylist():
        name = ours.get(theirs[row["label"]].partition(",")[0].casefold())
        if name is not None:
            (folder / name).mkdir()
            (folder / name / "one.jpg").write_bytes(row["image"]["bytes"])
    return folder


def test_birds_get_the_logits_of_torchs_own_pipeline(shared: Path, birds: Path, photographs: list[Path]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    weights = shared / "models" / "mobilenet_v2-coral-birds.safetensors"
    how = by.Preprocessing(size=(224, 224), fit="crop", channels=3, mean=(HALF,) * 3, std=(HALF,) * 3)
    source = load_source(f"{OWN}:birds", weights=weights, preprocessing=how)
    usual = load_source("torchvision:mobilenet_v2?num_classes=965", weights=weights, preprocessing=how)
    sized = transforms.Resize(224), transforms.CenterCrop(224), transforms.ToTensor()
    theirs = transforms.Compose([*sized, transforms.Normalize([HALF] * 3, [HALF] * 3)])
    paths = [*sorted(birds.glob("*/one.jpg")), *photographs[:10]]
    images = read_images(paths, 1)
    with torch.no_grad():
        ours = torch.cat([source.model(preprocess(x, how)) for x in images])
        wanted = torch.cat([source.model(theirs(Image.open(path).convert("RGB"))[None]) for path in paths])
        control = usual.model(preprocess(images[0], how))
    assert (ours - wanted).abs().max() < 1e-4
    assert (control - wanted[0]).abs().max() > 0.1  # torchvision pads on all sides


@pytest.mark.slow
def test_birds_of_a_folder_by_one_command(shared: Path, birds: Path, photographs: list[Path], tmp_path: Path) -> None:
    weights = shared / "models" / "mobilenet_v2-coral-birds.safetensors"
    given = (f"{OWN}:birds", "--weights", weights, "--class-names", weights.with_suffix(".labels.txt"))
    how = ("--size", "crop:224", "--mean", HALF, "--std", HALF)
    part = tmp_path / "part.safetensors"
    data = ("--data", birds, "--more-images", photographs[0].parent)
    said = run("disassemble", *given, *how, *data, "--task", ",".join(BIRDS), "--flops", 0.5, "-o", part)
    assert "agreement" in said.stdout
    made = by.load(part)
    assert made.manifest.selection.flops <= 0.5 * made.manifest.source.flops
    rows = json.loads(
        run(
            "evaluate",
            part,
            "--data",
            birds,
            "--including-calibration",
            "--source",
            given[0],
            "--weights",
            weights,
            "--json",
        ).stdout
    )
    accuracy = {row["name"]: row["accuracy"] for row in rows["rows"]}
    assert accuracy["restricted"] == accuracy["component"] == 100.0
    answers = json.loads(run("predict", part, *(birds / name for name in BIRDS), "--json").stdout)["predictions"]
    assert [answer["classes"][0]["name"] for answer in answers] == list(BIRDS)
