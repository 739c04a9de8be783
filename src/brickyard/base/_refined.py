"""Detectors whose boxes of a class are named further by a classifier, as records."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from brickyard.base._frozen import Frozen, Name
from brickyard.base._history import Versions
from brickyard.base._records import AssemblyFile, ComponentFile

CROPS = 300  # of a class in an image, at most
REFINERS = 16  # classifiers, at most


class RefinedManifest(Frozen):
    """What a refined detector is.

    Attributes:
        classes: Its class names: those of the detector, then those of each classifier.
        refines: For each classifier, the class of the detector whose boxes it names further.
        margin: By which share of its width and height a box is enlarged to each side before it is cut out.
        crops: How many boxes of a class are looked at in an image, at most, the surest first.
    """

    kind: Literal["refined"] = "refined"
    classes: Annotated[tuple[Name, ...], Field(min_length=2)]
    refines: Annotated[tuple[Name, ...], Field(min_length=1, max_length=REFINERS)]
    margin: Annotated[float, Field(ge=0, le=1)]
    crops: Annotated[int, Field(ge=1, le=CROPS)]
    versions: Versions
    created: str

    @model_validator(mode="after")
    def _names_fit(self) -> RefinedManifest:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have one name")
        if len(set(self.refines)) != len(self.refines) or not set(self.refines) < set(self.classes):
            raise ValueError("the classes that are named further are not each one of the detector's, once")
        return self


class RefinedFile(Frozen):
    """The JSON text of a refined detector's file: with the texts of the detector and of the classifiers.

    The detector's tensors begin with "detector.", those of the first classifier with "classifiers.0.".
    """

    manifest: RefinedManifest
    detector: ComponentFile | AssemblyFile
    classifiers: Annotated[tuple[ComponentFile | AssemblyFile, ...], Field(min_length=1, max_length=REFINERS)]
