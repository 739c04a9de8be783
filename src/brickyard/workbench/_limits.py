"""What a client may send and keep, and the errors of one that asks for more or comes too late."""

from __future__ import annotations

from dataclasses import dataclass

from brickyard.base._errors import BrickyardError


class GoneError(BrickyardError):
    """What was asked for is not kept any more."""


class BusyError(BrickyardError):
    """There is no time or room for it now."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of what a client may send and keep.

    Attributes:
        file_bytes: Bytes of one picture.
        files: Pictures in one request.
        body_bytes: Bytes of one request.
        pixels: Pixels of one picture.
        side: Pixels of one side of a picture.
        all_pixels: Pixels of all pictures of one request.
        bricks: Components in one classifier.
        assemblies: Classifiers that are kept; the one that was not used for longest goes first.
        connections: Connections that are open at once.
        heads: Of one address, connections without a finished head of a request; the oldest is dropped for the next.
        head_seconds: Time that the head of a request may take to arrive, or a connection be idle.
        seconds: Time that a request may take to arrive, and an answer to be read (and 1 s more every 32 KiB).
        work_seconds: Time after which no further picture of a request is begun.
        requests: Requests that are worked on at once; more are told to come back.
        uploads: Of these, requests that take long (building, classifying, files); more wait, as long as `wait` says.
        each: Of these, requests of one visitor.
        computing: Requests that compute at once.
        wait: Seconds that a request waits for those before it.
        model_bytes: Bytes of an uploaded model.
        model_seconds: Time that one may take to arrive.
        kept_bytes: Bytes of all uploads that are kept; those that nothing needs go, the oldest first.
        kept_files: How many they may be.
        order_bytes: Bytes of an order for a brick.
        makings: Bricks that are made at once, each in a process of its own.
        makings_each: Of these, those of one visitor, and as many looks at a source; more wait.
        makings_waiting: Bricks of one visitor that wait, at most; and four times as many of all visitors.
        makings_kept: Bricks in the making, or made, that are remembered.
        making_seconds: Time after which a process that makes a brick is ended.
        sizes: Sizes of one brick.

    Example:
        >>> from brickyard.workbench._limits import Limits
        >>> Limits(assemblies=2).assemblies
        2
    """

    file_bytes: int = 16 << 20
    files: int = 400
    body_bytes: int = 64 << 20
    pixels: int = 50_000_000
    side: int = 20_000
    all_pixels: int = 200_000_000
    bricks: int = 24
    assemblies: int = 8
    connections: int = 64
    heads: int = 16
    head_seconds: float = 10.0
    seconds: float = 60.0
    work_seconds: float = 120.0
    requests: int = 32
    uploads: int = 4
    each: int = 1
    computing: int = 2
    wait: float = 120.0
    model_bytes: int = 512 << 20
    model_seconds: float = 600.0
    kept_bytes: int = 2 << 30
    kept_files: int = 4_000
    order_bytes: int = 1 << 20
    makings: int = 2
    makings_each: int = 1
    makings_waiting: int = 4
    makings_kept: int = 24
    making_seconds: float = 7_200.0
    sizes: int = 8
