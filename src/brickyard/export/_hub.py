"""Components and assemblies on the Hugging Face Hub, and in folders with the same layout.

A repository holds the model file `brickyard.safetensors`, the card `README.md`, and `config.json`, from which the Hub
identifies the model. Only the model file is read back, as strictly as any untrusted file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brickyard._files import loaded
from brickyard.assembly._assembly import Assembly, check_model
from brickyard.base._checks import given_path
from brickyard.base._errors import FileError, OptionError
from brickyard.base._lazy import package
from brickyard.base._messages import first_line, json_text
from brickyard.component._component import Component
from brickyard.export._about import description
from brickyard.network._untouched import guarded
from brickyard.reports._cards import model_card
from brickyard.storage._atomic import folder_for, write_together

FILENAME = "brickyard.safetensors"
CARD = "README.md"
CONFIG = "config.json"


@guarded
def save_pretrained(
    model: Component | Assembly,
    folder: str | Path,
    *,
    scores: Any = None,
    license: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a folder in the Hub's layout: the model file, its card, and `config.json`.

    Args:
        model: The component or assembly.
        folder: The folder; it is created if missing.
        scores: Results of `evaluate`, for the card.
        license: An identifier such as "apache-2.0", for the card; omitted if None.
        overwrite: Replace existing files.

    Returns:
        The folder.

    Raises:
        FileError: One of the files exists and `overwrite` is false, or cannot be written: then none is.

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
    taken = [name for name in (FILENAME, CARD, CONFIG) if os.path.lexists(folder / name)]
    if taken and not overwrite:
        raise FileError("file-exists", f"{folder / taken[0]} exists; give another folder, or overwrite=True")
    card = model_card(model, scores=scores, license=license)
    config = json_text(_config(model), 2) + "\n"
    with folder_for(folder, "choose another place"):
        writes: dict[Path, Callable[[Path], object]] = {
            folder / FILENAME: lambda place: model.save(place, overwrite=True),
            folder / CARD: lambda place: place.write_bytes(card.encode()),
            folder / CONFIG: lambda place: place.write_bytes(config.encode()),
        }
        write_together(writes, overwrite=overwrite)
    return folder


@guarded
def from_pretrained(
    repo_or_folder: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    filename: str = FILENAME,
) -> Component | Assembly:
    """Load a component or an assembly from a folder or from a repository on the Hub.

    Args:
        repo_or_folder: A folder, or else a repository such as "someone/pets".
        revision: A branch, tag or commit of the repository.
        token: A Hub token, for private repositories; default: the one that you logged in with.
        filename: Name of the model file.

    Raises:
        FileError: The file does not exist, cannot be fetched, or is neither a component nor an assembly.
        OptionError: huggingface_hub is missing.
    """
    folder = given_path(repo_or_folder, "the folder or repository")
    if folder.is_dir():
        if revision is not None:
            why = f"revision={revision!r} does not apply, because {folder} is a folder"
            raise OptionError("option-without-effect", f"{why}; leave it out")
        path = folder / filename
    else:
        hub = package("huggingface_hub", "hub", f"{repo_or_folder} is not a folder here, and the Hub")
        try:
            path = Path(hub.hf_hub_download(str(repo_or_folder), filename, revision=revision, token=token))
        except Exception as error:  # what huggingface_hub raises differs by version
            why = f"{repo_or_folder} is not a folder, and {filename} cannot be fetched from a repository of that name"
            advice = "check the name, the revision and the token"
            raise FileError("file-hub-failed", f"{why}: {first_line(error)}; {advice}") from error
    found: Component | Assembly = loaded(path, Component, Assembly)
    return found


@guarded
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
    """Upload the files of `save_pretrained` in one commit; the repository is created if missing.

    Args:
        model: The component or assembly.
        repo_id: The repository, such as "someone/pets".
        token: A Hub token with write access; default: the one that you logged in with.
        private: Make a newly created repository private; default: your account's setting.
        commit_message: The commit message.
        scores: Results of `evaluate`, for the card.
        license: An identifier such as "apache-2.0", for the card.

    Returns:
        The full name of the repository.

    Raises:
        FileError: The Hub refused the upload, or cannot be reached.
        OptionError: huggingface_hub is missing.
    """
    check_model(model, "push_to_hub")
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
    named = {"id2label": labels, "label2id": {name: k for k, name in labels.items()}}
    return {"library_name": "brickyard", "model_type": "brickyard", **named, "brickyard": about}
