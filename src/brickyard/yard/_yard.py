"""A yard: a folder of components with an index that follows the files.

The files are the truth: everything in the index comes from their manifests, and a file that was changed, added or
removed behind the yard's back (its size or time of change differ) is read again. Processes that write take turns
by a lock. Nothing here is read from a file without being checked, the index included.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import stat
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickyard.base._checks import check_kind, given_path, whole
from brickyard.base._errors import BrickyardError, BrickyardWarning, FileError, OptionError, passing, reading_code
from brickyard.base._messages import brief, near, told
from brickyard.network._guarding import guarded_later
from brickyard.runtime._progress import bar
from brickyard.storage._atomic import advice, flush_folder, make_folder, surely
from brickyard.yard._choose import Choice, check_names, choose
from brickyard.yard._index import (
    INDEX,
    JOURNAL,
    OLD_INDEX,
    STAGE,
    Entry,
    Known,
    Read,
    Stamp,
    is_name,
    read_entry,
    read_index,
    read_old_index,
    sha256_of,
    stamp_of,
    write_index,
)

if TYPE_CHECKING:
    from brickyard.component._component import Component
    from brickyard.evaluation._probe import Score
    from brickyard.yard._ranking import Rank


SUFFIX = ".safetensors"
SAMPLES = "samples"  # a folder in a yard for pictures to try components with
LOCK = ".lock"  # who writes holds it
MAX_NAME = 35  # of names that are made here
NEVER: Stamp = (0, 0)  # an empty file of 1970
FOREIGN = "is not a component file; move it out of the yard"


@dataclass(frozen=True)
class Problem:
    """What is wrong with a component, or with a file that is none."""

    name: str
    what: str


class Yard:
    """A folder of components, each in a file NAME.safetensors.

    Args:
        path: The folder.
        create: Make the folder if it is not there.

    Raises:
        FileError: It is not a folder.

    Example:
        >>> import brickyard as by, tempfile, torch
        >>> from brickyard.testing import chain
        >>> from brickyard.yard._yard import Yard
        >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> relevance = by.locate(chain(), data, classes=["cat", "dog", "hen", "pig"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     yard = Yard(folder)
        ...     for task in (["cat", "dog"], ["hen"]):
        ...         print(yard.add(by.disassemble(chain(), relevance, task=task)).name)
        ...     parts = [yard.load(choice.entry.name) for choice in yard.choose(["hen", "dog", "cat"])]
        cat-dog-Sequential
        hen-Sequential
        >>> by.assemble(parts).classes
        ('hen', 'cat', 'dog')
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = given_path(path, "the yard")
        if create:
            make_folder(self.path, "choose another path for the yard")
        if not self.path.is_dir():
            found = "is a file" if self.path.exists() else "does not exist"
            raise FileError(
                "file-missing",
                f"the yard {path} {found}; give a folder, or create one with create=True or `brickyard yard add`",
            )
        self._last: Read | None = None  # the index as it was last read
        self._foreign: list[str] = []  # names of what is no file of a component, as they were last looked at

    # -- looking ---------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All components, sorted by name.

        What the index tells of files of the same size and time of change is taken from it; others are read. Files
        that hold no component are left out with a warning: see `left_out`.
        """
        known = self._known()
        if out := self._left_out(known):
            said = "; ".join(f"{problem.name}: {told(problem.what, 200)}" for problem in out[:3])
            more = f"; and {len(out) - 3:,} more" if len(out) > 3 else ""
            files = "file is" if len(out) == 1 else "files are"
            warnings.warn(f"{len(out):,} {files} left out of {self.path}: {said}{more}", BrickyardWarning, stacklevel=2)
        return sorted(_entries(known), key=lambda entry: entry.name)

    def left_out(self) -> list[Problem]:
        """Files that look like components and are not listed by `entries`, and why, sorted by name.

        Only what a file's content says is remembered. One that could not be read is read again by the next call.
        """
        return self._left_out(self._known())

    def _left_out(self, known: Known) -> list[Problem]:
        out = [Problem(name, found) for name, (_, found) in known.items() if isinstance(found, str)]
        foreign = [name for name in self._foreign if name.endswith(SUFFIX)]
        return sorted([*out, *(Problem(name, FOREIGN) for name in foreign)], key=lambda problem: problem.name)

    def entry(self, name: str) -> Entry:
        """The component of that name.

        Raises:
            FileError: There is none; the message has names that are near.
        """
        known = self._known()
        _, found = known.get(name, (None, None))
        if isinstance(found, Entry):
            return found
        raise self._missing(name, known)

    @guarded_later
    def load(self, name: str) -> Component:
        """Read a component.

        Raises:
            FileError: There is none of that name, its content is not what the index says, or it does not load.
        """
        from brickyard._files import loaded
        from brickyard.component._component import Component

        expected, path = self.entry(name).sha256, self._file(name)
        found = sha256_of(path)[0]
        if found != expected:
            raise FileError(
                "file-tampered",
                f"{path} was changed: its sha256 is {found[:12]}, but the yard's index says {expected[:12]}; get a "
                f"fresh copy, or delete {self.path / INDEX} if the change is intended",
            )
        part: Component = loaded(path, Component)
        return part

    def search(
        self,
        *,
        classes: Sequence[str] = (),
        source: str | None = None,
        max_parameters: int | None = None,
        max_flops: int | None = None,
        min_accuracy: float | None = None,
        text: str | None = None,
    ) -> list[Entry]:
        """Components for which all that is asked for holds, sorted by name.

        Args:
            classes: Names of classes; a component must have all of them.
            source: The source's name, or the start of the sha256 of its weights (6 characters or more).
            max_parameters: Most parameters.
            max_flops: Most floating-point operations for one image.
            min_accuracy: Least accuracy, in [0, 1]; a component whose accuracy is not known is left out.
            text: Words, each of which must occur in the name, a class, the source's name or the architecture, in
                upper or lower case.

        Raises:
            OptionError: `min_accuracy` is not in [0, 1], or `classes` is one text.
        """
        check_names(classes)
        check_kind("source", source, str, "give a string, or leave it out")
        check_kind("text", text, str, "give a string, or leave it out")
        for limit, value in (("max_parameters", max_parameters), ("max_flops", max_flops)):
            if value is not None:
                whole(limit, value, 0)
        if min_accuracy is not None and not (isinstance(min_accuracy, int | float) and 0 <= min_accuracy <= 1):
            raise OptionError(
                "option-range", f"min_accuracy must be in [0, 1], got {brief(min_accuracy)}; 0.9 means 90 %"
            )
        words = (text or "").casefold().split()

        def fits(entry: Entry) -> bool:
            there = "\n".join((entry.name, *entry.classes, entry.source, entry.architecture)).casefold()
            return (
                set(classes) <= set(entry.classes)
                and (source is None or _is_source(entry, source))
                and (max_parameters is None or entry.parameters <= max_parameters)
                and (max_flops is None or entry.flops <= max_flops)
                and (min_accuracy is None or (entry.accuracy is not None and entry.accuracy >= min_accuracy))
                and all(word in there for word in words)
            )

        return [entry for entry in self.entries() if fits(entry)]

    def choose(
        self, classes: Sequence[str], *, max_parameters: int | None = None, max_flops: int | None = None
    ) -> list[Choice]:
        """The best components to assemble a classifier of these classes from.

        An assembly has all classes of its parts, so every wanted class is in exactly one of the chosen components, and
        no other class is in two. Of all such choices it is the one that brings the fewest classes that were not
        asked for; of those the one with the fewest components; then the one with the most right answers, by
        the accuracies in the manifests to 0.1 points (where none is known: those of a guess); then the
        smallest; then the one whose names come first in the alphabet. The choice is proved to be the best.

        Args:
            classes: Names of the wanted classes.
            max_parameters: Most parameters of all chosen components together.
            max_flops: Most floating-point operations for one image of all of them together.

        Returns:
            The components in the order of the wanted classes.

        Raises:
            TaskError: No class is wanted or one twice, nothing covers one (the message has names that are near), or no
                choice is within the limits, or the search for the best one was stopped since it takes too long.
            OptionError: A limit is not an integer above 0, or `classes` is one text.
        """
        return choose(self.entries(), classes, max_parameters=max_parameters, max_flops=max_flops)

    @guarded_later
    def rank(
        self, data: Any, score: Score = "logme", *, per_class: int | None = 100, seed: int = 0, batch_size: int = 64
    ) -> list[Rank]:
        """Every component's score as a feature extractor for a new task, best first.

        Nothing is trained: see `brickyard.evaluation._probe` for the scores, and for the linear probe that comes after.

        Args:
            data: Labelled training images of the new task, in any form that `locate` takes, as they are before
                preprocessing. Labels count the new task's classes; components need not know them.
            score: "logme" or "h-score".
            per_class: At most so many images of each class, drawn with the seed and held in memory; None takes all.
            seed: Of the choice of images.
            batch_size: Images at once.

        Returns:
            All components: those that cannot take the images come last, with the reason.

        Raises:
            DataError: The images cannot be read, are of fewer than two classes, or no more than these.
            OptionError: An option is no choice.

        Example:
            >>> import brickyard as by, tempfile, torch
            >>> from brickyard.testing import chain
            >>> from brickyard.yard._yard import Yard
            >>> data = torch.rand(24, 3, 8, 8), torch.arange(24) % 4
            >>> relevance = by.locate(chain(), data)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     yard = Yard(folder)
            ...     for task in ([0, 1], [3]):
            ...         _ = yard.add(by.disassemble(chain(), relevance, task=task))
            ...     found = yard.rank((data[0], torch.arange(24) % 2))
            >>> len(found), found[0].score >= found[1].score
            (2, True)
        """
        from brickyard.yard._ranking import ranked

        return ranked(
            self.entries(), self.load, data, score=score, per_class=per_class, seed=seed, batch_size=batch_size
        )

    # -- changing --------------------------------------------------------------------------------------------

    @guarded_later
    def add(self, item: Component | Path | str, name: str | None = None) -> Entry:
        """Put a component into the yard; content that is there already is not added again.

        Args:
            item: A component, or the path of a file that holds one; it is copied.
            name: The name to give it: letters, digits, ".", "_" and "-". By default its classes and its source.

        Returns:
            Its entry: the one that was there, under its own name, if its content is not new.

        Raises:
            FileError: The file holds no component, the name cannot be used or is taken, or the yard cannot be written
                to or locked.
            OptionError: `item` is neither a component nor a path.
        """
        if name is not None and not is_name(name):
            raise FileError(
                "file-path-invalid",
                f"name {name!r} is not valid: use letters, digits, '.', '_', '-', first a letter or digit; no {SUFFIX}",
            )
        with self._lock():
            staged = self._staged(item)
            made = read_entry(staged, "new")
            known, fits = self._current({})
            for entry in _entries(known):
                if entry.sha256 == made.sha256:
                    if not fits:  # the process that added it was killed before the index told of it
                        self._save(known)
                    return entry
            name = name or _new_name(made, known, self.path)
            if name in known or os.path.lexists(self._file(name)):
                raise FileError("file-exists", f"{name!r} exists in {self.path} with other content; give another name")
            os.replace(staged, self._file(name))
            flush_folder(self.path)
            entry = replace(made, name=name)
            self._save({**known, name: (stamp_of(self._file(name).lstat()), entry)})
            return entry

    def remove(self, name: str) -> None:
        """Delete a component's file; also one that does not load.

        Raises:
            FileError: There is none of that name, or the yard cannot be written to or locked.
        """
        with self._lock():
            known, _ = self._current({})
            if name not in known:
                raise self._missing(name, known)
            del known[name]
            self._save(known)  # first: an index that tells of a file that is gone would be wrong, the other way is not
            self._file(name).unlink(missing_ok=True)
            flush_folder(self.path)

    @guarded_later
    def verify(self) -> list[Problem]:
        """Load every component whole, and compare it with the index as it stands; nothing is changed.

        Returns:
            Problems, sorted by name: components that are missing, changed or do not load, and foreign files.
        """
        known = self._index() or {}
        files, foreign = self._scan()
        problems = [Problem(name, FOREIGN) for name in foreign]
        names = sorted(files.keys() | {entry.name for entry in _entries(known)})
        with bar("checking components", len(names)) as advance:
            for name in names:
                if name not in files:
                    what: str | None = "its file is missing; add it again"
                else:
                    what = self._problem(name, files[name], *known.get(name, (None, None)))
                problems += [] if what is None else [Problem(name, what)]
                advance()
        return sorted(problems, key=lambda problem: problem.name)

    def _problem(self, name: str, stamp: Stamp, seen: Stamp | None, told: Entry | str | None) -> str | None:
        """What is wrong with a file of which the index told when its stamp was as it was seen."""
        from brickyard._files import load

        path = self._file(name)
        try:
            found = read_entry(path, name)
            load(path)
        except BrickyardError as error:
            changed = isinstance(told, Entry) and _differs(path, told)
            return f"{'was changed since it was added, and ' if changed else ''}does not load: {error}"
        if told is None or told == found or (isinstance(told, str) and seen != stamp):
            return None
        if isinstance(told, Entry) and told.sha256 != found.sha256:
            return (
                f"was changed since it was added: its sha256 is {found.sha256[:12]}, and the index says "
                f"{told.sha256[:12]}"
            )
        return f"the index tells otherwise of it than its manifest; delete {INDEX}, and it is made again"

    # -- the folder ------------------------------------------------------------------------------------------

    def _file(self, name: str) -> Path:
        return self.path / f"{name}{SUFFIX}"

    def _missing(self, name: str, known: Known) -> FileError:
        if name in known:
            return FileError(
                "file-component-unusable", f"{name!r} in {self.path} is not a usable component: {known[name][1]}"
            )
        names = sorted(entry.name for entry in _entries(known))
        hint = near(str(name).removesuffix(SUFFIX), names) or "; list the yard to see what there is"
        return FileError(
            "file-unknown-component", f"there is no component {name!r} among the {len(names):,} in {self.path}{hint}"
        )

    def _scan(self) -> tuple[dict[str, Stamp], list[str]]:
        """Size and time of change of the files of components by name, and the names of all other things."""
        files: dict[str, Stamp] = {}
        foreign: list[str] = []
        try:
            with os.scandir(self.path) as found:
                for item in found:
                    name = item.name.removesuffix(SUFFIX)
                    if name != item.name and is_name(name):
                        with contextlib.suppress(FileNotFoundError):  # removed in this moment
                            status = item.stat(follow_symlinks=False)
                            if stat.S_ISREG(status.st_mode):
                                files[name] = stamp_of(status)
                                continue
                    if not item.name.startswith(".") and item.name not in (INDEX, JOURNAL, OLD_INDEX, SAMPLES):
                        foreign.append(os.fsencode(item.name).decode("utf-8", "replace"))
        except OSError as error:
            raise FileError(
                reading_code(error), f"cannot read the yard {self.path}: {error.strerror or error}"
            ) from None
        return files, foreign

    def _index(self) -> Known | None:
        """What the index says, or None where there is none or it cannot be believed."""
        self._last = read_index(self.path / INDEX, self._last)
        return None if self._last is None else self._last[1]

    def _known(self) -> Known:
        """What is in the yard now; the index is written if it said otherwise and no other process is writing."""
        known, fits = self._current({})
        if not fits:
            # A yard that may not be written to can still be read.
            with contextlib.suppress(FileError), self._lock(wait=False) as free:
                if free:
                    known, _ = self._current(known)
                    self._save(known)
        return known

    def _current(self, read: Known) -> tuple[Known, bool]:
        """What is in the yard now, and whether the index says so. `read` is what was read from files before."""
        index = self._index()
        known = {**(read_old_index(self.path / OLD_INDEX) if index is None else index), **read}
        files, self._foreign = self._scan()
        current = {name: known[name] for name, stamp in files.items() if name in known and known[name][0] == stamp}
        unknown = sorted(files.keys() - current.keys())
        with bar("reading components", len(unknown)) as advance:
            for name in unknown:
                current |= self._read(name, files[name])
                advance()
        return current, current == (index or {})

    def _read(self, name: str, stamp: Stamp) -> Known:
        """What a file says; nothing where it is gone.

        What is said of its content has its stamp. What tells of this moment has one that no file has: it is not
        believed again.
        """
        path = self._file(name)
        try:
            entry = read_entry(path, name)
            if stamp_of(path.lstat()) != stamp or entry.bytes != stamp[0]:
                raise FileError("file-busy", f"{path} changed while it was being read; try again")
            return {name: (stamp, entry)}
        except Exception as error:
            ours = isinstance(error, BrickyardError)
            if not ours and not passing(error):
                raise
            if _is_gone(path):
                return {}
            why = str(error) if ours else f"{path} could not be read: {str(error) or type(error).__name__}"
            return {name: (NEVER if passing(error) else stamp, why[:1000].encode("utf-8", "replace").decode("utf-8"))}

    def _save(self, known: Known) -> None:
        """Write the index; the lock must be held."""
        self._last = write_index(self.path / INDEX, known, self._index())
        (self.path / OLD_INDEX).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lock(self, *, wait: bool = True) -> Iterator[bool]:
        """Hold the yard's lock, or say that another process does.

        What a process that was killed left behind is cleared away when the lock is taken.
        """
        with contextlib.ExitStack() as held:
            try:
                import fcntl

                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                place = os.open(self.path / LOCK, flags, 0o666)
                held.callback(os.close, place)
                fcntl.flock(place, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            except (ImportError, OSError) as error:
                why = getattr(error, "strerror", None) or "this system has no file locks"
                raise FileError(
                    "file-not-writable",
                    f"the yard {self.path} cannot be locked: {why}; make it writable, or move it to a disk with locks",
                ) from None
            try:
                self._clear()
                yield True
            except (OSError, sqlite3.Error) as error:
                why = getattr(error, "strerror", None) or error
                raise FileError(
                    "file-not-writable", f"the yard {self.path} cannot be written to: {why}; {advice(error)}"
                ) from error
            finally:
                with contextlib.suppress(OSError):
                    surely(self._clear)

    def _clear(self) -> None:
        """Remove what was being prepared; the lock must be held."""
        if os.path.lexists(self.path / STAGE):
            shutil.rmtree(self.path / STAGE)

    def _staged(self, item: Component | Path | str) -> Path:
        """A copy of what is added, in a folder inside the yard that is cleared away with the lock; it loads."""
        from brickyard._files import loaded
        from brickyard.component._component import Component

        staged = self.path / STAGE / f"new{SUFFIX}"
        staged.parent.mkdir(exist_ok=True)
        if isinstance(item, Component):
            return item.save(staged, overwrite=True)
        if not isinstance(item, str | Path):
            raise OptionError("option-wrong-object", f"a yard takes a component or a path, got {type(item).__name__}")
        path = Path(item)
        if not path.is_file():
            raise FileError(
                "file-missing",
                f"cannot add {path}: {'expected a file, got a folder' if path.exists() else 'there is no such file'}",
            )
        try:
            shutil.copyfile(path, staged)
        except OSError as error:
            raise FileError(
                "file-not-writable", f"cannot copy {path} to {self.path}: {error.strerror or error}; {advice(error)}"
            ) from None
        try:
            loaded(staged, Component)
        except FileError as error:
            raise FileError(error.code, str(error).replace(str(staged), str(path))) from None
        with staged.open("rb+") as file:
            os.fsync(file.fileno())
        return staged


def _is_gone(path: Path) -> bool:
    """Whether there is no such file; where that cannot be told, there is."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _entries(known: Known) -> list[Entry]:
    return [found for _, found in known.values() if isinstance(found, Entry)]


def _differs(path: Path, entry: Entry) -> bool:
    try:
        return sha256_of(path)[0] != entry.sha256
    except FileError:
        return True


def _is_source(entry: Entry, source: str) -> bool:
    by_hash = len(source) >= 6 and entry.source_sha256.startswith(source.lower())
    return by_hash or entry.source.casefold() == source.casefold()


def _new_name(entry: Entry, known: Known, folder: Path) -> str:
    """A free name, made of classes and source."""
    names = [name for name in map(_slug, entry.classes[:20]) if name]
    source = _slug(entry.source.rpartition(":")[2].removesuffix(SUFFIX))
    first = ""
    for count in range(len(names), 0, -1):
        more = f"and-{len(entry.classes) - count}-more" if count < len(entry.classes) else ""
        first = "-".join(filter(None, [*names[:count], more, source]))
        if len(first) <= MAX_NAME:
            break
    first = (first or source)[:MAX_NAME].rstrip("-._")
    if not is_name(first):
        first = "component"
    name, number = first, 2
    while name in known or os.path.lexists(folder / f"{name}{SUFFIX}"):
        name, number = f"{first}-{number}", number + 1
    return name


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[^A-Za-z0-9._]+", "-", plain).strip("-._")
