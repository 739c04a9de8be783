"""HTML that is safe by construction: what is not markup made here is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from brickyard.base._messages import tidy

_VOID = {"meta", "img", "br"}


class Html(str):
    """Text that is markup already; only `tag` and its like make it."""

    __slots__ = ()


Child = Any  # text, a number, Html, None, or an iterable of these


def clean(text: str) -> str:
    """Text without control, direction and broken characters; line ends become spaces."""
    return "".join(c if c.isprintable() else " " if c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def joined(*children: Child) -> Html:
    """Children as markup, one after the other; text is escaped."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(html.escape(clean(child)))
        elif isinstance(child, Iterable):
            parts.append(joined(*child))
        elif child is not None:
            parts.append(html.escape(str(child)))
    return Html("".join(parts))


def tag(name: str, /, *children: Child, **attributes: Any) -> Html:
    """An element. Attributes that are None or False are left out; `class_` is `class`, `_` is `-`.

    Example:
        >>> from brickyard.reports._markup import tag
        >>> tag("p", "a < b", tag("b", 2), class_="x", title='"', hidden=None)
        '<p class="x" title="&quot;">a &lt; b<b>2</b></p>'
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{html.escape(clean(str(value)))}"')
    opening = f"<{' '.join(words)}>"
    return Html(opening if name in _VOID else f"{opening}{joined(*children)}</{name}>")


def short(text: str, most: int = 48) -> Html:
    """A name from outside: cut where it is long, with the whole of it to be pointed at."""
    shown = tidy(text, most)
    long = any(len(word) > 16 for word in shown.split())  # may be broken anywhere
    return tag("bdi", shown, class_="long" if long else None, title=tidy(text, 400) if shown != text else None)


def table(
    caption: Child, header: Sequence[Child], rows: Iterable[Sequence[Child]], *, numbers: bool = True, **attributes: Any
) -> Html:
    """A table that scrolls by itself where it is wide; the first cell of every row is its header."""
    head = tag("thead", tag("tr", *[tag("th", cell, scope="col") for cell in header]))
    lines = [tag("tr", tag("th", first, scope="row"), *[tag("td", cell) for cell in rest]) for first, *rest in rows]
    kind = "numbers" if numbers else None
    inner = tag("table", tag("caption", caption), head, tag("tbody", *lines), class_=kind, **attributes)
    return tag("div", inner, class_="wide", tabindex="0", role="group", aria_label="table; scrolls sideways")
