"""A recipe with the places of its keys in the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from brickyard.base._errors import OptionError
from brickyard.base._messages import told
from brickyard.recipes._schema import Recipe

Place = tuple[str | int, ...]
NAMED = ("zoo:", "torchvision:", "timm:")  # how sources start that are no files


@dataclass(frozen=True)
class RecipeFile:
    """A recipe that was read, with the place of everything in its file.

    Attributes:
        path: The file.
        recipe: What it says.
        content: Its bytes.
    """

    path: Path
    recipe: Recipe
    content: bytes
    marks: dict[Place, tuple[int, int]] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path:
        """The folder that paths in the recipe start from."""
        return self.path.parent

    def problem(self, place: Place, text: str) -> OptionError:
        """An error at a place of the recipe."""
        return OptionError("option-recipe-inconsistent", self.told(place, text))

    def told(self, place: Place, text: str) -> str:
        """A message with a place of the recipe before it."""
        while place and place not in self.marks:
            place = place[:-1]
        line, column = self.marks.get(place, (1, 1))
        return f"{self.path}:{line}:{column}: {told(text, 800)}"

    def resolved(self, text: str) -> str:
        """A text of a source or of data, with its path taken from the recipe's folder."""
        named = text.partition("?")[0] == "digits" or text.startswith(NAMED)
        return text if named else str(self.folder / text)


def key_of(name: str) -> str:
    return name.replace("_", "-")


def dotted(place: Place) -> str:
    return ".".join(str(part) for part in place if part != "key") or "the recipe"
