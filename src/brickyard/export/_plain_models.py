"""Components and assemblies as the text of plain modules: their networks, and what becomes of the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from brickyard.assembly._assembly import Assembly
from brickyard.base._errors import SurgeryError
from brickyard.base._messages import tidy
from brickyard.base._records import ComponentManifest, Preprocessing
from brickyard.component._component import Component
from brickyard.component._familiarity import SHORTNESS, Familiarity
from brickyard.export._plain_boxes import boxes_text
from brickyard.export._plain_inputs import preprocessing_text, raw_text
from brickyard.export._plain_network import GROUP, PlainNetwork
from brickyard.export._spelling import joined, literal, wrapped
from brickyard.network._network import Network, kind
from brickyard.network._stored import tensors_of
from brickyard.outputs._detections import Detections
from brickyard.outputs._kinds import OneOfMany, Outputs, Several
from brickyard.outputs._outputs import find_outputs
from brickyard.scaling._scale import owned, usual_energies

GLOBALS = (
    "CLASSES",
    "MEMBERS",
    "MODULE",
    "OTHERS",
    "TASK",
    "WEIGHTS",
    "any_of",
)  # no variable of a network may hide them

_FAMILIARITY = '''
class Familiarity(nn.Module):
    """How far features are from those of a part's own classes; 1 is usual for images of these."""

    def __init__(self, classes, size, rank):
        super().__init__()
        self.register_buffer("mean", torch.zeros(classes, size))
        self.register_buffer("directions", torch.zeros(rank, size))
        self.register_buffer("gains", torch.zeros(rank))
        self.register_buffer("unit", torch.zeros(()))
        self.register_buffer("length", torch.zeros(2))

    def forward(self, features):
        usual, spread = self.length.to(features.dtype)
        short = (usual - features.norm(dim=1)).clamp_min(0) / spread
        return self.distance(features) + {shortness} * short.square()

    def distance(self, features):
        """The squared distance to the nearest class, in units of the usual one."""
        mean, directions = self.mean.to(features.dtype), self.directions.to(features.dtype)
        centre = mean.mean(0)
        x, m = features - centre, mean - centre
        along, along_mean = x @ directions.T, m @ directions.T
        root = (1 - self.gains.to(features.dtype)).clamp_min(0).sqrt()
        lengths = self.squared(along * root, along_mean * root)
        lengths = lengths + self.squared(x - along @ directions, m - along_mean @ directions)
        return (lengths / self.unit.to(features.dtype)).clamp_min(0).amin(1)

    @staticmethod
    def squared(a, b):
        """Squared distances between rows: (n, d), (m, d) -> (n, m)."""
        return a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
'''

_DEPTHS = '''
class Depths(nn.Module):
    """How unusual it is what layers of a part are given, against the part's own images."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes
        for name in ("mean", "gain"):
            self.register_buffer(name, torch.zeros(sum(sizes)))
        for name in ("usual", "spread", "weights"):
            self.register_buffer(name, torch.zeros(len(sizes)))

    def forward(self, seen):
        numbers = torch.cat(list(seen), 1).detach()
        numbers = numbers.to(torch.promote_types(numbers.dtype, torch.float32))
        mean, gain, usual, spread, weights = (
            value.to(numbers.dtype) for value in (self.mean, self.gain, self.usual, self.spread, self.weights)
        )
        squares = ((numbers - mean) * gain).square().split(self.sizes, 1)
        distances = torch.stack([one.mean(1).sqrt() for one in squares], 1)
        return (torch.log1p(((distances - usual) / spread).clamp_min(0)) * weights).mean(1)
'''

_ANY_OF = '''
def any_of(logits):
    """The logit of showing any of some classes: of 1 - (1 - p) * (1 - q) * ... for their probabilities."""
    found = logits[:, :1]
    for other in logits[:, 1:].split(1, 1):
        found = torch.cat([found, other, found + other], 1).logsumexp(1, keepdim=True)
    return found
'''


@dataclass(frozen=True)
class Content:
    """What a Python file consists of.

    Attributes:
        constants: Lines.
        functions: Those that prepare images.
        classes: The modules, of which the last is called Model.
        state: The tensors of the last.
    """

    constants: list[str]
    functions: str
    classes: list[str]
    state: dict[str, Tensor]


# -- components --------------------------------------------------------------------------------------------


def component_content(component: Component) -> Content:
    """What the file of a component consists of.

    Raises:
        FileError: Its network has operations without a form as data.
        SurgeryError: Its outputs cannot be written.
    """
    network = PlainNetwork(component.network, component.manifest.input_shape)
    head, constants = _head(component)
    about = "The network; its layers have the names that they have in the source."
    boxes, shape = None, component.input_shape
    count: int | str = len(component.classes) + component.reject
    if isinstance(component.outputs, Detections) and component.outputs.boxes is not None:
        boxes = component.outputs.boxes.of_task(len(component.classes))
        count = f"{boxes.outputs}, places"
    text = _network_class(network, "Model", about, component.manifest.input_shape, [count], head)
    sides = len(component.input_shape) - 1
    how = component.manifest.preprocessing
    inputs = preprocessing_text(how, kind(component.network).dtype, sides)
    inputs += "" if boxes is None else f"\n\n{boxes_text(boxes, how, shape[1:])}"
    classes = _with_helpers([network], [component.manifest], [text])
    return Content(constants, inputs, classes, dict(tensors_of(component.network, "")))


def _with_helpers(
    networks: Sequence[PlainNetwork], parts: Sequence[ComponentManifest], classes: list[str]
) -> list[str]:
    """Classes after what they need."""
    merged = any(len(group) > 1 for part in parts for group in part.groups)
    several = merged and type(find_outputs(parts[0].outputs)).any_of is Several.any_of
    group = any(network.grouped for network in networks)
    return [*([GROUP] if group else []), *([_ANY_OF] if several else []), *classes]


def _network_class(
    network: PlainNetwork,
    name: str,
    about: str,
    shape: Sequence[int],
    counts: Sequence[int | str],
    head: Sequence[str] = (),
    reads_at: int | None = None,
) -> str:
    """The class of a network; with `reads_at`, it returns its features too."""
    images, steps, result, features = network.steps(GLOBALS, reads_at)
    more = ", (batch, features)" if features else ""
    lines = [
        f"class {name}({network.base}):",
        f'    """{about}',
        "",
        f"    (batch, {', '.join(map(str, shape))}) -> {', '.join(f'(batch, {count})' for count in counts)}{more}",
        '    """',
        "",
        "    def __init__(self):",
        "        super().__init__()",
        *network.layers(),
        "",
        f"    def forward(self, {images}):",
        *steps,
        *([f"        logits = {result}", *head] if head else wrapped(f"return {', '.join([result, *features])}", 8)),
    ]
    return "\n".join(lines)


def _unknown(outputs: str, what: str) -> SurgeryError:
    why = f"{what} of the kind {tidy(outputs)!r} are computed in a way of their own, which cannot be written as Python"
    return SurgeryError("surgery-export-failed", f"{why}; export it as .onnx")


def _head(component: Component) -> tuple[list[str], list[str]]:
    """What follows the network in the forward method, and the constants for that."""
    manifest, how = component.manifest, type(component.outputs).head
    merged = _merged(component.outputs, "logits", manifest.groups, manifest.reject)
    if not manifest.reject and manifest.output_axis is not None:
        return _ending([], merged), []
    if how not in (Outputs.head, OneOfMany.head):
        raise _unknown(manifest.outputs, "outputs")
    rest = [k for k in range(len(manifest.source.classes)) if k not in set(manifest.task)]
    constants = wrapped(f"TASK = [{joined(map(str, manifest.task))}]")
    lines = ["task = torch.tensor(TASK, dtype=torch.int64, device=logits.device)"]
    if not manifest.reject or how is Outputs.head:
        return _ending(lines, ["logits.index_select(1, task)", *merged]), constants
    constants += wrapped(f"OTHERS = [{joined(map(str, rest))}]")
    lines += [
        "others = torch.tensor(OTHERS, dtype=torch.int64, device=logits.device)",
        "none = logits.index_select(1, others).logsumexp(1, keepdim=True)",
    ]
    return _ending(lines, ["torch.cat([logits.index_select(1, task), none], 1)", *merged]), constants


def _ending(statements: Sequence[str], values: Sequence[str]) -> list[str]:
    """The last lines of a forward method, which returns the last of what `logits` become one after the other."""
    lines = [
        *statements,
        *(f"logits = {value}" for value in values[:-1]),
        *(f"return {value}" for value in values[-1:]),
    ]
    return [one for line in lines for one in wrapped(line, 8)]


def _merged(outputs: Outputs, name: str, groups: Sequence[Sequence[int]], more: bool = False) -> list[str]:
    """What reduces logits to one for each group, as an expression; `more` says that another one follows them."""
    sizes = [len(group) for group in groups] + [1] * more
    if max(sizes) == 1:
        return []
    how = type(outputs).any_of
    if how not in (OneOfMany.any_of, Several.any_of):
        raise _unknown(type(outputs).__name__, "classes that stand for several")
    runs = [f"{name}[:, {stop - size}:{stop}]" for size, stop in zip(sizes, accumulate(sizes), strict=True)]
    one = "any_of({})" if how is Several.any_of else "{}.logsumexp(1, keepdim=True)"
    pieces = [run if size == 1 else one.format(run) for run, size in zip(runs, sizes, strict=True)]
    return [f"torch.cat([{joined(pieces)}], 1)"]


# -- assemblies --------------------------------------------------------------------------------------------


def assembly_content(assembly: Assembly) -> Content:
    """What the file of an assembly consists of.

    Raises:
        FileError: A network has operations without a form as data.
        SurgeryError: Its outputs cannot be written.
    """
    manifest, components = assembly.manifest, assembly.components()
    known = [part.familiarity for part in components if part.familiarity is not None and assembly.gate is not None]
    known = known if len(known) == len(components) else []
    texts: list[str] = []
    networks: list[PlainNetwork] = []
    together = None if known else _together(assembly)
    if together is not None:
        networks.append(PlainNetwork(together, assembly.input_shape))
        about, widths = "The networks of the parts, whose common steps run once.", [p.width for p in manifest.parts]
        texts.append(_network_class(networks[-1], "Parts", about, assembly.input_shape, widths))
    for parts, network in _lookers(assembly):
        shape = manifest.parts[parts[0]].input_shape
        networks.append(PlainNetwork(network, shape))
        about = f"The network of part {parts[0]}, and what its layers are given."
        if len(parts) > 1:
            about = f"The networks of parts {joined(map(str, parts))}, and what their layers are given."
        widths = [manifest.parts[part].width for part in parts]
        texts.append(_network_class(networks[-1], f"Part{parts[0]}", about, shape, widths))
    for index, (network, shape) in enumerate(_apart(assembly, together)):
        networks.append(PlainNetwork(network, shape))
        name = f"Part{index}" if manifest.form == "parallel" else "Joined"
        about = (
            f"The network of part {index}." if manifest.form == "parallel" else "The parts' networks, joined to one."
        )
        width = sum(p.width for p in (manifest.parts[index : index + 1] if name != "Joined" else manifest.parts))
        reads_at = components[index].reads_at if known else None
        texts.append(_network_class(networks[-1], name, about, shape, [width], reads_at=reads_at))
    if known:
        texts.append(_FAMILIARITY.strip().replace("{shortness}", repr(SHORTNESS)))
    if assembly.lookers:
        texts.append(_DEPTHS.strip())
    constants = []
    if not manifest.plain:
        constants = wrapped(f"MEMBERS = [{joined(literal(list(member)) for member in manifest.members)}]")
    texts.append("\n".join(_assembly_class(assembly, known, together is not None)))
    classes = _with_helpers(networks, manifest.parts, texts)
    return Content(constants, _inputs_text(assembly), classes, _state(assembly, known, together))


def _together(assembly: Assembly) -> Network | None:
    """One network of all parts, if they run as one."""
    runs = [network for parts, network, _ in assembly.runs if len(parts) == len(assembly.components())]
    return _flat(runs[0]) if runs and not assembly.lookers else None


def _lookers(assembly: Assembly) -> list[tuple[tuple[int, ...], Network]]:
    """Networks that also return what layers are given, each with its parts; none, unless the scaling needs them."""
    return [(parts, _flat(network, f"{parts[0]}." if len(parts) == 1 else "")) for parts, network in assembly.lookers]


def _apart(assembly: Assembly, together: Network | None) -> list[tuple[Network, tuple[int, ...]]]:
    """Networks that run by themselves, with their input shapes."""
    return [] if together is not None or assembly.lookers else assembly.shaped_networks()


def _flat(network: Network, prefix: str = "") -> Network:
    """A network with only those layers and tensors that its steps name, without a prefix that all of these have."""
    own = [node for node in network.nodes if node.op in ("layer", "tensor")]
    layers = {node.target.removeprefix(prefix): network.layer(node.target) for node in own if node.op == "layer"}
    tensors = {node.target.removeprefix(prefix): network.tensor(node.target) for node in own if node.op == "tensor"}
    nodes = [replace(n, target=n.target.removeprefix(prefix)) if n in own else n for n in network.nodes]
    return Network(nodes, layers, tensors)


def _state(assembly: Assembly, known: Sequence[Familiarity], together: Network | None) -> dict[str, Tensor]:
    """The tensors of an assembly's plain module."""
    parallel = assembly.manifest.form == "parallel"
    state: dict[str, Tensor] = {} if together is None else dict(tensors_of(together, "parts."))
    for index, (network, _) in enumerate(_apart(assembly, together)):
        state |= tensors_of(network, f"parts.{index}." if parallel else "joined.")
    for index, (_, network) in enumerate(_lookers(assembly)):
        state |= tensors_of(network, f"parts.{index}.")
    for index, depths in enumerate(assembly.depths if assembly.lookers else ()):
        state |= tensors_of(depths, f"depths.{index}.")
    for name, value in (("matrix", assembly.matrix), ("shift", assembly.shift)):
        state |= {} if value is None else {name: value}
    if assembly.manifest.scaling.energy:
        state["usual"] = usual_energies(assembly.manifest)
    for index, one in enumerate(known):
        state |= {f"familiarity.{index}.{name}": value for name, value in one.named_buffers(recurse=False)}
    if known and assembly.gate is not None:
        state |= {name: getattr(assembly.gate, name) for name in ("slopes", "weights", "bias")}
        state["share"] = owned(assembly.manifest)
    return state


def _inputs_text(assembly: Assembly) -> str:
    """The functions that prepare images for each network of an assembly."""
    manifest, networks = assembly.manifest, assembly.networks()
    shared = manifest.form != "parallel" and manifest.shared_input
    hows = [part.preprocessing for part in manifest.parts[: 1 if shared else None]]
    dtypes = [kind(networks[index if manifest.form == "parallel" else 0]).dtype for index in range(len(hows))]
    sides = len(assembly.input_shape) - 1
    if shared:
        return preprocessing_text(hows[0], dtypes[0], sides)
    places: dict[tuple[Preprocessing, torch.dtype], int] = {}
    for index, how in enumerate(zip(hows, dtypes, strict=True)):
        places.setdefault(how, index)
    texts = [preprocessing_text(*how, sides, f"part{index}_preprocess").strip() for how, index in places.items()]
    lists = joined(f"x{places[how]}" for how in zip(hows, dtypes, strict=True))
    result = f"[{lists}]" if manifest.form == "parallel" else f"torch.cat([{lists}], 1)"
    lines = [
        "def preprocess(images):",
        f'    """Turn raw {raw_text(sides)}, into what the parts take."""',
        *(f"    x{index} = part{index}_preprocess(images)" for index in places.values()),
        *wrapped(f"return {result}", 4),
    ]
    return "\n\n\n".join([*texts, "\n".join(lines)])


def _assembly_class(assembly: Assembly, known: Sequence[Familiarity], together: bool) -> list[str]:
    manifest, parallel = assembly.manifest, assembly.manifest.form == "parallel"
    count, parts = sum(map(len, manifest.columns)), range(len(manifest.parts))
    made = [
        f"self.parts = nn.ModuleList([{joined(f'Part{i}()' for i in parts)}])" if parallel else "self.joined = Joined()"
    ]
    made = ["self.parts = Parts()"] if together else made
    if assembly.lookers:
        made = [f"self.parts = nn.ModuleList([{joined(f'Part{at[0]}()' for at, _ in assembly.lookers)}])"]
        shapes = [f"Depths({literal([one.size for one in depths.layers])})" for depths in assembly.depths]
        made.append(f"self.depths = nn.ModuleList([{joined(shapes)}])")
    sizes: list[tuple[str, tuple[int, ...]]] = []
    if assembly.matrix is not None:
        sizes += [("matrix", (count, count)), ("shift", (count,))]
    if manifest.scaling.energy:
        sizes.append(("usual", (2, len(parts))))
    if known:
        shapes = [f"Familiarity({', '.join(map(str, (*one.mean.shape, len(one.directions))))})" for one in known]
        made.append(f"self.familiarity = nn.ModuleList([{joined(shapes)}])")
        total = sum(one.mean.shape[1] for one in known)
        sizes += [("slopes", (len(parts),)), ("weights", (len(parts), total)), ("bias", (len(parts),))]
        sizes += [("share", (len(manifest.classes), len(parts)))]
    made += [f'self.register_buffer("{name}", torch.zeros({literal(size)}))' for name, size in sizes]
    return [
        "class Model(nn.Module):",
        f'    """{"The parts side by side" if parallel else "The joined parts"}, and how their outputs become one.',
        "",
        f"    What `preprocess` returns -> (batch, {len(manifest.classes) + manifest.reject})",
        '    """',
        "",
        "    def __init__(self):",
        "        super().__init__()",
        *(line for text in made for line in wrapped(text, 8)),
        "",
        f"    def forward(self, {'inputs' if parallel else 'x'}):",
        *(line for text in _answers(assembly, bool(known), together) for line in wrapped(text, 8)),
    ]


def _answers(assembly: Assembly, gated: bool, together: bool) -> list[str]:
    """The statements that make an assembly's outputs of those of its parts."""
    manifest, names = assembly.manifest, [f"logits{index}" for index in range(len(assembly.manifest.parts))]
    lines = _run(assembly, names, gated, together)
    for name, part, groups, rest in zip(names, manifest.parts, manifest.groups, manifest.rest, strict=True):
        if manifest.scaling.energy:
            own = f"[:, {literal(list(part.task))}]" if part.reject or part.output_axis is None else ""
            lines.append(f"energy_of_{name} = {name}{own}.logsumexp(1)")
        if manifest.reject:
            lines.append(f"none_by_{name} = {name}[:, {literal(list(rest))}].logsumexp(1) - {name}.logsumexp(1)")
        lines += [f"{name} = {text}" for text in _columns(assembly, name, part, groups)]
    lines.append(f"logits = torch.cat([{joined(names)}], 1)")
    if manifest.scaling.energy:
        owner = [part for part, columns in enumerate(manifest.columns) for _ in columns]
        lost = "torch.log1p((usual - energies).clamp_min(0) / spread)"
        if assembly.lookers:
            unusual = joined(f"self.depths[{index}](seen{index})" for index in range(len(names)))
            lines.append(f"depths = torch.stack([{unusual}], 1)")
            lost = f"({lost} + {manifest.scaling.depth!r} * depths.to(logits.dtype))"
        lines += [
            f"energies = torch.stack([{joined(f'energy_of_{name}' for name in names)}], 1)",
            "usual, spread = self.usual.to(logits.dtype)  # of each part's energy on its own images",
            f"lost = spread * {lost}",
            f"logits = logits - lost[:, {literal(owner)}]",
        ]
    if assembly.matrix is not None:
        lines.append("logits = logits @ self.matrix.T.to(logits.dtype) + self.shift.to(logits.dtype)")
    if not manifest.plain:
        if type(assembly.outputs).joined is not Outputs.joined:
            raise _unknown(manifest.outputs, "outputs that several parts share")
        reduced = "amax" if manifest.on_duplicate == "max" else "mean"
        lines.append(f"logits = torch.stack([logits[:, member].{reduced}(1) for member in MEMBERS], 1)")
    lines += _gate(names) if gated else []
    lines += _reject(names) if manifest.reject else []
    return [*lines, "return logits"]


def _gate(names: Sequence[str]) -> list[str]:
    """The statements that add what a gate gives the classes of each part."""
    found = [f"features{index}" for index in range(len(names))]
    distances = joined(f"self.familiarity[{index}]({one})" for index, one in enumerate(found))
    return [
        f"distances = torch.stack([{distances}], 1)",
        f"features = torch.cat([{joined(f'F.normalize({one}, dim=1)' for one in found)}], 1)",
        "slopes, weights = self.slopes.to(features.dtype), self.weights.to(features.dtype)",
        "gain = features @ weights.T + self.bias.to(features.dtype) - distances * slopes",
        "logits = logits + gain @ self.share.T.to(logits.dtype)",
    ]


def _reject(names: Sequence[str]) -> list[str]:
    """The statements that add the output for what all parts say is none of the classes."""
    return [
        f"none = torch.stack([{joined(f'none_by_{name}' for name in names)}], 1).sum(1)",
        "none = none.to(logits.dtype).clamp_max(-torch.finfo(logits.dtype).eps)",
        "odds = none - torch.log(-torch.expm1(none))",
        "logits = torch.cat([logits, (logits.logsumexp(1) + odds).unsqueeze(1)], 1)",
    ]


def _run(assembly: Assembly, names: Sequence[str], gated: bool, together: bool) -> list[str]:
    """The statements that run an assembly's networks."""
    manifest = assembly.manifest
    if together:
        lines = [f"({joined(names)}{',' * (len(names) == 1)}) = self.parts(inputs[0])"]
    elif assembly.lookers:
        read = ", read{}" if gated else ""
        pairs = [[f"({names[i]}, *seen{i}{read.format(i)})" for i in parts] for parts, _ in assembly.lookers]
        lines = [
            f"({joined(own)}{',' * (len(own) == 1)}) = self.parts[{index}](inputs[{parts[0]}])"
            for index, (own, (parts, _)) in enumerate(zip(pairs, assembly.lookers, strict=True))
        ]
        for index, one in enumerate(assembly.components() if gated else ()):
            averaged = PlainNetwork(one.network, one.input_shape).averaged(one.network.nodes[one.reads_at].name)
            lines.append(f"features{index} = read{index}{averaged}")
    elif manifest.form == "parallel":
        more = [f", features{index}" if gated else "" for index in range(len(names))]
        lines = [f"{name}{more[i]} = self.parts[{i}](inputs[{i}])" for i, name in enumerate(names)]
    else:
        widths = joined(str(part.width) for part in manifest.parts)
        lines = [f"outputs = self.joined(x).split([{widths}], 1)"]
        lines += [f"{name} = outputs[{index}]" for index, name in enumerate(names)]
    return lines


def _columns(assembly: Assembly, name: str, part: ComponentManifest, groups: Sequence[Sequence[int]]) -> list[str]:
    """What becomes of a part's logits before they are laid beside others', one expression after the other."""
    found: list[str] = []
    columns = [k for group in groups for k in group]
    if not part.reject and part.output_axis is None:
        found.append(f"{name}[:, {literal(list(part.task))}]")
    if assembly.manifest.scaling.log_probability:
        how = type(assembly.outputs).normalised
        if how not in (Outputs.normalised, OneOfMany.normalised):
            raise _unknown(assembly.manifest.outputs, "outputs")
        found += [f"{name}.log_softmax(1)"] if how is OneOfMany.normalised else []
    if part.reject:
        found.append(f"{name}[:, {literal(columns)}]")
    elif len(columns) != len(part.task):
        found.append(f"{name}[:, {literal([part.task.index(k) for k in columns])}]")
    return found + _merged(assembly.outputs, name, groups)
