"""Components and assemblies on the Hugging Face Hub, and in folders of that layout.

A repository holds the model's own file, `brickyard.safetensors`, a card, `README.md`, and `config.json`, in which the
Hub looks for what a model is. Only the first is read back, and as strictly as any file from elsewhere.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from brickyard._files import load
from brickyard.assembly._assembly import Assembly
from brickyard.base._checks import given_path
from brickyard.base._errors import FileError, OptionError
from brickyard.base._lazy import package
from brickyard.base._messages import first_line
from brickyard.component._component import Component
from brickyard.export._onnx import description
from brickyard.reports._cards import model_card
from brickyard.storage._atomic import make_folder, write_content

FILENAME = "brickyard.safetensors"
CARD = "README.md"
CONFIG = "config.json"


def save_pretrained(
    model: Component | Assembly,
    folder: str | Path,
    *,
    scores: Any = None,
    license: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a folder as the Hub wants it: the model's file, its card, and `config.json`.

    Args:
        model: What to write.
        folder: Where to; it is made if it is missing.
        scores: What `evaluate` returned, for the card.
        license: An identifier such as "apache-2.0", for the card; nothing is said where it is None.
        overwrite: Whether files of these names are replaced.

    Returns:
        The folder.

    Raises:
        FileError: One of the files exists and `overwrite` is false, or cannot be written.

    Example:
        >>> import brickyard as by, tempfile, torch
        >>> from brickyard.export._hub import from_pretrained, save_pretrained
        >>> from brickyard.testing import chain
        >>> images, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> component = by.disassemble(chain(), by.locate(chain(), (images, labels)), task=["1", "3"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in save_pretrained(component, folder).iterdir())
        ...     torch.equal(from_pretrained(folder)(images), component(images))
        ['README.md', 'brickyard.safetensors', 'config.json']
        True
    """
    folder = given_path(folder, "the folder to write to")
    taken = [name for name in (FILENAME, CARD, CONFIG) if (folder / name).exists()]
    if taken and not overwrite:
        raise FileError("file-exists", f"{folder / taken[0]} exists; give another folder, or overwrite=True")
    make_folder(folder, "choose another place")
    card = model_card(model, scores=scores, license=license)
    config = json.dumps(_config(model), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    model.save(folder / FILENAME, overwrite=overwrite)
    for name, text in ((CARD, card), (CONFIG, config)):
        write_content(folder / name, text, overwrite=overwrite)
    return folder


def from_pretrained(
    repo_or_folder: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    filename: str = FILENAME,
) -> Component | Assembly:
    """Read a component or an assembly from a folder or from a repository on the Hub.

    Args:
        repo_or_folder: A folder, or else a repository such as "someone/pets".
        revision: A branch, tag or commit of the repository.
        token: A token of the Hub, where the repository is private; default: the one that you logged in with.
        filename: The model's file in it.

    Raises:
        FileError: There is no such file, it cannot be fetched, or it is no component and no assembly.
        OptionError: huggingface_hub is missing.
    """
    folder = given_path(repo_or_folder, "the folder or repository")
    if folder.is_dir():
        if revision is not None:
            raise OptionError(
                "option-without-effect",
                f"revision={revision!r} does not apply, because {folder} is a folder; leave it out",
            )
        path = folder / filename
    else:
        hub = package("huggingface_hub", "hub", f"{repo_or_folder} is no folder here, and the Hub")
        try:
            path = Path(hub.hf_hub_download(str(repo_or_folder), filename, revision=revision, token=token))
        except Exception as error:  # what huggingface_hub raises differs by version
            why = f"{repo_or_folder} is no folder here, and {filename} cannot be fetched from a repository of that name"
            advice = "check the name, the revision and the token"
            raise FileError("file-hub-failed", f"{why}: {first_line(error)}; {advice}") from error
    found = load(path)
    if not isinstance(found, Component | Assembly):
        raise FileError("file-wrong-kind", f"expected a component or an assembly in {path}, found relevances")
    return found


def push_to_hub(
    model: Component | Assembly,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str = "Upload a Brickyard model",
    scores: Any = None,
    license: str | None = None,
) -> str:
    """Upload what `save_pretrained` writes, in one commit; the repository is made if it is missing.

    Args:
        model: What to upload.
        repo_id: The repository, such as "someone/pets".
        token: A token of the Hub that may write; default: the one that you logged in with.
        private: Whether a repository that is made is private; default: as your account has it.
        commit_message: What the commit says.
        scores: What `evaluate` returned, for the card.
        license: An identifier such as "apache-2.0", for the card.

    Returns:
        The repository's full name.

    Raises:
        FileError: The Hub refused, or cannot be reached.
        OptionError: huggingface_hub is missing.
    """
    if not isinstance(model, Component | Assembly):
        raise OptionError(
            "option-wrong-object",
            f"only a component or an assembly can be uploaded, got {type(model).__name__}; create or load one",
        )
    api = package("huggingface_hub", "hub", "the Hub").HfApi(token=token)
    with tempfile.TemporaryDirectory() as place:
        save_pretrained(model, place, scores=scores, license=license)
        try:
            made = api.create_repo(repo_id, private=private, exist_ok=True)
            name = str(getattr(made, "repo_id", repo_id))
            api.upload_folder(repo_id=name, folder_path=place, commit_message=commit_message)
        except Exception as error:  # what huggingface_hub raises differs by version
            why = f"the model cannot be uploaded to {repo_id}: {first_line(error)}"
            advice = "check the name, and log in with `hf auth login` or give a token that may write"
            raise FileError("file-hub-failed", f"{why}; {advice}") from error
    return name


def _config(model: Component | Assembly) -> dict[str, Any]:
    about = description(model)
    labels = dict(enumerate(about["outputs"]))
    named = {"id2label": {str(k): name for k, name in labels.items()}, "label2id": {v: k for k, v in labels.items()}}
    return {"library_name": "brickyard", "model_type": "brickyard", **named, "brickyard": about}
