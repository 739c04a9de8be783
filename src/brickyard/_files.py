"""Components, assemblies and relevances as files: safetensors with one JSON text, nothing that executes.

Reading treats a file as hostile: known operations, shapes that match; or one `FileError`. Commands import this before
torch is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickyard.base._checks import given_path
from brickyard.base._errors import BrickyardError, FileError
from brickyard.base._messages import told
from brickyard.network._untouched import guarded

if TYPE_CHECKING:
    from brickyard.assembly._assembly import Assembly
    from brickyard.assembly._refined import Refined
    from brickyard.component._component import Component
    from brickyard.relevance._relevance import Relevance


def loaded(path: Path, *kinds: type) -> Any:
    """A file of ours, of one of some kinds.

    Raises:
        FileError: It is of another kind.
    """
    found = load(path)
    if kinds and not isinstance(found, kinds):
        wanted = " or ".join(kind.__name__.lower() for kind in kinds)
        kind = {"Refined": "refined detector"}.get(type(found).__name__, type(found).__name__.lower())
        article = "an" if kind[0] in "aeiou" else "a"
        raise FileError("file-wrong-kind", f"expected {wanted} in {path}, found {article} {kind}")
    return found


# -- reading -----------------------------------------------------------------------------------------------


@guarded
def load(path: str | Path, *, device: Any = None, dtype: Any = None) -> Component | Assembly | Refined | Relevance:
    """Read a component, an assembly, a refined detector or relevances from a file; the source's class is not needed.

    Args:
        path: The file.
        device: Bring the model to this device: "cpu", "cuda", "cuda:1", "mps", a torch.device, or "auto" for a GPU if
            there is one. Default: the CPU.
        dtype: Convert its numbers to this type: "float32", "float64", "float16", "bfloat16", or a torch.dtype.
            Default: that of the file.

    Raises:
        FileError: The file is missing, truncated, foreign, from a newer version, or not consistent.
        OptionError: There is no such device or type.
        DataError: A weight is too large for the type.

    Example:
        >>> import brickyard as by, tempfile, torch
        >>> from brickyard.testing import chain
        >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> source = chain()
        >>> component = by.disassemble(source, by.locate(source, data), task=["1", "3"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = component.save(f"{folder}/small.safetensors")
        ...     again = by.load(path)
        >>> torch.equal(again(data[0]), component(data[0]))
        True
    """
    from brickyard.assembly._reading import read_assembly
    from brickyard.assembly._refined import read_refined
    from brickyard.component._component import read_component
    from brickyard.network._place import Place
    from brickyard.relevance._relevance import read_relevance

    place = Place.of(device, dtype)
    graphs = ("graph-component", "graph-assembly")
    readers: Readers = {
        "component": read_component,
        "assembly": read_assembly,
        "refined": read_refined,
        "relevance": read_relevance,
    }
    found: Component | Assembly | Refined | Relevance
    found = read_as(path, readers, "a component, an assembly or relevances", graphs, "brickyard.gnn.load")
    return place.put(found)


Readers = Mapping[str, Callable[[Path, dict[str, Any], Any], Any]]
"""For each kind of file what makes an object of its text and its tensors."""


def read_as(path: str | Path, readers: Readers, expected: str, others: Sequence[str], other: str) -> Any:
    """Read a file of one of some kinds.

    Args:
        path: The file.
        readers: The kinds.
        expected: What they are, for messages.
        others: Kinds that another function reads.
        other: That function.

    Raises:
        FileError: It is missing, of another kind, or not consistent.
    """
    from brickyard.storage._safefile import read

    path = given_path(path, "the file to load")
    text, tensors = read(path)
    manifest = text.get("manifest")
    kind = manifest.get("kind") if isinstance(manifest, dict) else text.get("kind")
    if not isinstance(kind, str) or kind not in readers:
        hint = f": read it with {other}" if kind in others else ""
        raise FileError("file-wrong-kind", f"{path} holds a {told(repr(kind))}; {expected} is expected{hint}")
    try:
        return readers[kind](path, text, tensors)
    except FileError as error:
        raise FileError(error.code, f"{path}: {told(error)}") from None
    except BrickyardError as error:
        raise FileError("file-inconsistent", f"{path} is inconsistent: {told(error)}") from None
