"""What a cut must equal, and the check that it does.

A cut network must return what its source returns with the dropped channels at zero wherever a layer reads them. That is
computed on the uncut source, step by step, and shares nothing with the way in which the cut was made.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from brickyard.axes._graph import Graph
from brickyard.base._errors import SurgeryError
from brickyard.network._layer_types import find_mixing, mixing_of
from brickyard.network._network import Network, kind
from brickyard.surgery._cost import keep_mask

_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}  # as a share of the largest value


def zeroed_output(graph: Graph, keep: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What a cut must equal: the whole network, with dropped channels zero wherever a layer reads them.

    Args:
        graph: A traced source.
        keep: The keep-set; axes left out stay whole.
        x: Images as the source takes them.

    Returns:
        The source's outputs, reordered and restricted to those that are kept.

    Example:
        >>> import torch
        >>> from brickyard.axes import trace
        >>> from brickyard.surgery import cut
        >>> from brickyard.testing import chain, zeroed_output
        >>> x = torch.rand(2, 3, 8, 8)
        >>> graph = trace(chain(), x)
        >>> keep = {"conv1": torch.tensor([0, 2, 5])}
        >>> torch.allclose(cut(graph, keep)(x), zeroed_output(graph, keep, x), atol=1e-6)
        True
    """
    output = _zeroed(graph, graph.network, keep, x)
    chosen = graph.outputs_of(keep)
    return output if chosen is None else output[:, chosen]


def check_cut(graph: Graph, keep: Mapping[str, Tensor], network: Network, x: Tensor) -> None:
    """Compare a network that was just cut with its source.

    Args:
        graph: The traced source.
        keep: What was kept of it.
        network: The network that was cut.
        x: A few images as the source takes them.

    Raises:
        SurgeryError: They differ by more than rounding; the message names the first layer that does.
    """
    with torch.no_grad():
        if _parting(graph, graph.network, keep, network, x) is None:
            return
        wide = [copy.deepcopy(one).double() for one in (graph.network, network)]  # rounding is no difference
        layer = _parting(graph, wide[0], keep, wide[1], x.double())
    if layer is not None:
        raise SurgeryError(
            "surgery-check-failed",
            f"the cut network does not return what its source returns with the dropped channels at zero; they part at "
            f"{layer}: nothing was made. Please report this network, and make that part a layer of its own until then",
        )


def _parting(graph: Graph, source: Network, keep: Mapping[str, Tensor], network: Network, x: Tensor) -> str | None:
    """The first layer at which a cut network and its source part, or None."""
    expected = _zeroed(graph, source, keep, x)
    chosen = graph.outputs_of(keep)
    output = network(x)
    if same(output, expected if chosen is None else expected[:, chosen]):
        return None
    kept = torch.from_numpy(keep_mask(graph, keep))
    found: dict[str, Tensor] = {}
    _zeroed(graph, source, keep, x, found)
    for _, node, values in network.walk(x):
        if node.op != "layer" or node.name not in found:
            continue
        mixing, writes = mixing_of(network.layer(node.target)), graph.at(node.target, "out")
        ours, theirs = network.step(node, values), found[node.name]
        if writes is not None:
            rows = kept[torch.from_numpy(writes)].nonzero().flatten()
            theirs = theirs.index_select(mixing.channel_dim, rows.to(theirs.device))
        if not same(ours, theirs):
            return f"layer {node.target!r}" + (f" ({node.line})" if node.line else "")
    return "the class outputs"


def same(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    largest = float(expected.abs().nan_to_num(posinf=0.0).amax())
    share = _ROUNDING.get(found.dtype, 5e-2)
    return torch.allclose(found, expected, rtol=share, atol=share * largest, equal_nan=True)


def _zeroed(
    graph: Graph, network: Network, keep: Mapping[str, Tensor], x: Tensor, written: dict[str, Tensor] | None = None
) -> Tensor:
    """Run a source with dropped channels zero wherever a layer reads them; fill in what each mixing layer writes."""
    kept = torch.from_numpy(keep_mask(graph, keep))
    values: dict[str, Any] = {network.nodes[0].name: network.taken(x)}
    for index, node in enumerate(network.nodes):
        if node.op == "input":
            continue
        if node.name in graph.sums:
            name = node.args[0].node
            mask = kept[torch.from_numpy(graph.sums[node.name])].to(values[name])
            values[node.name] = network.step(node, {**values, name: values[name] * mask})
        elif node.op == "layer" and find_mixing(network.layer(node.target)) is not None:
            mixing, reads = mixing_of(network.layer(node.target)), graph.at(node.target, "in")
            read = values[node.args[0].node]
            if reads is not None:
                mask = kept[torch.from_numpy(reads)].to(read).repeat(mixing.groups)  # groups are cut alike
                shape = [1] * read.ndim
                shape[mixing.channel_dim] = len(mask)
                read = read * mask.reshape(shape)
            values[node.name] = mixing.layer(read)
            if written is not None:
                written[node.name] = values[node.name]
        else:
            values[node.name] = network.step(node, values)
        for name in network.dead_after(index):
            del values[name]
    output: Tensor = values[network.nodes[-1].name]
    return output


def drawn_images(graph: Graph, like: Tensor | None = None) -> Tensor:
    """Two images without a subject, as a source takes them (or of the type of `like`), where none are at hand."""
    like = kind(graph.network) if like is None else like
    drawn = torch.rand(2, *graph.input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn.to(like)
