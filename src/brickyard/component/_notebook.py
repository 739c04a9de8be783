"""Components and assemblies in notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._messages import tidy
from brickyard.base._notebook import as_html, draw_bars, new_figure
from brickyard.base._records import AssemblyManifest, ComponentManifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class InNotebooks:
    """What has a manifest, and shows it in notebooks as a table or as a figure; neither runs a network."""

    manifest: ComponentManifest | AssemblyManifest

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def plot(self) -> Figure:
        """Draw what was kept: of a component, the channels of each axis; of an assembly, what each part costs.

        Returns:
            A figure of matplotlib, which notebooks show; `figure.savefig(path)` writes it.

        Raises:
            OptionError: matplotlib is not installed.
        """
        manifest = self.manifest
        return _kept(manifest) if isinstance(manifest, ComponentManifest) else _costs(manifest)


def _kept(manifest: ComponentManifest) -> Figure:
    rows = [
        (name, [len(axis.kept)], axis.size, f"{len(axis.kept):,} of {axis.size:,}{' (pinned)' if axis.pinned else ''}")
        for name, axis in manifest.axes.items()
    ]
    figure, (ax,) = new_figure(1, 1, 6.4, 1 + 0.22 * min(60, len(rows)))
    names = ", ".join(tidy(name, 24) for name in manifest.classes[:6])
    draw_bars(ax, f"Channels kept for {names}{' ...' if len(manifest.classes) > 6 else ''}", rows)
    return figure


def _costs(manifest: AssemblyManifest) -> Figure:
    parts, panels = manifest.parts, ("parameters", "flops")
    figure, axes = new_figure(1, len(panels), 9.6, 1 + 0.3 * min(60, len(parts) + 1))
    for ax, key in zip(axes, panels, strict=True):
        rows, sources = [], {part.source.sha256: getattr(part.source, key) for part in parts}
        for index, part in enumerate(parts):
            own, whole = getattr(part.selection, key), getattr(part.source, key)
            rows.append((f"{index}: {', '.join(part.classes[:4])}", [own], whole, f"{own:,} of {whole:,}"))
        total = sum(getattr(part.selection, key) for part in parts) - getattr(manifest, f"shared_{key}")
        every = sum(sources.values())
        rows.append(("all", [total], every, f"{total:,} of {every:,}"))
        draw_bars(ax, "FLOPs per image" if key == "flops" else "Parameters", rows)
    return figure
