"""Folders and repositories of the Hub's layout, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch

import brickyard as by
from brickyard.export._hub import from_pretrained, push_to_hub, save_pretrained
from brickyard.testing import chain
from conftest import needed_package
from errors import refused
from shell import run

huggingface_hub = needed_package("huggingface_hub")

DATA = (torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 4)
NAMES = ["cat", "dog", "`owl`\n---\nlicense: mine", "fox"]
FILES = ["README.md", "brickyard.safetensors", "config.json"]


def component(**options) -> by.Component:
    relevance = by.locate(chain(), DATA, classes=NAMES)
    return by.disassemble(chain(), relevance, task=[2, 0], **options)


class Hub:
    """What `HfApi` is asked to do, written down."""

    def __init__(self) -> None:
        self.token: object = None
        self.made: list[tuple] = []
        self.files: dict[str, bytes] = {}
        self.messages: list[str] = []

    def __call__(self, token=None):
        self.token = token
        return self

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        self.made.append((repo_id, private, exist_ok))
        return SimpleNamespace(repo_id=f"me/{repo_id}" if "/" not in repo_id else repo_id)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.messages.append(f"{repo_id}: {commit_message}")
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


def test_a_folder_comes_back_the_same(tmp_path) -> None:
    for name, model in (("one", component(reject=True)), ("two", by.assemble([component()], scaling="mahalanobis"))):
        folder = save_pretrained(model, tmp_path / name)
        assert sorted(path.name for path in folder.iterdir()) == FILES
        again = from_pretrained(folder)
        assert type(again) is type(model)
        assert torch.equal(again.predict_proba(DATA[0]), model.predict_proba(DATA[0]))
        second = save_pretrained(again, tmp_path / f"{name}-again")
        for file in FILES:
            assert (folder / file).read_bytes() == (second / file).read_bytes()
        config = json.loads((folder / "config.json").read_text())
        assert config["library_name"] == "brickyard"
        assert [config["id2label"][str(k)] for k in range(len(model.classes_))] == model.classes_.tolist()
        assert config["brickyard"]["kind"] == model.manifest.kind


def test_the_card_is_read_by_the_hub_and_class_names_cannot_forge_its_head(tmp_path) -> None:
    folder = save_pretrained(component(), tmp_path / "x", license="apache-2.0")
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.library_name == "brickyard"
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "image-classification"
    assert "cat" in card.text


def test_files_that_exist_are_kept(tmp_path) -> None:
    (tmp_path / "README.md").write_text("precious")
    with refused("file-exists", "README.md"):
        save_pretrained(component(), tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]
    save_pretrained(component(), tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    with refused("file-not-writable"):
        save_pretrained(component(), tmp_path / "README.md" / "below")


def test_push_uploads_what_a_folder_holds(tmp_path, monkeypatch) -> None:
    hub, model = Hub(), component()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    assert push_to_hub(model, "pets", token="secret", private=True, commit_message="First") == "me/pets"
    assert (hub.token, hub.made, hub.messages) == ("secret", [("pets", True, True)], ["me/pets: First"])
    folder = save_pretrained(model, tmp_path / "x")
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}

    def refuse(*_args, **_kwargs):
        raise huggingface_hub.errors.LocalTokenNotFoundError("no token\nmore")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with refused("file-hub-failed", "a/b", "no token"):
        push_to_hub(model, "a/b")


def test_from_the_hub(tmp_path, monkeypatch) -> None:
    model, asked = component(), []
    folder = save_pretrained(model, tmp_path / "x")

    def download(repo_id, filename, *, revision=None, token=None):
        asked.append((repo_id, filename, revision, token))
        if repo_id != "someone/pets":
            raise huggingface_hub.errors.LocalEntryNotFoundError("not there")
        return str(folder / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    again = from_pretrained("someone/pets", revision="v2", token="secret")
    assert asked == [("someone/pets", "brickyard.safetensors", "v2", "secret")]
    assert torch.equal(again(DATA[0]), model(DATA[0]))
    with refused("file-hub-failed", "someone/else", "not there"):
        from_pretrained("someone/else")
    (folder / "brickyard.safetensors").write_bytes(b"hostile")
    with refused("file-not-safetensors", "brickyard.safetensors"):
        from_pretrained("someone/pets")
    by.locate(chain(), DATA).save(folder / "brickyard.safetensors", overwrite=True)
    with refused("file-wrong-kind", "brickyard.safetensors"):
        from_pretrained(folder)


def test_push_from_the_command_line(tmp_path, monkeypatch) -> None:
    hub, file = Hub(), component().save(tmp_path / "c.safetensors")
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    result = run("push", file, "me/pets", "--public", "--license", "mit", "--message", "Hello", "--json")
    assert json.loads(result.stdout) == {"repo": "me/pets"}
    assert (hub.made, hub.messages) == ([("me/pets", False, True)], ["me/pets: Hello"])
    assert hub.files["brickyard.safetensors"] == file.read_bytes()
    assert b"mit" in hub.files["README.md"]


def test_without_the_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    for call in (lambda: from_pretrained("someone/pets"), lambda: push_to_hub(component(), "someone/pets")):
        with refused("option-missing-package", "'brickyard[hub]'"):
            call()
    assert from_pretrained(save_pretrained(component(), tmp_path / "x")).classes[1] == "cat"
