"""The page that says what came of all networks."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from idioms.writing import IDIOMS

INTRO = """\
# Idioms

Written by `python tests/idioms --count {count} --write`, which draws networks from the ways in which people write a
forward method, and compares every cut with the model itself.

Brickyard {version}, torch {torch}.

Each network is a module of its own, drawn from a number: one to four idioms out of {idioms}, each in one of many
spellings. There are views and shape arithmetic, lists that split, chunk and unbind give, subscripts, keywords of torch
and of numpy, layers that run several times, steps in place, gates, residuals and concatenations, grouped and transposed
convolutions, norms, attention, sums of products, weights mixed for each image, and layers that Brickyard does not know.
The networks are small (4 to 12 channels, images of 8 by 8) and compute in float64.

The judge is the model as it was written, run eagerly: hooks set the inputs of its convolutions and linear layers to
zero where channels are dropped. It uses none of Brickyard's code, and asks the graph only which channel lies where in
a layer's input, and which means and sums run over channels. Every network is compared uncut, with one channel dropped
and with about half of all channels dropped, on three different images and on one. The two cuts are also laid side by
side, and compared with themselves. One network in ten becomes a component that is written to a file and read again;
its outputs must be the same bit for bit.
"""


def page(found: list[dict[str, Any]], count: int, version: str, torch_version: str) -> str:
    """The text of `docs/idioms.md`."""
    counts = Counter(row["outcome"] for row in found)
    judged = [row for row in found if row["outcome"] != "not drawn"]
    total = max(1, len(judged))
    lines = [INTRO.format(count=count, version=version, torch=torch_version.partition("+")[0], idioms=len(IDIOMS))]
    if len(found) < count:
        lines.append(f"The run below was stopped after {len(found):,} of {count:,} networks.\n")
    lines += ["## Results\n", "| outcome | networks | share |", "|---|---|---|"]
    for name, meaning in (
        ("right", "right in every comparison"),
        ("refused", "refused, with a code and a reason"),
        ("wrong", "wrong: an output differs"),
        ("raw error", "an error that is not Brickyard's"),
    ):
        lines.append(f"| {meaning} | {counts[name]:,} | {100 * counts[name] / total:.2f}% |")
    lines += [f"\n{counts['not drawn']:,} more were drawn that do not run in torch either.\n"]
    done, skipped = (sum(row["cuts"][k] for row in judged) for k in (0, 1))
    control = sum(row["control"] for row in judged)
    channels, free = (sum(row["axes"][k] for row in judged) for k in (0, 1))
    saved = Counter(row["saved"] for row in judged if row["saved"])
    not_saved = ", ".join(f"`{name.removeprefix('refused: ')}` {n}" for name, n in saved.most_common() if name != "yes")
    lines += [
        f"- **Cuts compared**: {done:,}. In {control:,} networks a cut changed the outputs, as it should. {skipped:,} cuts",
        "  could not be compared, since a reader of the channels is not a layer that a hook can stand before.",
        f"- **Channels free to cut**: {100 * free / max(1, channels):.0f}% of {channels:,}, without the input and the classes.",
        f"- **Saved and read again, bit for bit**: {saved['yes']:,}. Not made or not saved, with a reason: {not_saved or 'none'}.",
        "",
        "## The most frequent reasons of refusal\n",
        "| networks | code | in words |",
        "|---|---|---|",
    ]
    reasons = Counter((row["code"], _shape(row["what"])) for row in judged if row["outcome"] == "refused")
    lines += [f"| {n:,} | `{code}` | {text} |" for (code, text), n in reasons.most_common(10)]
    return "\n".join(lines) + "\n"


def _shape(message: str) -> str:
    """The first words of a reason, without names and numbers."""
    text = message.partition(": ")[2]
    text = re.sub(r" in layer '[^']*'| at <drawn \d+> line \d+ \(.*?\)(?=:)", "", text)
    text = re.sub(r"'[^']*'|\[[^\]]*\]|\([^)]*\)", "...", text)
    text = re.sub(r"\d[\d.,e+-]*", "0", text).replace("|", " ").replace("<", " ").replace(">", " ")
    return text[:110].rstrip()
