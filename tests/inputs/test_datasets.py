"""Image data, preprocessing and training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import brickyard as by
from brickyard.base._classes import parse_classes
from brickyard.inputs._datasets import ImageData, load_data
from brickyard.inputs._decoding import decode_image
from brickyard.inputs._preprocessing import preprocess
from brickyard.training._sources import accuracy, build_seeded, train
from errors import refused


def test_digits_are_split_by_class_and_never_overlap() -> None:
    train_part, test_part = load_data("digits"), load_data("digits", split="test")
    assert len(train_part) + len(test_part) == 1797
    for k in range(10):
        share = (train_part.labels == k).sum() / ((train_part.labels == k).sum() + (test_part.labels == k).sum())
        assert abs(float(share) - 0.7) < 0.01
    again = load_data("digits")
    assert torch.equal(again.images, train_part.images)
    assert int(train_part.images.max()) == 255
    some = load_data("digits?split=test&classes=0-2,7")
    assert set(some.labels.tolist()) == {0, 1, 2, 7}
    assert len(some.classes) == 10


def test_parts_of_data() -> None:
    data = load_data("digits")
    a, b = data.split(0.25, seed=1)
    rows = {image.numpy().tobytes() for image in a.images} & {image.numpy().tobytes() for image in b.images}
    assert len(a) + len(b) == len(data)
    assert len(rows) < 5  # a few digits are drawn alike
    assert not torch.equal(a.labels, a.labels.sort().values)
    few = data.renumbered(["7", "2"])
    assert few.classes == ("7", "2")
    assert torch.equal((few.labels == 0).sum(), (data.labels == 7).sum())
    with refused("task-unknown-class", "'x'"):
        data.of_classes(["x"])
    with refused("data-shape"):
        ImageData(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.long), ("a",))
    with refused("data-type"):
        ImageData(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0.7, 0.1]), ("a",))
    mask = data.labels == 3
    assert set(data.subset(mask).labels.tolist()) == {3}
    with refused("data-missing"):
        load_data("/nowhere/at/all")
    with refused("option-unknown-name", "'colour'"):
        load_data("digits?colour=red")


def test_classes_from_text() -> None:
    names = ["cat", "dog, wild", "3", "x-ray"]
    assert parse_classes(["0-2,1", "cat", "dog, wild", "3", "x-ray"], names) == [
        0, 1, 2, 1, "cat", "dog, wild", "3", "x-ray",
    ]  # fmt: skip
    with refused("task-range", "'2-0'"):
        parse_classes(["2-0"], names)


# -- preprocessing -------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    before=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    after=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    seed=st.integers(0, 5),
)
def test_resizing_is_what_torch_does(before, after, seed) -> None:
    x = torch.rand(2, 3, *before, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = torch.nn.functional.interpolate(x, after, mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(preprocess(x, by.Preprocessing(size=after)), expected, rtol=1e-6, atol=1e-6)


def test_preprocessing_step_by_step() -> None:
    raw = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    how = by.Preprocessing(size=(6, 6), fit="pad", channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = torch.zeros(2, 3, 6, 6)
    expected[:, :, 1:5, 1:5] = raw.float() / 255
    for c in range(3):
        expected[:, c] = (expected[:, c] - how.mean[c]) / how.std[c]
    torch.testing.assert_close(preprocess(raw, how), expected)
    assert torch.equal(preprocess(raw.float() / 255, by.Preprocessing()), raw.float() / 255)
    colour = torch.rand(2, 3, 4, 4)
    luma = (colour * torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(preprocess(colour, by.Preprocessing(channels=1)), luma)
    for images, code in [
        (torch.rand(3, 4, 4), "data-shape"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "data-type"),
        (torch.rand(1, 2, 4, 4), "data-wrong-size"),
    ]:
        with refused(code):
            preprocess(images, how)


# -- training ------------------------------------------------------------------------------------------------


def test_training_learns_and_is_the_same_for_a_seed() -> None:
    how = by.Preprocessing(size=(16, 16), mean=(0.3,), std=(0.4,))
    data = load_data("digits?classes=0-2").renumbered([0, 1, 2])
    test = load_data("digits?classes=0-2", split="test").renumbered([0, 1, 2])
    state = torch.get_rng_state()
    models = []
    for seed in (0, 0, 1):
        model = build_seeded("cnn", 3, 0.25, seed=seed, channels=1)
        before = accuracy(model, test, how)
        train(model, data, preprocessing=how, epochs=4, lr=0.1, batch_size=32, seed=seed, augment=seed == 1)
        assert accuracy(model, test, how) > max(0.7, before)
        assert not model.training
        models.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])
    assert torch.equal(torch.get_rng_state(), state)
    with refused("option-range", "epochs"):
        train(model, data, preprocessing=how, epochs=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sides", [(60, 91), (100, 67), (47, 45), (20, 27), (44, 44)])
def test_cropping_is_what_torchvision_does_to_a_picture(sides, interpolation) -> None:
    """Resize(50), CenterCrop(44) of the same picture, which rounds to whole grey levels after each side."""
    from PIL import Image

    transforms = pytest.importorskip("torchvision.transforms")
    noise = np.random.RandomState(0).randint(0, 255, (sides[0] // 4, sides[1] // 4, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(sides[::-1])
    mode = transforms.InterpolationMode(interpolation)
    steps = transforms.Compose([transforms.Resize(50, interpolation=mode), transforms.CenterCrop(44)])
    expected = torch.from_numpy(np.array(steps(picture))).permute(2, 0, 1)
    raw = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    how = by.Preprocessing(size=(44, 44), fit="crop", crop=44 / 50, interpolation=interpolation)
    far = [(preprocess(raw, way)[0] * 255 - expected).abs().max() for way in (how, by.Preprocessing(size=(44, 44)))]
    assert far[0] < (1.1 if interpolation == "bilinear" else 2.1)  # cubic values beyond 0 and 255 are cut after each
    assert far[1] > 5


@pytest.mark.parametrize("fit", ["resize", "crop", "pad"])
def test_a_picture_goes_one_way_from_a_folder_and_from_predict(fit, tmp_path) -> None:
    from PIL import Image

    how = by.Preprocessing(size=(16, 16), fit=fit, crop=0.8 if fit == "crop" else 1.0, mean=(0.4,), std=(0.2,))
    noise = np.random.RandomState(1)
    for index, sides in enumerate([(31, 20), (14, 40), (12, 9)]):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(noise.randint(0, 255, (*sides, 3), dtype=np.uint8)).save(tmp_path / "a" / f"{index}.png")
    data = load_data(tmp_path, size=how)
    for index, stored in enumerate(data.images):
        read = decode_image(tmp_path / "a" / f"{index}.png").unsqueeze(0)
        assert torch.equal(preprocess(stored[None], how), preprocess(read, how))
        other = how.model_copy(update={"interpolation": "bicubic"})  # the control
        assert index != 1 or not torch.equal(preprocess(stored[None], how), preprocess(read, other))
    assert data.images.dtype == torch.uint8


def test_colours_of_a_folder_go_the_same_way(tmp_path) -> None:
    from PIL import Image

    noise = np.random.RandomState(2)
    for channels in (1, 3):
        how = by.Preprocessing(size=(9, 11), channels=channels, mean=(0.4,), std=(0.2,))
        for index, shape in enumerate([(31, 20, 3), (14, 40, 3)]):
            (tmp_path / "a").mkdir(exist_ok=True)
            Image.fromarray(noise.randint(0, 255, shape, dtype=np.uint8)).save(tmp_path / "a" / f"{index}.png")
        data = load_data(tmp_path, size=how)
        for index, stored in enumerate(data.images):
            read = decode_image(tmp_path / "a" / f"{index}.png").unsqueeze(0)
            assert torch.equal(preprocess(stored[None], how), preprocess(read, how))
