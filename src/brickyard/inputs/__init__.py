"""Images and labels: decoding, data sets, preprocessing, batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.base._records import Preprocessing as Preprocessing
    from brickyard.inputs._batches import Images as Images
    from brickyard.inputs._box_data import BoxData as BoxData
    from brickyard.inputs._box_data import load_box_data as load_box_data
    from brickyard.inputs._box_table import Truth as Truth
    from brickyard.inputs._datasets import ImageData as ImageData
    from brickyard.inputs._datasets import load_data as load_data
    from brickyard.inputs._preprocessing import preprocess as preprocess

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "inputs._batches": "Images",
        "inputs._box_data": "BoxData load_box_data",
        "inputs._box_table": "Truth",
        "inputs._datasets": "ImageData load_data",
        "inputs._preprocessing": "preprocess",
        "base._records": "Preprocessing",
    },
)
