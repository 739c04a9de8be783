"""Yards: a folder of components whose index follows its files, whatever happens to either."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import sqlite3
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import brickyard as by
from brickyard.base._errors import SurgeryError
from brickyard.testing import chain, randomised
from brickyard.yard._choose import Part, StoppedError, choose, cover
from brickyard.yard._index import INDEX, Entry, read_index, stamp_of, write_index
from brickyard.yard._yard import Problem, Yard
from conftest import rewritten
from errors import refused
from shell import python, run

DATA, TEST = (
    (torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(k)), torch.arange(24) % 4) for k in (1, 2)
)
CLASSES = ["cat", "dog", "hen", "pig"]


def component(task=("cat", "dog"), seed=0, classes=CLASSES, name="farm", widths=(6, 8), **options) -> by.Component:
    model = randomised(chain(len(classes), widths), seed)
    labels = torch.arange(24) % len(classes)
    relevance = by.locate(model, (DATA[0], labels), classes=classes, name=name)
    return by.disassemble(model, relevance, task=list(task), heal="none", **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Files of three components of two sources."""
    folder = tmp_path_factory.mktemp("files")
    made = {"a": component(), "b": component(("hen",)), "c": component(("dog", "pig"), seed=1, name="zoo/two?x=1")}
    made = {name: part.with_scores(by.evaluate(part, TEST, latency=False).as_dict()) for name, part in made.items()}
    return {name: part.save(folder / f"{name}.safetensors") for name, part in made.items()}


@pytest.fixture
def yard(files, tmp_path) -> Yard:
    made = Yard(tmp_path / "yard", create=True)
    for path in files.values():
        made.add(path)
    return made


def names(yard: Yard) -> list[str]:
    return [entry.name for entry in Yard(yard.path).entries()]


ALL = ["cat-dog-farm", "dog-pig-zoo-two-x-1", "hen-farm"]


# -- what is in it -------------------------------------------------------------------------------------------


def test_entries_say_what_files_and_manifests_say(yard, files) -> None:
    assert names(yard) == ALL
    entry, part = yard.entry("cat-dog-farm"), by.load(files["a"])
    data = files["a"].read_bytes()
    assert (yard.path / "cat-dog-farm.safetensors").read_bytes() == data
    assert entry.sha256 == hashlib.sha256(data).hexdigest()
    assert entry.bytes == len(data)
    assert entry.classes == part.classes == ("cat", "dog")
    assert (entry.source, entry.source_sha256) == ("farm", part.manifest.source.sha256)
    assert entry.parameters == sum(p.numel() for p in part.parameters())
    assert entry.flops == part.manifest.selection.flops
    assert (entry.input_shape, entry.reject) == ((3, 8, 8), False)
    assert entry.accuracy == by.evaluate(part, TEST, latency=False).row("component").accuracy / 100
    assert Entry(**{**entry.as_dict(), "classes": entry.classes, "input_shape": entry.input_shape}) == entry
    json.dumps(entry.as_dict())
    loaded = yard.load("cat-dog-farm")
    assert torch.equal(loaded(DATA[0]), part(DATA[0]))
    assert not torch.equal(yard.load("dog-pig-zoo-two-x-1")(DATA[0]), part(DATA[0]))


def test_accuracy_is_the_measured_one_on_the_most_images(yard) -> None:
    part = component()
    few, many = (by.evaluate(part, (TEST[0][::n], TEST[1][::n]), latency=False) for n in (4, 1))  # cats alone; all
    seen = by.evaluate(part, DATA, latency=False, including_calibration=True)
    assert seen.row("component").images >= many.row("component").images
    assert few.row("component").accuracy != many.row("component").accuracy
    scored = yard.add(
        part.with_scores({"few": few.as_dict(), "many": many.as_dict(), "seen": seen.as_dict(), "other": [1]}), "scored"
    )
    assert scored.accuracy == many.row("component").accuracy / 100
    assert yard.add(part.with_scores(few.as_dict()), "flat").accuracy == few.row("component").accuracy / 100
    odd = {"rows": [{"name": "component", "images": "many", "accuracy": 99}, {"name": "component", "images": 5}, 7]}
    assert part.manifest.statistics is not None
    assert yard.add(part.with_scores({"odd": odd}), "odd").accuracy is None  # answers to its own images are no score
    agreeing = yard.add(part.with_manifest(agreement=(19, 20)), "agreeing")
    assert (agreeing.accuracy, agreeing.agreement) == (None, 0.95)
    assert Yard(yard.path).entry("agreeing") == agreeing
    assert yard.entry("hen-farm").accuracy is None  # one class is always answered right


def test_equal_architectures_are_those_that_can_be_padded_together(tmp_path) -> None:
    yard = Yard(tmp_path)
    first = yard.add(component(), "first")
    other = component(("ox",), seed=2, classes=["ox", "ant"], name="other")
    wider = component(("bee",), seed=2, classes=["bee", "fly"], widths=(7, 8))
    assert yard.add(other, "other").architecture == first.architecture != ""
    assert yard.add(wider, "wider").architecture != first.architecture
    assert yard.add(component().fused(), "fused").architecture == ""
    assert by.assemble([yard.load("first"), yard.load("other")], form="padded").classes == ("cat", "dog", "ox")
    for name in ("wider", "fused"):
        with pytest.raises(SurgeryError):
            by.assemble([yard.load("other"), yard.load(name)], form="padded", on_duplicate="rename")


def test_the_same_content_is_the_same_entry(yard, files) -> None:
    again = yard.add(files["a"], "another-name")
    assert again == yard.entry("cat-dog-farm")
    assert yard.add(by.load(files["a"])) == again
    assert names(yard) == ALL
    other = yard.add(component(seed=5))
    assert other.name == "cat-dog-farm-2"
    assert len(names(yard)) == 4


def test_names_are_made_of_any_class_names(tmp_path) -> None:
    yard = Yard(tmp_path)
    for classes, name, expected in [
        (["../../etc", "Öl und Wein"], "..", "etc-Ol-und-Wein"),
        (["猫", "犬"], "家", "component"),
        ([f"class {k}" for k in range(20)], "a.safetensors", "class-0-class-1-and-18-more-a"),
        (["x" * 500, "y"], "s", "x" * 35),
    ]:
        part = component(classes, classes=classes, name=name)
        assert yard.add(part).name == expected
    assert len(yard.entries()) == 4
    assert not yard.verify()


def test_remove_and_unknown_names(yard) -> None:
    with refused("file-unknown-component", "'cat-dog-form'", "'cat-dog-farm'"):
        yard.entry("cat-dog-form")
    yard.remove("hen-farm")
    assert names(yard) == ALL[:2]
    assert not (yard.path / "hen-farm.safetensors").exists()
    with refused("file-unknown-component", "'hen-farm'"):
        yard.remove("hen-farm")
    with refused("file-unknown-component"):
        yard.load("hen-farm")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", ".hidden", "", "a b", "a\n", "-x", "x.safetensors", "é"])
def test_name_tricks_are_refused(name, yard, files) -> None:
    before = sorted(yard.path.parent.rglob("*"))
    with refused("file-path-invalid"):
        yard.add(component(seed=9), name)
    for use in (yard.load, yard.remove):
        with refused("file-unknown-component"):
            use(name)
    assert sorted(yard.path.parent.rglob("*")) == before


def test_what_cannot_be_added(yard, files, tmp_path) -> None:
    whole = by.assemble([by.load(files["a"]), by.load(files["b"])]).save(tmp_path / "whole.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(files["a"].read_bytes()[:-9])
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    for item, name, code, *quoted in [
        (whole, None, "file-wrong-kind"),
        (broken, None, "file-not-safetensors", "broken.safetensors"),
        (tmp_path / "foreign.safetensors", None, "file-wrong-kind", "foreign.safetensors"),
        (tmp_path / "nothing", None, "file-missing"),
        (tmp_path, None, "file-missing"),
        (component(seed=9), "hen-farm", "file-exists", "'hen-farm'"),
    ]:
        with refused(code, *quoted) as caught:
            yard.add(item, name)
        assert ".adding" not in str(caught.value)
    assert names(yard) == ALL
    assert sorted(item.name for item in yard.path.iterdir()) == sorted(
        [".lock", INDEX, *(f"{name}.safetensors" for name in ALL)]
    )
    with refused("file-not-writable"):
        Yard(broken / "x", create=True)


def test_search(yard) -> None:
    def found(**what) -> list[str]:
        return [entry.name for entry in yard.search(**what)]

    cat, dog, hen = ALL
    entries = {entry.name: entry for entry in yard.entries()}
    assert found() == ALL
    assert found(classes=["dog"]) == [cat, dog]
    assert found(classes=["dog", "cat"]) == [cat]
    assert found(classes=["do"]) == []
    assert found(source="FARM") == found(source=entries[cat].source_sha256[:8]) == [cat, hen]
    assert found(source="far") == []
    assert found(text="ZOO dog") == [dog]
    assert found(text=entries[cat].architecture) == ALL
    few = min(entry.parameters for entry in entries.values())
    assert found(max_parameters=few) == [name for name in ALL if entries[name].parameters <= few] != ALL
    assert found(max_flops=1) == []
    assert found(min_accuracy=0) == [cat, dog]
    assert found(min_accuracy=entries[cat].accuracy) == [
        name for name in (cat, dog) if entries[name].accuracy >= entries[cat].accuracy
    ]


# -- the index follows the files -----------------------------------------------------------------------------


def sql(yard: Yard, *statements: str) -> list[tuple]:
    with closing(sqlite3.connect(yard.path / INDEX)) as base, base:
        return [row for statement in statements for row in base.execute(statement)]


def listed(yard: Yard) -> list[str]:
    return [name for (name,) in sql(yard, "SELECT name FROM files ORDER BY name")]


def put(column: str, value: str):
    return lambda yard: sql(yard, f"UPDATE files SET {column} = {value} WHERE name = 'cat-dog-farm'")


def statements(*texts: str):
    return lambda yard: sql(yard, *texts)


def beside(end: str, content: bytes):
    return lambda yard: (yard.path / f"{INDEX}{end}").write_bytes(content)


def swapped(yard: Yard, old: bytes, new: bytes) -> None:
    content = (yard.path / INDEX).read_bytes()
    assert old in content
    (yard.path / INDEX).write_bytes(content.replace(old, new))


def one_page_twice(yard: Yard) -> None:
    """The table's root leads to one page as often as it can: more rows than the file has room for."""
    with closing(sqlite3.connect(yard.path / INDEX)) as base, base:
        row = base.execute("SELECT * FROM files").fetchone()
        base.executemany("INSERT INTO files VALUES (" + "?," * 14 + "?)", [(f"c{k:04}", *row[1:]) for k in range(300)])
        root = base.execute("SELECT rootpage FROM sqlite_master").fetchone()[0]
    data = bytearray((yard.path / INDEX).read_bytes())
    start = (root - 1) * 4096
    assert data[start] == 2  # an inner page of an index
    count = int.from_bytes(data[start + 3 : start + 5])
    places = [int.from_bytes(data[start + 12 + 2 * k :][:2]) for k in range(count)]
    for place in places:
        data[start + place : start + place + 4] = data[start + places[0] : start + places[0] + 4]
    (yard.path / INDEX).write_bytes(data)


HOSTILE = {
    "missing": lambda yard: (yard.path / INDEX).unlink(),
    "empty": beside("", b""),
    "no database": beside("", b"{}" * 5000),
    "only a header": beside("", b"SQLite format 3\0" + bytes(84)),
    "cut short": lambda yard: os.truncate(yard.path / INDEX, 4096),
    "one page twice": one_page_twice,
    "another's": statements("DROP TABLE files", "CREATE TABLE packages (name TEXT)"),
    "more tables": statements("CREATE TABLE more (x)"),
    "trigger": statements("CREATE TRIGGER more AFTER INSERT ON files BEGIN DELETE FROM files; END"),
    "view": statements("ALTER TABLE files RENAME TO x", "CREATE VIEW files AS SELECT * FROM x"),
    "other columns": statements("ALTER TABLE files ADD COLUMN more TEXT"),
    "other names": statements("ALTER TABLE files RENAME COLUMN flops TO operations"),
    "another type": lambda yard: swapped(yard, b"verdict TEXT", b"verdict TXET"),
    "endless view": statements(
        "DROP TABLE files",
        "CREATE VIEW files AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n",
    ),
    "write-ahead log": beside("-wal", b"x"),
    "journal that names a file": beside("-journal", b"x" * 600 + bytes.fromhex("d9d505f920a163d7")),
    "in both": put("verdict", "'x'"),
    "others": statements("INSERT INTO files (name, bytes, changed, verdict) VALUES ('../x', 1, 1, 'x')"),
    "path": put("name", "'../../etc/passwd'"),
    "absolute": put("name", "'/etc/passwd'"),
    "hidden": put("name", "'.bashrc'"),
    "cut by a zero": put("name", "'a' || char(0) || '/../b'"),
    "number": put("name", "x'37'"),
    "sha": put("sha256", f"'{'0' * 63}'"),
    "negative": put("bytes", "-1"),
    "text for a number": put("bytes", "'many'"),
    "nothing": put("bytes", "NULL"),
    "classes": put("classes", "'\"cat\"'"),
    "no JSON": put("classes", "'cat'"),
    "no classes": put("classes", "'[]'"),
    "class": put("classes", "'[\"cat\", null]'"),
    "half a character": put("classes", "'[\"\\ud800\"]'"),
    "no text": put("source", "CAST(x'ff' AS TEXT)"),
    "deep": put("classes", "'" + "[" * 100_000 + "'"),
    "reject": put("reject", "2"),
    "source": put("source", "''"),
    "huge": put("parameters", str((1 << 62) + 1)),
    "fraction": put("parameters", "1.5"),
    "accuracy": put("accuracy", "2"),
    "infinite": put("accuracy", "9e999"),
    "shape": put("input_shape", "'[3, 0, 8]'"),
    "architecture": put("architecture", "char(27) || '[31m'"),
    "changed": put("changed", "'now'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_an_index_that_is_not_right_is_made_again(case, yard) -> None:
    before, expected = sql(yard, "SELECT * FROM files ORDER BY name"), yard.entries()
    assert read_index(yard.path / INDEX) is not None
    HOSTILE[case](yard)
    assert read_index(yard.path / INDEX) is None
    assert yard.entries() == expected
    assert sql(yard, "SELECT * FROM files ORDER BY name") == before
    assert Yard(yard.path).entries() == expected


def test_nothing_in_a_journal_leads_to_another_file(yard, tmp_path) -> None:
    """SQLite deletes a file that a journal names as that of a commit to several databases; the control shows it."""
    victim = tmp_path / "victim"
    with closing(sqlite3.connect(yard.path / INDEX)) as base:
        base.execute("PRAGMA cache_spill = 1")
        base.execute("PRAGMA cache_size = 1")
        base.execute("BEGIN IMMEDIATE")
        base.execute("UPDATE files SET flops = 1")
        base.execute(
            "CREATE TABLE x AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 9999) "
            "SELECT x, hex(randomblob(99)) FROM n"
        )
        hot = (yard.path / f"{INDEX}-journal").read_bytes()
        half = (yard.path / INDEX).read_bytes()
        base.rollback()
    name = str(victim).encode()
    end = b"\0\0\0\0" + name + len(name).to_bytes(4) + sum(name).to_bytes(4) + bytes.fromhex("d9d505f920a163d7")
    expected = yard.entries()
    for guarded in (True, False):
        victim.write_bytes(b"of use")
        (yard.path / INDEX).write_bytes(half)
        (yard.path / f"{INDEX}-journal").write_bytes(hot + end)
        if guarded:
            assert Yard(yard.path).entries() == expected
        else:
            sql(yard, "SELECT * FROM files")
        assert victim.exists() == guarded


def test_the_index_is_read_and_not_the_files(yard, monkeypatch) -> None:
    """The control of the tests above: while nothing changed, no file of a component is opened."""

    def opened(*_args):
        raise AssertionError("a file was read")

    monkeypatch.setattr("brickyard.yard._yard.read_entry", opened)
    assert names(yard) == ALL
    os.utime(yard.path / "hen-farm.safetensors", ns=(1, 1))
    with pytest.raises(AssertionError, match="a file was read"):
        names(yard)


def test_an_index_that_is_a_link_or_a_pipe_is_not_followed(yard, tmp_path) -> None:
    expected = yard.entries()
    place = yard.path / INDEX
    shutil.move(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert read_index(place) is None
    place.unlink()
    os.mkfifo(place)
    assert read_index(place) is None
    assert Yard(yard.path).entries() == expected
    assert place.is_file()
    journal = yard.path / f"{INDEX}-journal"
    os.mkfifo(journal)
    assert read_index(place) is None
    assert Yard(yard.path).entries() == expected
    assert read_index(place) is not None
    assert not journal.exists()


def test_files_added_changed_and_removed_behind_its_back_are_noticed(yard, files) -> None:
    place = yard.path / "hen-farm.safetensors"
    place.write_bytes(files["c"].read_bytes())
    os.utime(place, ns=(5, 5))
    assert yard.entry("hen-farm").classes == ("dog", "pig")
    assert yard.load("hen-farm").classes == ("dog", "pig")
    shutil.copy(files["b"], yard.path / "new.safetensors")
    (yard.path / "cat-dog-farm.safetensors").unlink()
    assert names(yard) == [ALL[1], "hen-farm", "new"]
    assert listed(yard) == [ALL[1], "hen-farm", "new"]


def test_content_that_changed_with_the_same_stamp_is_not_loaded(yard, files) -> None:
    place = yard.path / "hen-farm.safetensors"
    status, data = place.stat(), bytearray(place.read_bytes())
    data[-1] ^= 1
    place.write_bytes(data)
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert by.load(place).classes == ("hen",)
    with refused("file-tampered", "hen-farm.safetensors"):
        yard.load("hen-farm")
    assert [p.name for p in yard.verify()] == ["hen-farm"]


def test_verify_finds_everything(yard, files, tmp_path) -> None:
    assert yard.verify() == []
    (yard.path / "hen-farm.safetensors").unlink()
    (yard.path / "cat-dog-farm.safetensors").write_bytes(files["a"].read_bytes()[:-5])
    (yard.path / "notes.txt").write_text("x")
    (yard.path / "samples").mkdir()  # pictures to try components with are welcome
    (yard.path / "link.safetensors").symlink_to(files["b"])
    (yard.path / "bad name.safetensors").write_bytes(files["b"].read_bytes())
    (yard.path / "folder.safetensors").mkdir()
    by.locate(chain(), DATA).save(yard.path / "relevance.safetensors")
    rewritten(files["a"], yard.path / "hollow.safetensors", lambda _, tensors: tensors.popitem() and None)
    sql(yard, "UPDATE files SET parameters = 1 WHERE name = 'dog-pig-zoo-two-x-1'")
    found = {problem.name: problem.what for problem in yard.verify()}
    assert all(isinstance(problem, Problem) for problem in yard.verify())
    strange = {"bad name.safetensors", "folder.safetensors", "link.safetensors", "notes.txt"}
    assert set(found) == {*ALL, *strange, "hollow", "relevance"}
    assert len({what.split(":")[0] for what in found.values()}) == 5  # ways to be wrong
    assert len({found[name].split(":")[0] for name in strange}) == 1
    assert names(yard) == [ALL[1], "hollow"]  # the manifest of the second is whole, and its tensors are not all there
    with refused("file-component-unusable", "'relevance'"):
        yard.entry("relevance")
    yard.remove("relevance")
    assert not (yard.path / "relevance.safetensors").exists()


def test_figures_that_no_network_has_are_refused(yard, files) -> None:
    place = yard.path / "hen-farm.safetensors"
    rewritten(place, place, lambda text, _: text["manifest"]["selection"].update(flops=10**400))
    assert names(yard) == ALL[:2]
    assert [c.entry.name for c in yard.choose(["cat"])] == ["cat-dog-farm"]


def test_a_yard_that_cannot_be_written_to_can_be_read(yard, monkeypatch) -> None:
    real = os.open

    def unwritable(path, flags, *rest, **more):
        if Path(path).name == ".lock":
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *rest, **more)

    (yard.path / INDEX).unlink()
    monkeypatch.setattr(os, "open", unwritable)
    assert names(yard) == ALL
    assert not (yard.path / INDEX).exists()
    with refused("file-not-writable", str(yard.path)):
        yard.remove("hen-farm")


def test_where_locking_is_impossible_is_a_clear_error(yard, monkeypatch) -> None:
    import fcntl

    def refuse(*_args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with refused("file-not-writable", "No locks available"):
        yard.add(component(seed=4))
    assert names(yard) == ALL


# -- many components -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_that_add_at_once_lose_nothing(files, tmp_path) -> None:
    yard = Yard(tmp_path / "yard", create=True)
    part = by.load(files["a"])
    for k in range(12):
        part.with_scores({"number": k}).save(tmp_path / f"{k}.safetensors")
    code = (
        "import os, sys, brickyard._files\nfrom pathlib import Path\nfrom brickyard.yard._yard import Yard\n"
        "parts, (ready, go) = Path(sys.argv[2]), os.pipe()\n"
        "children = []\n"
        "for own in range(3):\n"
        "    children.append(os.fork())\n"
        "    if children[-1]: continue\n"
        "    os.close(go)\n"
        "    os.read(ready, 1)\n"  # returns in all of them at once, when the other end is closed
        "    for k in [*range(own, 12, 3), 0]: Yard(sys.argv[1]).add(parts / f'{k}.safetensors')\n"
        "    os._exit(0)\n"
        "os.close(go)\n"
        "print([os.waitpid(child, 0)[1] for child in children])\n"
    )
    assert python(code, yard.path, tmp_path) == "[0, 0, 0]\n"
    found = {yard.load(name).manifest.scores["number"] for name in names(yard)}
    assert found == set(range(12))
    assert len(names(yard)) == 12
    assert yard.verify() == []
    assert len(listed(yard)) == 12


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_a_yard_that_repairs_itself(yard, files, tmp_path) -> None:
    """Killed before the new file is in its place, after it, in the middle of a commit to the index, and after it."""
    by.load(files["b"]).with_scores({"new": 1}).save(tmp_path / "new.safetensors")
    code = (
        "import os, signal, sys, brickyard._files, brickyard.yard._yard as module\n"
        "def kill(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "def half(path, *_):\n"
        "    base = module.sqlite3.connect(path, isolation_level=None)\n"
        "    base.executescript('PRAGMA cache_size = 1; BEGIN IMMEDIATE; UPDATE files SET flops = 7; '\n"
        "        'CREATE TABLE x AS '\n"
        "        'WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 99999) SELECT x FROM n')\n"
        "    kill()\n"
        "real = module.write_index\n"
        "kills = {'replace': (os, kill), 'write_index': (module, kill), 'half': (module, half)}\n"
        "kills['after'] = (module, lambda *rest: (real(*rest), kill()))\n"
        "for when in ['replace', 'write_index', 'half', 'after', 'never']:\n"
        "    child = os.fork()\n"
        "    if child:\n"
        "        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "        continue\n"
        "    if when in kills: setattr(kills[when][0], when if when == 'replace' else 'write_index', kills[when][1])\n"
        "    module.Yard(f'{sys.argv[1]}-{when}').add(sys.argv[2], 'new')\n"
        "    os._exit(0)\n"
    )
    for when in ("replace", "write_index", "half", "after", "never"):
        shutil.copytree(yard.path, f"{yard.path}-{when}")
    ends = python(code, yard.path, tmp_path / "new.safetensors").split()
    assert ends == ["-9", "-9", "-9", "-9", "0"]  # the last is the control
    for when in ("replace", "write_index", "half", "after", "never"):
        left = Yard(f"{yard.path}-{when}")
        expected = ALL if when == "replace" else [*ALL, "new"]
        journal = left.path / f"{INDEX}-journal"
        assert (left.path / ".adding").exists() == (when != "never")
        assert journal.exists() == (when == "half")
        if when == "half":
            assert read_index(left.path / INDEX) is not None  # SQLite undid what was half done
            assert not journal.exists()
        assert listed(left) == (expected if when in ("after", "never") else ALL)
        assert names(left) == expected
        assert 7 not in [entry.flops for entry in left.entries()]
        assert left.add(tmp_path / "new.safetensors").name == ("hen-farm-2" if when == "replace" else "new")
        assert not (left.path / ".adding").exists()
        assert left.verify() == []


def test_ctrl_c_leaves_the_yard_as_it_was(yard, files, monkeypatch) -> None:
    before = {item.name: item.read_bytes() for item in yard.path.iterdir()}

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("brickyard.yard._yard.read_entry", stop)
    with pytest.raises(KeyboardInterrupt):
        yard.add(component(seed=4))
    monkeypatch.undo()
    assert {item.name: item.read_bytes() for item in yard.path.iterdir()} == before


def test_ten_thousand_components_are_listed_without_torch_and_without_their_files(files, tmp_path) -> None:
    yard = Yard(tmp_path)
    entry = yard.add(files["a"], "c00000")
    known = {}
    first = tmp_path / "c00000.safetensors"
    for k in range(10_000):
        name = f"c{k:05}"
        if k:
            os.link(first, tmp_path / f"{name}.safetensors")
        known[name] = stamp_of(first.stat()), replace(entry, name=name)
    write_index(tmp_path / INDEX, known, None)
    code = (
        "import sys\nfrom brickyard.yard._yard import Yard\nopened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "entries = Yard(sys.argv[1]).entries()\n"
        "parts = [name for name in opened if name.endswith('.safetensors')]\n"
        "print(len(entries), entries[-1].name, 'torch' in sys.modules, len(parts))\n"
        "Yard(sys.argv[1]).load('c00007')\n"
        "print('torch' in sys.modules, any(name.endswith('c00007.safetensors') for name in opened))\n"
    )
    assert python(code, tmp_path).splitlines() == ["10000 c09999 False 0", "True True"]  # the second is the control


# -- choosing ------------------------------------------------------------------------------------------------


def entry(name: str, classes: str, parameters=100, accuracy: float | None = 0.9, flops=10) -> Entry:
    """An entry whose classes are the letters of a word."""
    return Entry(name, "0" * 64, 1, tuple(classes), False, "s", "1" * 64, parameters, flops, accuracy, (3, 8, 8), "")


def chosen(entries, classes: str, **limits) -> list[str]:
    return [choice.entry.name for choice in choose(entries, list(classes), **limits)]


def test_what_choose_prefers() -> None:
    pair, one, two = entry("pair", "ab", accuracy=0.8), entry("one", "a"), entry("two", "b")
    wide = entry("wide", "abx", accuracy=1.0, parameters=1)
    assert chosen([one, two, pair, wide], "ab") == ["pair"]  # fewest parts, and none that brings x
    assert chosen([one, two, wide], "ab") == ["one", "two"]  # no x, though it takes more parts
    assert chosen([one, two, wide], "ba") == ["two", "one"]  # in the order of the classes
    assert chosen([one, wide], "ab") == ["wide"]  # there is no other b, and a must not be there twice
    better, small = replace(pair, name="better", accuracy=0.95), replace(pair, name="small", parameters=9)
    assert chosen([pair, better, small], "ab") == ["better"]
    assert chosen([pair, small], "ab") == ["small"]
    assert chosen([pair, better, small], "ab", max_parameters=50) == ["small"]
    assert chosen([replace(pair, accuracy=None), replace(small, accuracy=0.51, parameters=500)], "ab") == ["small"]
    assert chosen([entry("twice", "aab"), one, two], "ab") == ["one", "two"]


def test_choose_says_why() -> None:
    parts = [entry("ab", "abxy", accuracy=0.912, parameters=1234), entry("c", "c", accuracy=None), entry("c2", "cx")]
    first, second = choose(parts, ["c", "b"])
    assert (first.entry.name, first.classes) == ("c", ("c",))
    assert re.search(r"\b1\b.*\b100\b", first.reason)
    assert (second.entry.name, second.classes) == ("ab", ("b",))
    assert all(fact in second.reason for fact in ("a, x, y", "91.2%", "1,234"))


def test_what_cannot_be_chosen_is_named() -> None:
    parts = [replace(entry("p", "ab"), classes=("lamp", "chair")), replace(entry("q", "ab"), classes=("chair", "cat"))]
    for classes, limits, code, *quoted in [
        (["lamb", "cat", "zzz"], {}, "task-not-in-yard", "'zzz'", "'lamp'"),
        (["lamp", "cat"], {}, "task-not-coverable", "'lamp'", "'cat'"),
        (["lamp"], {"max_parameters": 99}, "task-not-coverable", "99", "100"),
        (["lamp"], {"max_flops": 9}, "task-not-coverable", "9 FLOPs"),
    ]:
        with refused(code, *quoted):
            choose(parts, classes, **limits)


def test_the_sum_of_what_is_chosen_is_within_the_limit() -> None:
    """The better part for a fits alone, and with the cheapest bound; with the part for b it does not."""
    parts = [Part("good", ("a",), 0, 2, 2), Part("small", ("a",), 5, 1, 1), Part("other", ("b",), 0, 1, 1)]
    for limits, names in [({}, "good"), ({"max_parameters": 3}, "good"), ({"max_parameters": 2}, "small")]:
        assert [part.name for part in cover(parts, ["a", "b"], **limits)] == [names, "other"]
    assert [part.name for part in cover(parts, ["a", "b"], max_flops=2)] == ["small", "other"]


part_values = st.tuples(
    st.lists(st.sampled_from("abcdxy"), min_size=1, max_size=4), st.sampled_from([0, 5, 10]), st.integers(1, 9)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(part_values, min_size=1, max_size=8), st.integers(1, 4), st.none() | st.integers(1, 25))
def test_choose_finds_what_trying_everything_finds(values, count, limit) -> None:
    wanted = "abcd"[:count]
    parts = [Part(f"p{k}", tuple(classes), loss, size, 20 - size) for k, (classes, loss, size) in enumerate(values)]
    best = None
    for size in range(1, count + 1):
        for group in itertools.combinations(parts, size):
            together = [name for part in group for name in part.classes]
            if len(set(together)) < len(together) or not set(wanted) <= set(together):
                continue
            if any(not set(part.classes) & set(wanted) for part in group):
                continue
            if limit is not None and sum(part.parameters for part in group) > limit:
                continue
            loss = sum(part.loss * len(set(part.classes) & set(wanted)) for part in group)
            costs = [sum(part.parameters for part in group), sum(part.flops for part in group)]
            key = (len(together) - count, size, loss, *costs, [part.name for part in group])
            best = key if best is None or key < best else best
    found = cover(parts[::-1], list(wanted), max_parameters=limit)
    assert sorted(part.name for part in found) == ([] if best is None else best[-1])


def test_equal_choices_are_told_apart_by_their_names() -> None:
    pairs = [Part(f"{a}{b}", (a, b), 0, 1, 1) for a, b in itertools.combinations("abcdef", 2)]
    assert [part.name for part in cover(pairs, list("abcdef"))] == ["ab", "cd", "ef"]
    others = [part for part in pairs if part.name not in ("ab", "cd")]
    assert [part.name for part in cover(others, list("abcdef"))] == ["ac", "bd", "ef"]
    better = [Part("ef", ("e", "f"), 0, 2, 1) if part.name == "ef" else part for part in pairs]
    assert [part.name for part in cover(better, list("abcdef"))] == ["ab", "ce", "df"]


def test_sums_of_large_numbers_are_exact() -> None:
    """The solver computes in floating point; that a limit is missed by one, or a sum is larger by one, counts."""
    size = 3_000_000_000_000_001
    parts = [Part("a", ("a",), 0, size, 1), Part("b", ("b",), 0, size + 1, 1), Part("ab", ("a", "b", "x"), 0, size, 1)]
    assert [part.name for part in cover(parts, ["a", "b"], max_parameters=2 * size + 1)] == ["a", "b"]
    assert [part.name for part in cover(parts, ["a", "b"], max_parameters=2 * size)] == ["ab"]


def drawn_parts(count: int, classes: list[str]) -> list[Part]:
    draw = random.Random(1)
    return [
        Part(f"p{k}", tuple(draw.sample(classes, 1 + k % 4)), draw.randrange(300), draw.randrange(10**7), k)
        for k in range(count)
    ]


def test_four_thousand_parts_and_thirty_classes() -> None:
    classes = [f"c{k}" for k in range(30)]
    parts = drawn_parts(4000, classes + [f"other {k}" for k in range(170)])
    found = cover(parts, classes)
    assert sorted(name for part in found for name in part.classes if name in classes) == sorted(classes)
    limit = sum(part.parameters for part in found) - 1
    smaller = cover(parts, classes, max_parameters=limit)
    assert sum(part.parameters for part in smaller) <= limit
    others = [sum(not name.startswith("c") for part in chosen for name in part.classes) for chosen in (found, smaller)]
    assert (others[0], len(found)) <= (others[1], len(smaller))
    assert cover(parts[::-1], classes) == found != smaller


def test_a_search_that_is_stopped_is_one_clear_error(monkeypatch) -> None:
    classes = [f"c{k}" for k in range(18)]
    parts = drawn_parts(100, classes)
    with pytest.raises(StoppedError):
        cover(parts, classes, nodes=1)
    whole = cover(parts, classes)  # the control: with more nodes there is a proof
    assert sorted(name for part in whole for name in part.classes) == sorted(classes)
    monkeypatch.setattr(cover, "__kwdefaults__", {**cover.__kwdefaults__, "nodes": 1})
    entries = [replace(entry(part.name, "a"), classes=part.classes, accuracy=1 - part.loss / 1000) for part in parts]
    with refused("task-not-coverable"):
        choose(entries, classes)


# -- the command line ----------------------------------------------------------------------------------------


def test_the_commands(files, tmp_path) -> None:
    place = tmp_path / "yard"
    added = json.loads(run("yard", "add", files["a"], files["b"], "--yard", place, "--json").stdout)
    assert [(item["name"], item["new"]) for item in added["added"]] == [("cat-dog-farm", True), ("hen-farm", True)]
    assert "hen-farm" in run("yard", "add", files["b"], "--yard", place).stdout
    assert run("yard", "add", files["c"], "--name", "two", "--yard", place).stdout.endswith("c.safetensors: two\n")
    listed = json.loads(run("yard", "list", "--yard", place, "--json").stdout)
    assert listed["entries"] == [entry.as_dict() for entry in Yard(place).entries()]
    assert len(listed["entries"]) == 3
    table = run("yard", "list", "--yard", place).stdout.splitlines()
    assert table[0].split() == ["name", "classes", "source", "parameters", "FLOPs", "accuracy", "architecture"]
    assert [line.split()[0] for line in table[1:]] == ["cat-dog-farm", "hen-farm", "two"]
    search = ("yard", "search", "--yard", place, "--json")
    for options, expected in [
        (("--class", "dog"), ["cat-dog-farm", "two"]),
        (("--class", "dog", "--class", "pig"), ["two"]),
        (("farm", "hen"), ["hen-farm"]),
        (("--source", "farm", "--min-accuracy", "0"), ["cat-dog-farm"]),
        (("--max-parameters", "1"), []),
        (("--max-flops", "1"), []),
    ]:
        found = json.loads(run(*search, *options).stdout)
        assert [item["name"] for item in found["entries"]] == expected, options
    nothing = run("yard", "search", "--yard", place, "nowhere")
    assert nothing.stdout == ""
    assert " 3 " in nothing.stderr
    shown = run("yard", "show", "two", "--yard", place).stdout
    assert "dog, pig" in shown
    assert "zoo/two?x=1" in shown
    assert json.loads(run("yard", "show", "two", "--yard", place, "--json").stdout)["classes"] == ["dog", "pig"]
    assert json.loads(run("yard", "verify", "--yard", place, "--json").stdout)["problems"] == []
    (place / "notes.txt").write_text("x")
    refused = run("yard", "verify", "--yard", place, code=1)
    assert "notes.txt" in refused.stdout
    assert json.loads(run("yard", "rm", "two", "hen-farm", "--yard", place, "--json").stdout)["removed"] == [
        "two",
        "hen-farm",
    ]
    assert [entry.name for entry in Yard(place).entries()] == ["cat-dog-farm"]


def test_the_yard_is_where_the_environment_says_else_here(files, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRICKYARD_YARD", raising=False)
    run("yard", "add", files["a"])
    assert (tmp_path / "yard" / "cat-dog-farm.safetensors").is_file()
    monkeypatch.setenv("BRICKYARD_YARD", str(tmp_path / "other"))
    run("yard", "add", files["b"])
    assert (tmp_path / "other" / "hen-farm.safetensors").is_file()
    assert "hen-farm" in run("yard", "list").stdout
    assert "cat-dog-farm" in run("yard", "list", "--yard", "yard").stdout


def test_assemble_chooses_from_a_yard(yard, files, tmp_path) -> None:
    output = tmp_path / "whole.safetensors"
    made = run("assemble", "hen", "dog", "cat", "--yard", yard.path, "-o", output, "--json")
    assert json.loads(made.stdout)["components"] == ["hen-farm", "cat-dog-farm"]
    assert re.search(r"cat-dog-farm.*dog, cat", made.stderr)
    whole = by.load(output)
    assert whole.classes == ("hen", "cat", "dog")
    run("assemble", files["b"], files["a"], "-o", tmp_path / "files.safetensors")
    assert torch.equal(whole(DATA[0]), by.load(tmp_path / "files.safetensors")(DATA[0]))


def test_mistakes_are_one_clear_error(yard, files, tmp_path) -> None:
    output = tmp_path / "whole.safetensors"
    place = ("--yard", yard.path)
    for arguments, quoted in [
        (("assemble", "dig", "cat", *place, "-o", output), "'dig'"),
        (("assemble", "cat", "hen", *place, "-o", output, "--max-parameters", 5), "5"),
        (("assemble", files["a"], "-o", output, "--max-flops", 5), "--yard"),
        (("yard", "show", "hen-form", *place), "'hen-farm'"),
        (("yard", "rm", "hen-form", *place), "'hen-farm'"),
        (("yard", "add", files["a"], files["b"], "--name", "x", *place), "2"),
        (("yard", "search", "--min-accuracy", 90, *place), "0.9"),
    ]:
        result = run(*arguments, code=1)
        assert quoted in result.stderr, (arguments, result.stderr)
        assert result.stdout == ""
    assert not output.exists()
    partly = run("yard", "rm", "hen-farm", "nothing", *place, code=1)
    assert "hen-farm" in partly.stderr
    assert names(yard) == ALL[:2]


def test_tables_fit_a_terminal_are_whole_elsewhere_and_obey_nobody(tmp_path, monkeypatch) -> None:
    yard = Yard(tmp_path)
    yard.add(component(["\x1b[31mred", "犬" * 60], classes=["\x1b[31mred", "犬" * 60], name="s" * 200), "n" * 80)
    yard.add(component(), "short")
    from rich.cells import cell_len

    monkeypatch.setenv("COLUMNS", "40")
    whole = run("yard", "list", "--yard", tmp_path).stdout.splitlines()  # no terminal reads it
    assert len(whole) == 3
    for entry, line in zip(yard.entries(), whole[1:], strict=True):
        shown = [entry.name, ", ".join(entry.classes).replace("\x1b", "\\x1b"), entry.source, entry.architecture]
        assert [cell.strip() for cell in line.split("  ") if cell][:3] == shown[:3]
        assert line.endswith(shown[3])
    assert "…" not in "".join(whole)
    monkeypatch.setattr("brickyard.cli._output._room", lambda: 100)
    result = run("yard", "list", "--yard", tmp_path)
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert max(map(cell_len, lines)) <= 100
    assert "…" in lines[1]
    assert lines[1].startswith("n" * 34)  # names are what one types again: these are cut short last
    assert "\x1b" not in result.stdout + run("yard", "show", "n" * 80, "--yard", tmp_path).stdout


def test_torchrun_is_refused_for_yards(yard, monkeypatch) -> None:
    monkeypatch.setattr("brickyard.runtime._processes.joined", lambda: nullcontext(lambda: True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "torchrun" in run("yard", "list", "--yard", yard.path, code=1).stderr
