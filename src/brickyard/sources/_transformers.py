"""Image classifiers of transformers: a folder that `save_pretrained` wrote, or the id of a model in the hub's cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from brickyard.base._errors import FileError, OptionError
from brickyard.base._lazy import package
from brickyard.base._messages import first_line, told
from brickyard.base._records import Preprocessing
from brickyard.network._identity import QUANTITY, names_of, problem_in
from brickyard.runtime._progress import say
from brickyard.sources._libraries import seeded
from brickyard.sources._signatures import foreign

PATIENCE = 4.0  # seconds for the hub to answer


def from_transformers(
    place: str, *, pretrained: bool, how: Preprocessing | None = None
) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    """Load an image classifier, its preprocessing, and the names of its classes, if it has some.

    Nothing of the model's own repository is executed.

    Args:
        place: A folder, or the id of a model.
        pretrained: Whether to read its weights too; without, they are random.
        how: A preprocessing that stands in the place of the model's own.

    Raises:
        OptionError: The package is missing, or the model is no image classifier with one output per class.
        FileError: The model is not there, is damaged, or has no weights for its classes.
    """
    if not place:
        raise OptionError("option-empty", "hf: must be followed by a folder or the id of a model, as in hf:models/vit")
    library = package("transformers", "transformers", f"hf:{place}")
    if Path(place).is_dir():
        _check_folder(Path(place))
    else:
        _check_there(place)
    config = _read(lambda: library.AutoConfig.from_pretrained(place, trust_remote_code=False), place)
    if problem_in(config) == QUANTITY:
        raise OptionError(
            "option-source-unknown",
            f"hf:{place} predicts a quantity: its config has num_labels 1 or problem_type regression; give a "
            "classifier",
        )
    kind = library.AutoModelForImageClassification
    if type(config) not in kind._model_mapping:
        raise OptionError(
            "option-source-unknown",
            f"hf:{place} is a {config.model_type} model, of which transformers has no image classifier; give a model "
            "made with AutoModelForImageClassification",
        )
    if pretrained:
        with _silent(library):
            model, report = _read(
                lambda: kind.from_pretrained(place, config=config, trust_remote_code=False, output_loading_info=True),
                place,
            )
        _check_complete(place, report)
    else:
        with seeded():
            model = kind.from_config(config)
    return model.eval(), how or _preprocessing(library, place, config), names_of(model, config.num_labels) or ()


@contextlib.contextmanager
def _silent(library: Any) -> Iterator[None]:
    """Keep the library from drawing progress bars of its own, and from telling what is told here."""
    log = library.utils.logging
    shown, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if shown:
            log.enable_progress_bar()


def _check_folder(folder: Path) -> None:
    """Refuse a folder without a model, or with files in the place of its weights that hold none."""
    if not (folder / "config.json").is_file():
        there = ", ".join(sorted(item.name for item in folder.iterdir())[:6]) or "nothing"
        raise FileError(
            "file-missing", f"{folder} has no config.json; it holds {there}. Give what save_pretrained wrote"
        )
    for file in sorted(folder.glob("*.safetensors")):
        if (what := foreign(file)) is not None:
            raise FileError("file-weights-not-plain", f"{file} holds no weights: it is {what}")


def _check_there(place: str) -> None:
    """Ask the hub once for a model that is not in its cache: the library asks six times, for half a minute."""
    hub = package("huggingface_hub", "transformers", f"hf:{place}")
    try:
        if not isinstance(hub.try_to_load_from_cache(place, "config.json"), str):
            hub.model_info(place, timeout=PATIENCE)
    except Exception as error:  # those of several libraries for networks
        raise _missing(place, error) from None


def _read(load: Callable[[], Any], place: str) -> Any:
    try:
        return load()
    except Exception as error:  # the library reads files of many kinds, and raises what their readers do
        raise _missing(place, error) from None


def _missing(place: str, error: Exception) -> FileError:
    why = f"cannot load hf:{place}: {told(first_line(error), 200).rstrip('.')}"
    return FileError(
        "file-missing",
        f"{why}. Give a folder that save_pretrained wrote, or the id of a model that is in the hub's cache or can be "
        "downloaded now",
    )


def _check_complete(place: str, found: Any) -> None:
    """Refuse weights that lack some of the network's: the library makes them up, such as those of the classes."""
    missing = [*found.get("missing_keys", ()), *(str(item[0]) for item in found.get("mismatched_keys", ()))]
    if missing:
        raise FileError(
            "file-weights-mismatch",
            f"hf:{place} has no weights for {', '.join(sorted(missing)[:4])}, which would be random: it was not "
            "trained to name classes; give a model that was fine-tuned for image classification",
        )


def _preprocessing(library: Any, place: str, config: Any) -> Preprocessing:
    """What its image processor does, or the size alone where there is none."""
    try:
        processor = library.AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        size = getattr(config, "image_size", None) or 224
        size = (size, size) if isinstance(size, int) else tuple(size)
        say(f"hf:{place}: no image processor ({told(first_line(error), 80)}); pictures are resized to {size[0]} x "
            f"{size[1]} and not normalised: give --mean and --std where it was trained otherwise")  # fmt: skip
        return Preprocessing(size=size, channels=3 if getattr(config, "num_channels", 3) == 3 else None)
    how = Preprocessing.from_processor(processor)
    if getattr(config, "num_channels", 3) == 1:
        numbers = {key: set(getattr(how, key) or ()) for key in ("mean", "std")}
        if any(len(values) > 1 for values in numbers.values()):
            raise OptionError(
                "option-preprocessing",
                f"hf:{place} takes images of one channel, and its image processor has a mean and std for three: give "
                "--size, --mean and --std",
            )
        given = {key: tuple(values) or None for key, values in numbers.items()}
        how = how.model_copy(update={"channels": 1, "order": "rgb", **given})  # grey is the same in either order
    return how
