"""Writing files atomically: complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError

from brickyard.base._errors import FileError


def write_content(path: Path, content: str | bytes, *, overwrite: bool) -> None:
    """Write a text, as UTF-8 and with its line ends as they are, or bytes; as `write_atomically` does."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    write_atomically(path, lambda place: place.write_bytes(data), overwrite=overwrite)


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a file that exists; a link that leads nowhere does too."""
    if os.path.lexists(path) and not overwrite:
        raise FileError("file-exists", f"{path} exists; give another path, or overwrite=True (in the shell: --force)")


def make_folder(folder: Path, advice: str) -> None:
    """Make a folder, and those that it is in, where they are missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"folder {folder} cannot be made: {error.strerror or error}"
        raise FileError("file-not-writable", f"{why}; {advice}") from None


@contextlib.contextmanager
def folder_for(folder: Path, advice: str) -> Iterator[None]:
    """A folder, made where it is missing; of what was made, what is still empty at the end is removed.

    Raises:
        FileError: It cannot be made.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        make_folder(folder, advice)
        yield
    finally:
        for place in missing:
            with contextlib.suppress(OSError):
                place.rmdir()


def write_atomically(path: Path, write: Callable[[Path], object], *, overwrite: bool) -> None:
    """Let `write` fill a file in a folder of its own beside `path`, then rename it; nothing is left after a failure.

    Content and name are on the disk when this returns. A link at `path` is replaced, and what it leads to stays. What
    a process that was killed had prepared in the same folder is cleared away.

    Raises:
        FileError: The path exists and `overwrite` is false, or the file cannot be written.
    """
    write_together({path: write}, overwrite=overwrite)


def write_together(writes: Mapping[Path, Callable[[Path], object]], *, overwrite: bool) -> None:
    """Write several files of one folder as `write_atomically` does one: after a failure, all are as they were.

    No file gets its name before all are on the disk. A process that is killed while they get their names leaves each
    old or new.

    Raises:
        FileError: A path exists and `overwrite` is false, or a file cannot be written.
    """
    for path in writes:
        check_free(path, overwrite)
        special = path.exists() and not path.is_file()  # a folder, a device, a pipe
        if special or not path.parent.is_dir():
            found = path if special else path.parent
            raise FileError("file-path-invalid", f"cannot write {path}: {found} is not a valid place for a file")
    path = next(iter(writes))
    stage, held = path.with_name(f".brickyard-{secrets.token_hex(4)}.tmp"), None
    try:
        clear_stages(path.parent)
        held = _make_stage(stage)
        for path, write in writes.items():
            _prepare(stage / path.name, write)
        _move_all(stage, list(writes), overwrite)
    except FileError as error:
        if str(stage) not in str(error):  # else it is of a writer with a place of its own in there
            raise
        raise FileError(error.code, str(error).replace(f"{stage}{os.sep}", f"{stage.parent}{os.sep}")) from error
    except (OSError, SafetensorError) as error:
        what = (error.strerror if isinstance(error, OSError) else None) or error
        raise FileError("file-not-writable", f"cannot write {path}: {what}; {advice(error)}") from error
    finally:
        try:
            surely(lambda: _clear_stage(stage))
        finally:
            if held is not None:
                os.close(held)


def _prepare(place: Path, write: Callable[[Path], object]) -> None:
    """Let a file be written, and have it on the disk."""
    place.touch(exist_ok=False)  # never through a link that someone else put there
    usual = place.stat().st_mode  # the writer may make a file of its own that only its owner can read
    write(place)
    place.chmod(usual)
    with place.open("rb+") as file:
        os.fsync(file.fileno())


def _move_all(stage: Path, paths: Sequence[Path], overwrite: bool) -> None:
    """Give finished files their names; where one cannot get it, those that have theirs lose it again."""
    begun: list[tuple[Path, Path, os.stat_result]] = []

    def undo() -> None:
        for path, old, mine in begun:
            gone = not os.path.lexists(path)
            if gone or os.path.samestat(path.lstat(), mine):  # else it is what was there before, or another's
                if os.path.lexists(old):
                    os.replace(old, path)
                elif not gone:
                    path.unlink()

    try:
        for number, path in enumerate(paths):
            old = stage / f".old-{number}"
            if len(paths) > 1 or not os.path.lexists(path):  # else the move takes away what was there, or fails
                begun.append((path, old, (stage / path.name).lstat()))
            if len(paths) > 1 and os.path.lexists(path):
                _keep(path, old)
            _move(stage / path.name, path, overwrite)
        flush_folder(stage.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            surely(undo)
        raise


def _keep(path: Path, old: Path) -> None:
    """Give what is at a path a second name; where the file system has none, that is its only one for a moment."""
    try:
        os.link(path, old, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.replace(path, old)


def _move(place: Path, path: Path, overwrite: bool) -> None:
    """Give a finished file its name; a file that came to be there since is not replaced unless that was asked for."""
    if not overwrite:
        try:
            os.link(place, path)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, *_NO_LINKS):
                raise
            check_free(path, overwrite)
    os.replace(place, path)


_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # of file systems without them
_ADVICE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make its folder writable, or choose another place"),
    errno.ENOENT: "its folder was there and is gone: make it again, or choose another place",
    errno.EIO: "the disk fails: check it, or choose another place",
}


def advice(error: BaseException) -> str:
    """What to do next after a failure to write.

    Example:
        >>> from brickyard.storage._atomic import advice
        >>> advice(OSError(13, "Permission denied")), advice(OSError(28, "No space left on device"))
        ('make its folder writable, or choose another place', 'free some space or choose another place')
    """
    named = re.search(r"os error (\d+)", str(error))  # as safetensors tells it
    number = error.errno if isinstance(error, OSError) else int(named[1]) if named else None
    return _ADVICE.get(number or 0, "free some space or choose another place")


def surely(clear: Callable[[], None]) -> None:
    """Clear away: who stops the work while it does so wants it done all the same."""
    try:
        clear()
    except KeyboardInterrupt:
        clear()
        raise


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk: a file that was renamed is not lost when the power fails."""
    if os.name == "nt":
        return
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(place)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that cannot flush a folder
            raise
    finally:
        os.close(place)


# -- folders where files are prepared ----------------------------------------------------------------------

_STAGE = re.compile(r"\.brickyard-[0-9a-f]{8}\.tmp")


def lock_folder(folder: Path, *, wait: bool = False) -> int | None:
    """A descriptor that holds the lock of a folder until it is closed or its process ends; None: cannot be locked.

    Raises:
        BlockingIOError: Another process holds it, and `wait` is false.
        OSError: There is no such folder.
    """
    try:
        import fcntl
    except ImportError:
        return None
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException as error:
        os.close(place)
        if isinstance(error, OSError) and not isinstance(error, BlockingIOError):
            return None  # a file system without locks
        raise
    return place


def _make_stage(stage: Path) -> int | None:
    """Make a folder to prepare a file in, and hold its lock for as long as it is used."""
    while True:
        stage.mkdir()
        with contextlib.suppress(FileNotFoundError):  # another process took it for one that is left, and cleared it
            held = lock_folder(stage, wait=True)
            if held is None or stage.is_dir():
                return held
            os.close(held)


def clear_stages(folder: Path) -> None:
    """Clear away what processes that are gone had prepared in a folder; what is in use stays."""
    with contextlib.suppress(OSError):
        for stage in [item for item in folder.iterdir() if _STAGE.fullmatch(item.name)]:
            with contextlib.suppress(OSError):  # it is in use, or is no longer there
                held = lock_folder(stage)
                if held is not None:
                    try:
                        if os.path.samestat(os.fstat(held), stage.lstat()):
                            _clear_stage(stage)
                    finally:
                        os.close(held)


def _clear_stage(stage: Path) -> None:
    for item in stage.glob("*"):
        with contextlib.suppress(OSError):
            if item.is_dir() and not item.is_symlink():  # of a writer that prepared a file there itself
                _clear_stage(item)
            else:
                item.unlink()
    with contextlib.suppress(OSError):
        stage.rmdir()
