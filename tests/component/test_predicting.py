"""Predicting: every form of the same picture gives the same numbers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix

import brickyard as by
from brickyard.component._predictor import REJECT
from brickyard.testing import chain
from errors import refused

HOW = by.Preprocessing(size=(8, 8), channels=3, mean=(0.5,), std=(0.2,))
DATA = (torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 4)
RGB = torch.randint(0, 256, (9, 11, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8).numpy()


@pytest.fixture(scope="module")
def model() -> by.Component:
    relevance = by.locate(chain(), DATA, classes=["cat", "dog", "owl", "fox"], preprocessing=HOW)
    return by.disassemble(chain(), relevance, task=["owl", "cat"], reject=True)


def expected(model, array) -> torch.Tensor:
    """By hand: (height, width, 3) bytes -> probabilities."""
    x = torch.from_numpy(array.copy()).permute(2, 0, 1)[None].contiguous()
    return model(model.preprocess(x)).double().softmax(1)


def test_every_form_of_one_picture(model, tmp_path, monkeypatch) -> None:
    picture = Image.fromarray(RGB)
    picture.save(tmp_path / "x.png")
    first = torch.from_numpy(RGB.copy()).permute(2, 0, 1).contiguous()
    wanted = expected(model, RGB)
    backwards = np.ascontiguousarray(RGB[:, ::-1])[:, ::-1]  # negative strides
    read_only = RGB.copy()
    read_only.flags.writeable = False
    forms = {
        "path": tmp_path / "x.png",
        "text": str(tmp_path / "x.png"),
        "PIL": picture,
        "array": RGB,
        "backwards": backwards,
        "read-only": read_only,
        "Fortran": np.asfortranarray(RGB),
        "tensor": first,
        "batch": first[None],
        "array batch": first[None].numpy(),
        "channels last": RGB[None],
        "channels last backwards": backwards[None],
        "list": [picture],
        "tuple": (RGB,),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, form in forms.items():
            assert torch.equal(model.predict_proba(form), wanted), name
    fractions = model.predict_proba(RGB.astype(np.float32) / 255)  # which are not rounded when they are resized
    assert 0 < float((fractions - wanted).abs().max()) < 0.01
    mixed = [forms[name] for name in ("path", "PIL", "array", "text", "tensor")]
    assert torch.equal(model.predict_proba(mixed), wanted.expand(5, -1))
    assert not torch.allclose(model.predict_proba(np.ascontiguousarray(RGB[::-1])), wanted)  # the control
    monkeypatch.chdir(tmp_path)
    assert torch.equal(model.predict_proba("x.png"), wanted)


def test_batches_with_channels_first_and_last(model) -> None:
    last = np.stack([RGB, RGB[::-1], RGB[:, ::-1]])
    wanted = torch.cat([expected(model, one) for one in last])
    for batch in (last, last.transpose(0, 3, 1, 2), torch.from_numpy(last).permute(0, 3, 1, 2)):
        torch.testing.assert_close(model.predict_proba(batch, batch_size=2), wanted)
    grey = last[..., :1]
    torch.testing.assert_close(model.predict_proba(grey), model.predict_proba(grey.repeat(3, 3)))
    with refused("data-wrong-size", "3"):
        model.predict_proba(torch.from_numpy(last))  # tensors have their channels first


@pytest.mark.parametrize("as_file", [True, False])
def test_what_pictures_may_be(model, tmp_path, as_file) -> None:
    grey = RGB[..., 0]
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees clockwise
    palette = Image.fromarray(RGB).quantize(16)
    alpha = np.concatenate([RGB, np.full((9, 11, 1), 255, np.uint8)], 2)
    alpha[:4, :, 3] = 0
    seen = RGB.copy()
    seen[:4] = 255
    three = np.repeat(grey[..., None], 3, 2)
    cases = [
        ("grey.png", Image.fromarray(grey), three, {}),
        ("16bit.png", Image.fromarray(grey.astype(np.uint16) * 257), three, {}),
        ("16bit.tif", Image.fromarray(grey.astype(np.uint16) * 257), three, {}),
        ("palette.png", palette, np.asarray(palette.convert("RGB")), {}),
        ("alpha.png", Image.fromarray(alpha), seen, {}),
        ("turned.png", Image.fromarray(RGB), np.rot90(RGB, -1), {"exif": turned}),
        ("bits.png", Image.fromarray(grey > 127), np.where(three > 127, 255, 0).astype(np.uint8), {}),
    ]
    for name, picture, pixels, options in cases:
        picture.save(tmp_path / name, **options)
        given = tmp_path / name if as_file else Image.open(tmp_path / name)
        torch.testing.assert_close(model.predict_proba([given]), expected(model, pixels), msg=name)
    torch.testing.assert_close(model.predict_proba(grey), expected(model, three))


def test_as_scikit_learn_has_it(model) -> None:
    images = DATA[0]
    assert model.classes_.tolist() == ["owl", "cat", REJECT]
    assert by.assemble([model]).classes_.tolist() == ["owl", "cat", REJECT]
    probabilities, names = np.asarray(model.predict_proba(images)), model.predict(images)
    assert model.classes_[probabilities.argmax(1)].tolist() == names
    assert np.allclose(probabilities.sum(1), 1)
    assert len(set(names)) > 1
    truth = [*names[:20], *(["owl" if name == "cat" else "cat" for name in names[20:]])]
    assert model.score(images, truth) == accuracy_score(truth, names) == 20 / 24
    assert model.score(images, np.array(truth)) == 20 / 24
    assert confusion_matrix(truth, names, labels=model.classes_).sum() == 24
    assert model.predict_proba([]).shape == (0, 3)
    assert model.predict([]) == []


def test_what_is_refused(model, tmp_path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for images, code, *quoted in (
        (tmp_path, "data-unreadable-image"),
        (tmp_path / "text.png", "data-unreadable-image"),
        ([Image.new("RGB", (9, 9)), 3], "data-type"),
        (torch.zeros(9, 9), "data-type", "Tensor"),
        (np.zeros((2, 3, 4, 5, 6)), "data-type", "(2, 3, 4, 5, 6)"),
        (np.zeros((9, 9, 4), np.uint8), "data-wrong-size", "4"),
        (np.zeros((9, 9, 3), np.int64), "data-type", "torch.int64"),
        (np.array([[["a"] * 3]]), "data-type", "<U1"),
        (Image.new("F", (9, 9)), "data-unreadable-image"),
    ):
        with refused(code, *quoted):
            model.predict(images)
