"""What a page orders to be made, checked word by word before anything is done with it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from brickyard.base._errors import OptionError
from brickyard.base._frozen import Frozen, first_problem
from brickyard.workbench._limits import Limits

NETWORK = re.compile(
    r"(zoo|torchvision|timm):([A-Za-z0-9_.-]{1,100})(?:\?([a-z_]{1,20}=[0-9.]{1,8}(?:&[a-z_]{1,20}=[0-9.]{1,8})*))?"
)
PYTHON = re.compile(r"\.py(:|$)")
NETWORK_OPTIONS = frozenset({"classes", "num_classes", "width", "channels", "in_chans"})
MOST_CLASSES = 1_000  # of one brick
Short = Annotated[str, Field(max_length=200)]
Place = Annotated[str, Field(min_length=1, max_length=1000)]
Class = Annotated[str, Field(min_length=1, max_length=1024)]
Share = Annotated[float, Field(gt=0, le=1)]


class SourceOrder(Frozen):
    """Which trained classifier.

    Attributes:
        network: `zoo:NAME`, `torchvision:NAME` or `timm:NAME`; "": the file tells.
        file: A file beside the server, by its name in the list.
        upload: Or a file that was sent.
        names: Class names with commas between them; "": as the source or the pictures have them.
        names_file: Or a file of class names beside the server.
        imagenet: Or those of ImageNet's 1,000 classes.
        size, mean, std: Of the preprocessing, as on the command line; "": as the source has them.
    """

    network: Short = ""
    file: Place | None = None
    upload: Short | None = None
    names: Annotated[str, Field(max_length=50_000)] = ""
    names_file: Place | None = None
    imagenet: bool = False
    size: Short = ""
    mean: Short = ""
    std: Short = ""

    def check(self) -> None:
        """Refuse what does not go together, and names that could lead elsewhere.

        Raises:
            OptionError: There is such a thing.
        """
        if (self.file is None) == (self.upload is None):
            raise OptionError("option-requires-option", "a source needs one file of weights; choose or send one")
        if bool(self.names) + (self.names_file is not None) + self.imagenet > 1:
            raise OptionError("option-conflict", "class names come from one place; keep one of those that were given")
        if not self.network:
            return
        found = NETWORK.fullmatch(self.network)
        asked = {pair.partition("=")[0] for pair in (found[3] or "").split("&") if pair} if found else set()
        if PYTHON.search(self.network):
            raise OptionError(
                "option-source-unknown",
                f"network {self.network[:80]!r} is a Python file, and this page runs none; cut on the command line "
                f"with `brickyard disassemble {self.network[:80]} ...`, then add the brick with `brickyard yard add`",
            )
        if found is None or not asked <= NETWORK_OPTIONS:
            raise OptionError(
                "option-source-unknown",
                f"network {self.network[:80]!r} is not understood; give zoo:NAME, torchvision:NAME or timm:NAME, with "
                f"options {', '.join(sorted(NETWORK_OPTIONS))} such as zoo:vgg16?width=0.25",
            )


class ShownOrder(Frozen):
    """A picture that was sent, and the number of its class, if the visitor said it."""

    id: Short
    label: Annotated[int, Field(ge=0, lt=1 << 20)] | None = None


class PicturesOrder(Frozen):
    """Which pictures to calibrate with: data beside the server (`digits` is built in), or pictures that were sent.

    Attributes:
        data: A file or folder beside the server, by its name in the list.
        labels: Whether to read its labels; otherwise the source's own answers stand in their place.
        shown: Pictures that were sent.
    """

    data: Place | None = None
    labels: bool = True
    shown: Annotated[tuple[ShownOrder, ...], Field(max_length=4_000)] = ()


class Order(Frozen):
    """What is to be done: look at a source, cut bricks out of it, or make a yard to play with.

    Attributes:
        kind: What.
        task: The classes of the brick, and the source's classes that each stands for.
        sizes: Shares of the source's FLOPs, one brick each.
        reject: Whether it gets an output for "none of these".
    """

    kind: Literal["look", "cut", "demo"]
    source: SourceOrder | None = None
    pictures: PicturesOrder = PicturesOrder()
    task: Annotated[
        dict[Class, Annotated[tuple[Class, ...], Field(min_length=1, max_length=MOST_CLASSES)]],
        Field(max_length=MOST_CLASSES),
    ] = {}
    sizes: tuple[Share, ...] = ()
    reject: bool = False

    @classmethod
    def of(cls, value: Any, limits: Limits) -> Order:
        """Read what a page sends.

        Raises:
            OptionError: It is no order, or has not all that it needs.
        """
        try:
            order = cls.model_validate(value)
        except ValidationError as error:
            why = f"what was sent is not an order for a brick: {first_problem(error)}"
            raise OptionError("option-plan-invalid", f"{why}; use the workbench's own page") from None
        if order.kind == "demo":
            return order
        if order.source is None:
            raise OptionError("option-requires-option", "a brick is cut from a source, and none was named; choose one")
        order.source.check()
        if order.pictures.data is not None and order.pictures.shown:
            raise OptionError(
                "option-conflict", "pictures come from beside the server or from the page; leave one of them out"
            )
        if order.kind == "cut":
            order._check_cut(limits)
        return order

    def _check_cut(self, limits: Limits) -> None:
        if self.pictures.data is None and not self.pictures.shown:
            raise OptionError("option-needs-data", "a brick is cut with pictures; choose or drop some")
        if not self.task:
            raise OptionError("option-empty", "no class was chosen; choose one or more")
        if not 1 <= len(self.sizes) <= limits.sizes or len(set(self.sizes)) < len(self.sizes):
            raise OptionError("option-range", f"sizes must be 1 to {limits.sizes} different shares, such as 0.5")


def size_name(size: float) -> str:
    """What the file of a brick of this size is called.

    Example:
        >>> from brickyard.workbench._orders import size_name
        >>> size_name(0.5), size_name(1.0)
        ('0.5.safetensors', '1.safetensors')
    """
    return f"{size:.6g}.safetensors"
