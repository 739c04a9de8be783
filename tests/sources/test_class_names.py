"""Class names from a text, a file of lines and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brickyard.sources import _names as names
from brickyard.sources._names import class_names
from brickyard.sources._resolve import source_of
from errors import refused

SYNSETS = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane, lifting\nn02125311 cougar, puma\n"
FILES = {  # content -> names, and what is said
    "cat\ndog\n": (["cat", "dog"], ""),
    "\ufeffcat\r\n\r\ndög \r\n": (["cat", "dög"], ""),
    SYNSETS: (["tench", "crane", "crane, lifting", "cougar"], "2 that would be the same"),
    "n01440764\nn02012849\n": (["n01440764", "n02012849"], ""),
    "0 tench\n1 goldfish, Carassius\n": (["tench", "goldfish, Carassius"], "0 to 1"),
    "1: dog\n0: cat\n2: eel": (["cat", "dog", "eel"], "0 to 2"),
    "1 001.Albatross\n2 002.Auk\n": (["001.Albatross", "002.Auk"], "1 to 2"),
    "0,cat\n1,dog\n": (["cat", "dog"], "0 to 1"),
    "3 wheels\n4 wheels\n": (["3 wheels", "4 wheels"], ""),
    "0 cat\n2 dog\n": (["0 cat", "2 dog"], ""),
    "0 cat\n1 dog\nfish\n": (["0 cat", "1 dog", "fish"], ""),
    "0\n1\n2\n": (["0", "1", "2"], ""),
    "cat, wild\ndog, tame\n": (["cat, wild", "dog, tame"], ""),
    '["cat", "dog, tame"]': (["cat", "dog, tame"], ""),
    '{"0": "cat", "2": "eel", "1": "dog"}': (["cat", "dog", "eel"], ""),
    '{"dog": 1, "cat": 0}': (["cat", "dog"], ""),
    '{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}': (["tench", "goldfish"], ""),
    json.dumps({"model_type": "vit", "id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0}}): (
        ["cat", "dog"], "'id2label'",
    ),
    '{"names": ["cat", "dog"], "nc": 2}': (["cat", "dog"], "'names'"),
}  # fmt: skip


NAMED = [(text, file) for text in FILES for file in ("n.txt", "n.json", "n") if file != "n.json" or text[0] in "[{"]


@pytest.mark.parametrize(("text", "file"), NAMED)
def test_a_file_of_names(text: str, file: str, tmp_path: Path, capsys) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8", newline="")
    wanted, said = FILES[text]
    assert class_names(str(tmp_path / file)) == wanted
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1 + bool(said)  # the names, and what was assumed


def test_a_text_that_is_no_file_is_names(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat").mkdir()
    assert class_names("cat") == ["cat"]  # a folder is no list
    assert class_names("cat,dog") == class_names(["cat", "dog"]) == ["cat", "dog"]
    assert class_names(None) is class_names("") is None
    assert class_names("x" * 5000) == ["x" * 5000]
    assert not capsys.readouterr().err
    assert class_names("names.txt") == ["names.txt"]
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    assert class_names("names.txt") == ["one", "two"]
    assert class_names(["names.txt"]) == ["names.txt"]  # a list from Python or a recipe is names


@pytest.mark.parametrize(
    ("content", "code", "quoted"),
    [
        (b"", "file-wrong-kind", ()),
        (b"\xff\xfe\xfa", "file-wrong-kind", ("UTF-8",)),
        (b"{0: 'tench',\n 1: 'goldfish'}", "file-manifest-invalid", ("JSON",)),
        (b"[" * 100_000, "file-manifest-invalid", ()),
        (b"[]", "file-wrong-kind", ()),
        (b'["cat", 1]', "file-wrong-kind", ()),
        (b'{"model": 1, "id2label": {"0": "cat", "2": "dog"}}', "file-wrong-kind", ("id2label",)),
        (b'{"0": "cat", "2": "dog"}', "task-class-name", ("0 to 1",)),
        (b"cat\ndog\ncat\n", "task-duplicate-class", ("'cat'",)),
        (b'["cat", ""]', "option-syntax", ("''",)),
        (b'["cat", "\\ud800"]', "option-syntax", ("\\ud800",)),
    ],
)
def test_a_file_that_holds_no_names_is_one_error(
    content: bytes, code: str, quoted: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "n.txt").write_bytes(content)
    with refused(code, *quoted):
        class_names(str(tmp_path / "n.txt"))


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "n.txt").write_text("cat\ndog\n")
    monkeypatch.setattr(names, "MAX_BYTES", 7)
    with refused("file-too-large", "n.txt"):
        class_names(str(tmp_path / "n.txt"))
    monkeypatch.setattr(names, "MAX_BYTES", 8)
    assert class_names(str(tmp_path / "n.txt")) == ["cat", "dog"]


def test_a_source_takes_its_names_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text('{"cat": 1, "dog": 0}')
    spec = "zoo:cnn?classes=2&width=0.25"
    assert source_of(spec, None, str(tmp_path / "n.json"), None, random_weights=True).classes == ("dog", "cat")
    assert source_of(spec, None, "cat,dog", None, random_weights=True).classes == ("cat", "dog")
    with refused("task-class-count", "2 outputs", "3 class names"):
        source_of(spec, None, "cat,dog,eel", None, random_weights=True)
