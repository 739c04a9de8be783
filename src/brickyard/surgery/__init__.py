"""The one place that builds a resized network: cutting keeps some channels, padding lays parts side by side.

Both are the same job. Each part is a graph and a keep-set; the result has, along every channel dimension, the
kept channels of all parts in the order of their places in the source. With one part this is a cut. With
several, every layer's weights become blocks with zeros elsewhere (the paper's alignment padding). Constants in
steps that depend on channel counts (views, splits, slices, channel padding) are rewritten to fit.
"""

from brickyard.surgery.fusing import fuse
from brickyard.surgery.grouping import join_as_groups
from brickyard.surgery.joining import cut, join
from brickyard.surgery.overlaying import overlay
from brickyard.surgery.plan import KeepSet, Part, check_keep, positions

__all__ = ["KeepSet", "Part", "check_keep", "cut", "fuse", "join", "join_as_groups", "overlay", "positions"]
