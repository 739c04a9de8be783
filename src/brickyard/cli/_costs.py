"""What a component or an assembly costs, beside the sources that it came from."""

from __future__ import annotations

from typing import Any

from brickyard.base._messages import shown
from brickyard.cli._output import short


def costs(model: Any) -> tuple[dict[str, Any], str]:
    """The FLOPs and parameters of a model and of its sources, each source once: as JSON, and as a line of a summary.

    A layer that parts have in common counts once, as it runs once.
    """
    from brickyard.evaluation._evaluate import sizes

    parts = model.manifest.parts
    sources = list({part.source.sha256: part.source for part in parts}.values())
    parameters, flops = sizes(model)
    value = {
        "parameters": parameters,
        "flops": flops,
        "multiply_adds": flops // 2,
        "sources": [{"name": one.name, "parameters": one.parameters, "flops": one.flops} for one in sources],
    }
    most = "at most " if getattr(model, "stages", ()) else ""
    line = f"  costs        {most}{short(flops)} FLOPs per image, {short(flops // 2)} multiply-adds"
    whole = max(sources, key=lambda one: one.flops)
    if not whole.flops:
        return value, line
    name = shown(whole.name, keep="")
    if len(sources) == 1:
        ratio = flops / whole.flops
        beside = f"{ratio:.1%} of its source {name}" if ratio <= 1 else f"{ratio:.2g} times its source {name}"
        return value, f"{line}: {beside}"
    together = flops / sum(one.flops for one in sources)
    return (
        value,
        f"{line}: {together:.1%} of its {len(sources)} sources, and {flops / whole.flops:.2g} times {name} alone",
    )
