"""How objects look in notebooks: their text as a small table, and figures of matplotlib, which is an extra."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import escape

from brickyard.base._lazy import package
from brickyard.base._messages import tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: for colour-blind eyes
REST = "#d5d5d5"
MOST_ROWS, MOST_LETTERS = 40, 400
MOST_BARS = 60
_ROW = re.compile(r"^  (\S+(?: \S+)*?)(?::| ) +(.+)$")


def as_html(text: str) -> str:
    r"""A text of a heading and indented lines as a table of HTML; nothing in it is markup.

    Example:
        >>> from brickyard.base._notebook import as_html
        >>> as_html("part\n  classes      <b>")
        '<table><caption>part</caption><tbody><tr><th>classes</th><td>&lt;b&gt;</td></tr></tbody></table>'
    """
    heading, *lines = text.splitlines() or [""]
    more = len(lines) - MOST_ROWS
    rows = []
    for line in lines[:MOST_ROWS]:
        found = _ROW.match(line)
        name, value = found.groups() if found else ("", line.strip())
        rows.append(f"<tr><th>{escape(tidy(name))}</th><td>{escape(tidy(value, MOST_LETTERS))}</td></tr>")
    rows += [f"<tr><th></th><td>and {more:,} more</td></tr>"] if more > 0 else []
    return f"<table><caption>{escape(tidy(heading, MOST_LETTERS))}</caption><tbody>{''.join(rows)}</tbody></table>"


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of matplotlib that no window manager holds, and its panels, from left to right and top to bottom.

    Raises:
        OptionError: matplotlib is not installed.
    """
    package("matplotlib", "plots", "a figure")
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for panel in panels:
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.tick_params(axis="x", labelsize=7)
    return figure, panels


def draw_bars(ax: Axes, title: str, rows: Sequence[tuple[str, Sequence[float], float, str]]) -> None:
    """Horizontal bars from the top down; each row has a name, its coloured pieces, the whole, and a text at its end."""
    shown = rows[:MOST_BARS]
    most = max((whole for _, _, whole, _ in shown), default=1) or 1
    for place, (_, pieces, whole, text) in enumerate(shown):
        ax.barh(place, whole, color=REST)
        left = 0.0
        for number, piece in enumerate(pieces):
            ax.barh(place, piece, left=left, color=COLOURS[number % len(COLOURS)])
            left += piece
        _write(ax, max(whole, left) + 0.01 * most, place, text)
    ax.set_yticks(range(len(shown)), [tidy(name, 32) for name, *_ in shown], fontsize=8, parse_math=False)
    ax.set(ylim=(len(shown) - 0.4, -0.6), xlim=(0, 1.25 * most))
    ax.spines[["top", "right"]].set_visible(False)
    left_out = f"; {len(rows) - len(shown)} more are left out" if len(rows) > len(shown) else ""
    ax.set_title(f"{tidy(title, 100)}{left_out}", fontsize=9, loc="left", parse_math=False)


def _write(ax: Axes, x: float, y: float, text: str) -> None:
    ax.text(x, y, text, va="center", fontsize=8, parse_math=False)


def draw_heat(ax: Axes, title: str, names: Sequence[str], values: Any) -> None:
    """A heat map of classes by channels, from nothing to the strongest."""
    ax.imshow(values, aspect="auto", cmap="Blues", vmin=0, vmax=float(values.max()) or 1.0, interpolation="nearest")
    ax.set_yticks(range(len(names)), [tidy(name, 24) for name in names], fontsize=7, parse_math=False)
    ax.set_title(tidy(title, 60), fontsize=9, loc="left", parse_math=False)
