"""Files that visitors send: bounded in size, kind and number, in a folder that goes with the server."""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

from brickyard.base._errors import DataError, FileError
from brickyard.workbench import _pictures as pictures
from brickyard.workbench._limits import BusyError, GoneError, Limits
from brickyard.workbench._shelf import MODELS

KINDS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "GIF": ".gif", "BMP": ".bmp", "WEBP": ".webp"}
GONE = "this upload is no longer stored; send it again"


@dataclass(frozen=True)
class Upload:
    """A file that was sent.

    Attributes:
        path: Where it is, under a name that was drawn here.
        name: What the visitor calls it, which is only shown.
        kind: "picture" or "model".
        bytes: Its size.
    """

    path: Path
    name: str
    kind: str
    bytes: int


class Store:
    """What visitors sent; what is in use stays, and of the rest the oldest goes where room is needed."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="brickyard-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self._kept: OrderedDict[str, Upload] = OrderedDict()
        self._used: dict[str, int] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Remove all of it."""
        self._folder.cleanup()

    def picture(self, content: bytes, name: str) -> str:
        """Keep a picture; its key.

        Raises:
            DataError: It is none, or too large.
            FileError: There is no room.
        """
        kind = pictures.checked(content, name, self.limits).format or "PNG"
        path = self.folder / f"{secrets.token_hex(12)}{KINDS[kind]}"
        self._room(len(content))
        path.write_bytes(content)
        return self._keep(Upload(path, name, "picture", len(content)))

    async def model(self, name: str, chunks: AsyncIterator[bytes]) -> str:
        """Keep a model as it arrives; its key.

        Raises:
            FileError: It is of another kind, too large, or there is no room.
        """
        name = Path(name.replace("\\", "/")).name[:80]
        suffix = Path(name).suffix.lower()
        if suffix not in MODELS:
            raise FileError(
                "file-wrong-kind", f"{name!r} is neither a .safetensors nor an .onnx file; send one of these"
            )
        path, size = self.folder / f"{secrets.token_hex(12)}{suffix}", 0
        try:
            with path.open("xb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > self.limits.model_bytes:
                        most = f"{self.limits.model_bytes >> 20} MiB is the limit"
                        raise FileError("file-too-large", f"{name!r} is too large: {most}; put it beside the server")
                    self._room(len(chunk))
                    file.write(chunk)
            if not size:
                raise FileError("file-wrong-kind", f"{name!r} is empty; send another file")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return self._keep(Upload(path, name, "model", size))

    def found(self, key: str, kind: str) -> Upload:
        """What was sent under a key.

        Raises:
            GoneError: It is gone, or of another kind.
        """
        with self._lock:
            upload = self._kept.get(key)
        if upload is None or upload.kind != kind:
            raise GoneError("workbench-gone", GONE)
        return upload

    def hold(self, keys: Iterable[str], change: int) -> None:
        """Count users of uploads: those that have some stay."""
        with self._lock:
            for key in keys:
                self._used[key] = self._used.get(key, 0) + change
                if self._used[key] <= 0:
                    del self._used[key]

    def _room(self, size: int) -> None:
        """Make room for so many bytes.

        Raises:
            BusyError: All that is kept is in use.
        """
        with self._lock:
            idle = [key for key in self._kept if key not in self._used]
            total = sum(upload.bytes for upload in self._kept.values())
            while total + size > self.limits.kept_bytes or len(self._kept) >= self.limits.kept_files:
                if not idle:
                    raise BusyError("workbench-full", "the workbench has no room for more uploads; try again later")
                gone = self._kept.pop(idle.pop(0))
                gone.path.unlink(missing_ok=True)
                total -= gone.bytes

    def _keep(self, upload: Upload) -> str:
        key = secrets.token_urlsafe(12)
        with self._lock:
            self._kept[key] = upload
        return key


def checked_all(items: Iterable[tuple[str, bytes]], store: Store) -> dict[str, list[dict[str, str]]]:
    """Keep pictures; what became of each: a key, or why it is refused."""
    kept: list[dict[str, str]] = []
    refused: list[dict[str, str]] = []
    for name, content in items:
        try:
            kept.append({"id": store.picture(content, name), "name": name})
        except DataError as error:
            refused.append({"name": name, "error": str(error), "code": error.code})
    return {"pictures": kept, "refused": refused}
