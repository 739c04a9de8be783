"""Templates of pages and cards: values are escaped, as HTML in pages and as Markdown in cards."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from brickyard.base._doubts import doubts
from brickyard.base._messages import tidy
from brickyard.base._records import Preprocessing
from brickyard.component._describe import agreement_text, merged_text

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~&$@]|:(?=//)|(?<=\bwww)\.|^[-+=](?=\s|$|-|=))", re.IGNORECASE)
_NUMBERED = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")


@cache
def page_environment() -> Environment:
    """Templates of HTML: values are escaped, and control, direction and invalid characters removed."""
    environment = _environment(autoescape=True, finalize=_clean)
    environment.filters.update(
        tidy=tidy,
        preprocessing=_preprocessing,
        agreement=agreement_text,
        doubts=doubts,
        merged=merged_text,
        thousands=lambda value: f"{value:,}",
        fixed=lambda value, digits=1: f"{value:.{digits}f}",
        general=lambda value, digits=6: f"{value:.{digits}g}",
        percent=lambda value: f"{min(100.0, max(0.0, value)):.1f}%",
    )
    environment.tests["long"] = lambda text: any(len(word) > 16 for word in text.split())
    return environment


@cache
def card_environment() -> Environment:
    """Templates of Markdown: values become a single line without active markup."""
    environment = _environment(autoescape=False, finalize=markdown)
    environment.filters.update(
        code=_code,
        quoted=lambda text: Markup(json.dumps(_code(text), ensure_ascii=False)),
        general=lambda value: f"{value:g}",
        thousands=lambda value: f"{value:,}",
    )
    return environment


def _environment(**options: Any) -> Environment:
    loader = PackageLoader("brickyard.reports")
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)


def _clean(value: Any) -> Any:
    """Remove control, direction and invalid characters; line ends become spaces."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() else " " if c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in value)


def _preprocessing(how: Preprocessing) -> str:
    words = []
    if how.size is not None:
        ways = {
            "letterboxed" if how.fit == "letterbox" else how.fit: True,
            f"{how.crop:.3g} of the side": how.crops and how.crop < 1,
            how.interpolation: how.interpolation != "bilinear",
            "not antialiased": not how.antialias,
            f"filled with {how.fill:.3g}": how.fills and how.fill > 0,
            "in the top left corner": how.fills and how.place == "corner",
        }
        words.append(f"{how.size[0]}x{how.size[1]} ({', '.join(way for way, told in ways.items() if told)})")
    if how.channels is not None:
        words.append("greyscale" if how.channels == 1 else "colour")
    if how.order == "bgr":
        words.append("BGR")
    if how.mean is not None and how.std is not None:
        mean, std = (" ".join(f"{value:.3g}" for value in values[:8]) for values in (how.mean, how.std))
        words.append(f"mean {mean}, std {std}")
    return "; ".join(words) or "none"


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _code(text: str) -> Markup:
    """Text as inline code."""
    return Markup(_line(text).replace("`", "'") or " ")


def markdown(value: Any) -> Any:
    r"""Escape external text to one line of Markdown without active markup; Markdown objects are kept.

    Example:
        >>> from brickyard.reports._templates import markdown
        >>> markdown("a\n# *b*")
        'a \\# \\*b\\*'
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _NUMBERED.sub(r"\1\\\2", _MARKDOWN.sub(r"\\\1", _line(value)))
