"""Text for a component's manifest."""

from __future__ import annotations

from collections.abc import Sequence

from brickyard.base._doubts import doubts, share_held
from brickyard.base._history import TuneRecord
from brickyard.base._messages import shown
from brickyard.base._records import AssemblyManifest, ComponentManifest, LocateRecord


def describe(manifest: ComponentManifest) -> str:
    """Summarise a component's manifest as a short report."""
    source, chosen = manifest.source, manifest.selection
    whole = f"{share_text(chosen.flops, source.flops)} of the source with all its classes"
    lines = [
        f"component of {source.name} ({len(source.classes)} classes)",
        f"  classes      {_short(manifest.classes)}{' + reject' if manifest.reject else ''}",
        f"  parameters   {chosen.parameters:,} ({share_text(chosen.parameters, source.parameters)} of the source)",
        f"  FLOPs        {chosen.flops:,} ({whole})",
        f"  chosen by    {selection_text(manifest)}",
        f"  heal         {_heal(manifest)}",
        f"  kept         {kept_text(manifest)}",
    ]
    located = manifest.located
    if located is not None and located.right is not None and located.right[1]:
        right, asked = located.right
        found = f"{images_text(located, asked)}, of which the source answers {right / asked:.1%} correctly"
        lines.insert(4, f"  located      on {found}")
    if located is not None and located.assumed:
        lines.append(f"  assumed      {located.assumed}, which nothing said")
    if manifest.agreement is not None:
        lines.append(f"  agreement    {agreement_text(manifest)}")
    if manifest.outputs == "one":
        lines.append(f"  strangers    {strangers_text(manifest)}")
    lines += [f"  later        {text}" for text in missing_texts(manifest)]
    if manifest.output is not None:
        lines.append(f"  output       {manifest.output}, of what the source returns")
    if located is not None and located.ending is not None:
        lines.append(f"  outputs      logits, taken before the source's {located.ending}")
    if manifest.members:
        lines.append(f"  stands for   {merged_text(manifest)}")
    if manifest.decision_thresholds:
        lines.append(f"  answers      {decision_text(manifest)}")
    if manifest.tuned is not None:
        lines.append(f"  trained      {tuned_text(manifest.tuned)}")
    lines += [f"  pinned       {p.axis} ({p.channels} channels): {p.reason}" for p in manifest.pinned]
    lines += [f"  note         {note}" for note in manifest.heal.notes]
    lines += [f"  warning      {text}" for text in doubts(manifest)]
    return "\n".join(shown(line, keep="") for line in lines)


def describe_assembly(m: AssemblyManifest) -> str:
    """Summarise an assembly's manifest as a short report."""
    total = sum(p.selection.parameters for p in m.parts)
    once = f"; {m.shared_parameters:,} that parts have in common count once" if m.shared_parameters else ""
    total -= m.shared_parameters
    c = m.cascade
    lines = [
        f"assembly of {len(m.parts)} components, {len(m.classes)} classes{' + reject' if m.reject else ''}",
        f"  form         {m.form}",
        f"  scaling      {m.scaling.name}" + (f", {m.scaling.images} images" if m.scaling.images else ""),
        f"  parameters   {total:,} in the parts{once}",
    ]
    lines += [
        f"  part {i}       {', '.join(p.classes[:6])}{' ...' if len(p.classes) > 6 else ''}  of {p.source.name}"
        for i, p in enumerate(m.parts)
    ]
    if c is not None:
        found = f"{c.flops:.2f} of the FLOPs of all parts, and {c.agreement:.1%} of their answers"
        lines.append(f"  in turn      {found}, on {c.held_back:,} images held back of {c.images:,}")
    if m.merged is not None:
        lines.append(f"  merged       {m.merged.text}")
    if m.budget is not None:
        lines.append(f"  budget       {m.budget.text}")
    if m.outputs == "one":
        lines.append(f"  strangers    {strangers_text(m)}")
    if m.decision_thresholds:
        lines.append(f"  answers      {decision_text(m)}")
    if m.tuned is not None:
        lines.append(f"  trained      {tuned_text(m.tuned)}")
    gone = [p.names[k] for p, out in zip(m.parts, m.left_out, strict=False) for k in out]
    if gone:
        lines.append(f"  left out     {', '.join(gone)}")
    lines += [f"  note         {note}" for note in (*m.notes, *m.scaling.notes)]
    lines += [f"  warning      {text}" for text in doubts(m)]
    return "\n".join(shown(line, keep="") for line in lines)


def images_text(located: LocateRecord, used: int) -> str:
    """Say how many images a source was located on, and why not on more."""
    if located.given is None or used >= located.given:
        return f"{used:,} images"
    most = f"at most {located.per_class:,} " if located.per_class is not None else "those "
    each = "per located class" if located.per_class is not None else "of the located classes"
    return f"{used:,} of {located.given:,} images ({most}{each})"


def kept_text(manifest: ComponentManifest) -> str:
    cut = [axis for axis in manifest.axes.values() if len(axis.kept) < axis.size]
    kept, size = sum(len(axis.kept) for axis in cut), sum(axis.size for axis in cut)
    return f"{kept:,} of {size:,} channels on {len(cut)} of {len(manifest.axes)} axes" if cut else "every channel"


def selection_text(manifest: ComponentManifest) -> str:
    chosen = manifest.selection
    if chosen.budget is not None:
        of = " of a component that was cut further" if chosen.of == "component" else ""
        return f"budget{of}, " + ", ".join(f"{name} {value}" for name, value in chosen.budget.items())
    if chosen.thresholds is not None:
        return "thresholds, " + ", ".join(f"{name} {value:g}" for name, value in chosen.thresholds.items())
    cut = any(len(axis.kept) < axis.size for axis in manifest.axes.values())
    return "hand" if cut else "keeping all"


def _heal(manifest: ComponentManifest) -> str:
    heal = manifest.heal
    if heal.method == "none":
        return "none"
    shifted = f" and {heal.copies - 1} shifted copies of each" if heal.copies > 1 else ""
    others = f", {heal.others} of them of other classes" if heal.others else ""
    return f"{heal.method}, {heal.images} images{shifted}{others}, {heal.layers} layers"


def agreement_text(manifest: ComponentManifest) -> str:
    """Say how often a component answers like its source, or a student like its teacher; "" if not measured."""
    if manifest.agreement is None:
        return ""
    same, count = manifest.agreement
    taught = manifest.tuned is not None and manifest.tuned.best and manifest.tuned.teacher  # its source's is gone then
    what = "images" if manifest.boxes is None else "boxes in images"
    return f"with its {'teacher' if taught else 'source'} on {share_held(same, count, what)}"


def strangers_text(manifest: ComponentManifest | AssemblyManifest) -> str:
    """Say whether images that look like none of the classes are turned away."""
    if manifest.stranger_limits:
        counts = " and ".join(f"{limits.images:,}" for limits in manifest.stranger_limits[:4])
        return f"turned away, by limits measured on {counts}{' ...' * (len(manifest.stranger_limits) > 4)} images"
    if manifest.kind == "assembly" and not manifest.apart:
        return f"not known, so none is turned away: parts in {manifest.form} form cannot be looked into"
    if manifest.kind == "assembly" and manifest.tuned is not None:
        return "not known, so none is turned away: its parts were trained since"
    which = "some part was" if manifest.kind == "assembly" else "it was"
    return f"not known, so none is turned away: {which} cut from too few labelled images, or by an earlier version"


def missing_texts(manifest: ComponentManifest) -> list[str]:
    """Say what assembling will refuse, or do less well, since it was not measured when the component was cut."""
    if manifest.boxes is not None:  # whose scores no scaling and no vote changes
        return []
    known = manifest.statistics
    refused = ["logit-mean"] * (known is None) + ["magnitude"] * (known is None or not known.magnitude)
    refused += ["mahalanobis", "lda"] * (known is None or known.familiarity is None)
    lacking = []
    if refused:
        last = f" or {refused[-1]}" if len(refused) > 1 else ""
        lacking.append(f"cannot be scaled by {', '.join(refused[: -1 if last else None])}{last}")
    if manifest.outputs == "one" and (known is None or known.energy is None):
        lacking.append("scaling auto will leave its logits as they are")
    elif manifest.outputs == "one" and known is not None and known.familiarity is None:
        lacking.append("scaling auto cannot look at the values inside it")
    advice = "cut it again with labelled images (--data, or images=), at least 8, and several per class"
    return [f"{', and '.join(lacking)}; {advice}"] if lacking else []


def later_texts(manifest: ComponentManifest) -> list[str]:
    """Say all that a component cannot do later, and what to do now so that it can."""
    texts = missing_texts(manifest)
    others = len(manifest.source.classes) - len(manifest.task)
    if manifest.outputs == "one" and not manifest.reject and others:
        texts.append(
            "cannot vote on classes of other parts, without a reject output; cut it with --reject if it should"
        )
    return texts


def decision_text(manifest: ComponentManifest | AssemblyManifest, most: int = 8) -> str:
    """Say above which probabilities answers include a class, or "" where all are one half."""
    pairs = [
        f"{name} above {share:g}" for name, share in zip(manifest.classes, manifest.decision_thresholds, strict=False)
    ]
    return _short(pairs, most)


def merged_text(manifest: ComponentManifest, most: int = 8) -> str:
    """Say which classes of the source stand behind those that have another name or are several, or "" for none."""
    known = manifest.source.classes
    pairs = [
        (name, " + ".join(known[k] for k in group))
        for name, group in zip(manifest.classes, manifest.groups, strict=True)
    ]
    return _short([f"{name} = {members}" for name, members in pairs if name != members], most)


def tuned_text(tuned: TuneRecord) -> str:
    """Say how a component or an assembly was trained after it was made."""
    taught = f", taught by {tuned.teacher}" if tuned.teacher else ""
    kept = f", epoch {tuned.best} kept" if tuned.best != tuned.epochs else ""
    epochs = f"{tuned.epochs} {'epoch' if tuned.epochs == 1 else 'epochs'}"
    return f"{epochs} on {tuned.images:,} images, {tuned.optimizer} {tuned.lr:g}{taught}{kept}"


def share_text(part: int, whole: int) -> str:
    """Format a share in percent, or as a dash if the whole is zero."""
    return f"{part / whole:.1%}" if whole else "-"


def _short(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
