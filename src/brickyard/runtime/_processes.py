"""Several processes on one job: who does what, and sums over all.

A process group of `torch.distributed` that exists is used; there is no option. Work is dealt out in whole batches, so
that a sum over all processes is the same, to the rounding of float64, however many there are. Tensors are all that
is exchanged.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from brickyard.base._errors import ProcessError
from brickyard.base._messages import first_line

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the group.

    Attributes:
        rank: Its number.
        count: How many there are; one where there is no group.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """This process in the default group, or alone."""
        grouped = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if grouped else cls()

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """Those that this process takes, dealt out one by one."""
        return items[self.rank :: self.count]

    def add(self, *values: Tensor) -> None:
        """Sum each tensor over all processes, in place."""
        for value in values:
            self._exchange(value, dist.all_reduce)

    def add_for(self, owner: int, value: Tensor) -> None:
        """Sum a tensor over all processes, in place, for one of them; that of the others is of no more use."""
        self._exchange(value, partial(dist.reduce, dst=owner))

    def _exchange(self, value: Tensor, sum_up: Callable[[Tensor], object]) -> None:
        if self.count == 1:
            return
        try:
            sent = value.to("cuda" if dist.get_backend() == "nccl" else "cpu").contiguous()
            sum_up(sent)
        except RuntimeError as error:
            why = f"process {self.rank} of {self.count} could not exchange sums: another one has stopped"
            why += f" ({first_line(error)[:200]})"
            raise ProcessError("process-stopped", f"{why}; start all of them again") from None
        value.copy_(sent)

    def as_first(self, *values: Tensor) -> None:
        """Give each tensor the numbers that it has in the first process, in place."""
        for value in values:
            if self.rank:
                value.zero_()
            self.add(value)

    def joined(self, value: Tensor) -> Tensor:
        """The tensors of all processes, one behind the other along the last dimension."""
        if self.count == 1:
            return value
        sizes = torch.zeros(self.count, dtype=torch.int64)
        sizes[self.rank] = value.shape[-1]
        self.add(sizes)
        whole = value.new_zeros(*value.shape[:-1], int(sizes.sum()))
        whole.narrow(-1, int(sizes[: self.rank].sum()), value.shape[-1]).copy_(value)
        self.add(whole)
        return whole


def process_count() -> int:
    """How many processes the environment says that there are."""
    return _from_environment("WORLD_SIZE", "1", 1 << 20)


def _from_environment(name: str, default: str, most: int) -> int:
    """A number that `torchrun` put into the environment."""
    text = os.environ.get(name, default)
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= most):
        why = f"{name}={text!r} in the environment is not an integer from 0 to {most}"
        raise ProcessError("process-environment", f"{why}; unset {name}, or start all processes with torchrun")
    return int(text)


@contextlib.contextmanager
def joined() -> Iterator[Callable[[], bool]]:
    """The group that `torchrun` describes in the environment, while the body runs.

    Yields:
        What a process that fails asks: whether it is the first to do so, whose reason is the others' too.
    """
    _from_environment("RANK", "", process_count() - 1)
    _from_environment("MASTER_PORT", "0", 65535)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(_from_environment("LOCAL_RANK", "0", torch.cuda.device_count() - 1))
    try:
        store, rank, count = next(iter(rendezvous("env://")))
        dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=count)
    except (RuntimeError, ValueError) as error:
        why = f"processes did not find each other ({first_line(error)[:200]})"
        raise ProcessError("process-not-joined", f"{why}; start all of them with torchrun") from None

    def first_to_fail() -> bool:
        try:
            return bool(store.add("brickyard/failed", 1) == 1)
        except RuntimeError:  # whoever held the store is gone, and said nothing
            return True

    try:
        yield first_to_fail
    finally:
        dist.destroy_process_group()
