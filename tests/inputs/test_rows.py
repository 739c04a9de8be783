"""Data as other libraries hand them over: dicts, PIL's pictures, columns; the same numbers as from tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

import brickyard as by
from brickyard.inputs._batches import Images, class_names
from brickyard.testing import chain
from errors import refused

PIXELS = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
LABELS = torch.arange(24) % 4
PICTURES = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in PIXELS]
NAMES = ("ant", "bee", "cat", "dog")


class Rows(Dataset[Any]):
    """A data set whose rows are made by a function of the place."""

    def __init__(self, row: Any) -> None:
        self.row = row

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, k: int) -> Any:
        return self.row(k)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return ({"image": PICTURES[k], "label": int(LABELS[k])} for k in range(24))


def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    """As scripts for transformers have it."""
    return {
        "pixel_values": torch.stack([torch.from_numpy(np.array(row["image"])).permute(2, 0, 1) for row in rows]),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


pictures = Rows(lambda k: {"image": PICTURES[k], "label": int(LABELS[k])})
FORMS: dict[str, Any] = {
    "rows of pictures": pictures,
    "pairs of pictures": Rows(lambda k: (PICTURES[k], int(LABELS[k]))),
    "rows of tensors": Rows(lambda k: {"pixel_values": PIXELS[k], "labels": LABELS[k]}),
    "other names": Rows(lambda k: {"img": PICTURES[k], "fine_label": int(LABELS[k]), "path": "x"}),
    "a loader of rows": DataLoader(Rows(lambda k: {"pixel_values": PIXELS[k], "labels": LABELS[k]}), 5),
    "a loader with its own collate": DataLoader(pictures, 5, collate_fn=collate),
    "a list of rows": [{"image": PICTURES[k], "label": int(LABELS[k])} for k in range(24)],
    "batches as dicts": [{"pixel_values": PIXELS[k : k + 6], "labels": LABELS[k : k + 6]} for k in range(0, 24, 6)],
    "one dict": {"pixel_values": PIXELS, "labels": LABELS},
    "a dict of arrays": {"image": PIXELS.numpy(), "label": LABELS.numpy()},
    "a stream of rows": Stream(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_relevances(form: str) -> None:
    plain = by.locate(chain(), (PIXELS, LABELS), per_class=3)
    found = by.locate(chain(), FORMS[form], per_class=3)
    assert torch.equal(found.scores, plain.scores)
    assert not torch.equal(found.scores, by.locate(chain(), (PIXELS.flip(0), LABELS), per_class=3).scores)


def test_pictures_of_several_sizes_are_brought_to_that_of_the_preprocessing() -> None:
    mixed = [picture.resize((8 + k % 3, 9 + k % 2)) for k, picture in enumerate(PICTURES)]
    mixed[3] = mixed[3].convert("L")
    how = by.Preprocessing(size=(8, 8), channels=3)
    images = Images(Rows(lambda k: {"image": mixed[k], "label": int(LABELS[k])}), how)
    batch = torch.cat([x for x, _ in images.batches(batch_size=5)])
    for k, picture in enumerate(mixed):
        resized = picture.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
        wanted = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
        assert (batch[k] - wanted).abs().max() < 1.01 / 255
    with refused("data-not-batchable"):
        list(Images(Rows(lambda k: (mixed[k], int(LABELS[k])))).batches(batch_size=5))


BAD: dict[str, Any] = {
    "no labels": Rows(lambda k: {"image": PICTURES[k], "text": "cat"}),
    "no images": Rows(lambda k: {"label": 1}),
    "splits": {"train": pictures, "test": pictures},
    "three values": Rows(lambda k: (PIXELS[k], 1, 2)),
}


@pytest.mark.parametrize("form", BAD)
def test_what_is_missing_is_named(form: str) -> None:
    code = {"no labels": "data-not-batchable", "no images": "data-type"}.get(form, "data-type")
    with refused(code):
        by.locate(chain(), BAD[form])


def test_data_sets_of_hugging_faces_library(tmp_path: Any) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    data = datasets.Dataset.from_dict({"image": PICTURES, "label": LABELS.tolist()}, features=features)
    assert class_names(data) == NAMES
    relevance = by.locate(chain(), data, per_class=3)
    assert relevance.classes == NAMES
    assert torch.equal(relevance.scores, by.locate(chain(), (PIXELS, LABELS), per_class=3).scores)
    data = data.with_transform(lambda rows: collate([{"image": i, "label": k} for i, k in zip(*rows.values())]))  # noqa: B905
    assert torch.equal(by.locate(chain(), data, per_class=3).scores, relevance.scores)
    with refused("data-type", "train"):
        by.locate(chain(), datasets.DatasetDict(train=data))
