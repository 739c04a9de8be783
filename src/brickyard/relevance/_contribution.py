"""How much each input channel of a layer contributes to each of its output channels.

This is the paper's relative contribution (section 3.1), computed without building the hidden maps. The sum of a hidden
map over its positions is linear in the kernel: `s[b,q,p] = sum_k c[q,p,k] U[b,p,k]`, where `U[b,p,k]` is the sum of the
padded input over the positions that kernel offset k visits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from brickyard.axes._graph import Graph
from brickyard.network._layer_types import mixing_of


def class_sums(
    graph: Graph,
    batches: Iterable[Tensor],
    seen: Callable[[Tensor], None] | None = None,
    answering: Callable[[Tensor], Mapping[str, Tensor]] | None = None,
) -> dict[str, ContributionSums]:
    """Sum the clamped contributions of every layer that reads and writes channels: S by layer name.

    Args:
        graph: The source.
        batches: Preprocessed images of one class, (batch, channels, height, width) each.
        seen: What is told the source's logits for each batch, (batch, classes).
        answering: For a detector, of the steps that give its outputs, which of their positions answer for the class in
            a batch: (batch, positions), by the step's name. Others are not summed over. None: all are.
    """
    network = graph.network
    sums = {mixer.name: ContributionSums(network.layer(mixer.name)) for mixer in graph.mixers()}
    for images in batches:
        chosen = {} if answering is None else answering(images)
        with torch.inference_mode():
            for _, node, values in network.walk(images):
                if node.op == "layer" and node.target in sums:
                    x = values[node.args[0].node]
                    sums[node.target].add(x, chosen.get(node.name), tuple(graph.shapes[node.name].shape))
        if seen is not None:
            seen(values[node.name])
    return sums


_BLOCK = 1 << 18  # numbers per (inputs, images, outputs) block, to fit a core's own cache


def window_sums(module: nn.Module, x: Tensor) -> Tensor:
    """Sum the input (B, P, H, W) or (B, ..., P) of a layer that mixes channels over output positions.

    Returns:
        U, (B, P, K), where K is the kernel's height times width, or 1 for a linear layer.
    """
    return mixing_of(module).window_sums(x)


def contributions(module: nn.Module, x: Tensor) -> Tensor:
    """Summed hidden maps of each image, (B, Q, P / groups): positions summed, nothing clamped, no bias.

    Their sum over p is the layer's own output without bias, summed over positions. For tests and small cases: memory
    is B * Q * P numbers.
    """
    mixing = mixing_of(module)
    groups = zip(mixing.window_sums(x).chunk(mixing.groups, 1), mixing.kernel.chunk(mixing.groups, 0), strict=True)
    return torch.cat([torch.einsum("bpk,qpk->bqp", sums, kernel) for sums, kernel in groups], 1)


class ContributionSums:
    """`S[q,p]` of one layer: clamped contributions, summed over images, batch by batch, in float64.

    For a kernel with one position, `max(w u, 0) = max(w, 0) max(u, 0) + max(-w, 0) max(-u, 0)`: two sums per input
    suffice, and rows of S are computed on request. Otherwise S is held, inputs first. Beyond that, memory is a fixed
    block.

    Args:
        module: A convolution or linear layer. In a grouped convolution, inputs are those of each output's own group.

    Attributes:
        shape: (Q, P / groups).
        totals: The running sums, which can be added up across processes; (2, P) or (groups, P / groups, Q / groups).
    """

    totals: Tensor

    def __init__(self, module: nn.Module) -> None:
        self._mixing = mixing_of(module)
        self._groups = self._mixing.groups
        kernel = self._mixing.kernel
        self.shape = (kernel.shape[0], kernel.shape[1])
        self._pointwise = kernel.shape[2] == 1
        outputs, inputs = self.shape
        size = (2, self._groups * inputs) if self._pointwise else (self._groups, inputs, outputs // self._groups)
        self.totals = torch.zeros(size, dtype=torch.float64, device=kernel.device)

    def add(self, x: Tensor, where: Tensor | None = None, shape: Sequence[int] = ()) -> None:
        """Add a batch: the layer's input, (B, P, H, W) or (B, ..., P).

        With `where`, (B, positions), only those positions of the layer's output are summed over, which has that shape.
        """
        if x.element_size() < 4:  # sums over an image overflow float16, and bfloat16 drops small addends
            x = x.float()
        sums = self._mixing.window_sums(x) if where is None else self._sums_at(x, where, shape)
        if self._pointwise:
            total = sums[:, :, 0]
            self.totals[0] += total.clamp_min(0).sum(0, dtype=torch.float64)
            self.totals[1] += (-total).clamp_min(0).sum(0, dtype=torch.float64)
            return
        kernels = self._mixing.kernel.to(sums.dtype).chunk(self._groups)
        for totals, part, kernel in zip(self.totals, sums.chunk(self._groups, 1), kernels, strict=True):
            block = max(1, _BLOCK // (len(x) * len(kernel)))
            for start in range(0, self.shape[1], block):
                chosen = slice(start, start + block)
                maps = torch.bmm(part[:, chosen].transpose(0, 1), kernel[:, chosen].permute(1, 2, 0))  # (p, B, Q)
                totals[chosen] += maps.clamp_min_(0).sum(1)

    def _sums_at(self, x: Tensor, where: Tensor, shape: Sequence[int]) -> Tensor:
        """Window sums over some positions of the output: (B, P, K)."""
        found = x.new_zeros(len(x), self._groups * self.shape[1], self._mixing.kernel.shape[2])
        at = torch.nonzero(where.flatten()).flatten()
        if len(at):
            sizes = shape[1:-1] if self._mixing.linear else shape[2:]
            read = self._mixing.read_at(x, sizes, at)  # (groups, P / groups * K, N)
            image = torch.div(at, where.shape[1], rounding_mode="floor")
            found.index_add_(0, image, read.permute(2, 0, 1).reshape(len(at), *found.shape[1:]))
        return found

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Rows of S: (rows, P / groups)."""
        outputs, inputs = self.shape
        group = rows // (outputs // self._groups)
        if not self._pointwise:
            return self.totals.transpose(1, 2)[group, rows % (outputs // self._groups)]
        weight = self._mixing.kernel[rows, :, 0].double()
        totals = self.totals.reshape(2, self._groups, inputs)
        positive, negative = totals if self._groups == 1 else totals[:, group]
        found: Tensor = weight.clamp_min(0) * positive + (-weight).clamp_min(0) * negative
        return found

    def dense(self) -> Tensor:
        return self[torch.arange(self.shape[0], device=self.totals.device)]
