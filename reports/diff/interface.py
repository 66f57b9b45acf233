"""What changed around the operators: dims, inputs and outputs, device, strategy, versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from reports.diff.difference import Difference
from reports.diff.finding import Finding
from reports.quantities import plain_text, shape_text
from reports.setting import TensorInfo


def find_dims(difference: Difference) -> Iterator[Finding]:
    """Dims that have become dynamic, or are fixed now."""
    before, after = difference.before.model.dims, difference.after.model.dims
    gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
    for name in new:
        size = after[name]
        text = f"the dim {plain_text(name)} has become dynamic (bound to {size} here)"
        renamed = next((old for old in gone if before[old] == size), None)
        if renamed is not None:
            gone.remove(renamed)
            text = f"the dynamic dim {plain_text(renamed)} is called {plain_text(name)} now"
        yield Finding("dynamic-dim" if renamed is None else "dim-renamed", text)
    for name in gone:
        text = f"the dim {plain_text(name)} is fixed now (it was dynamic, bound to {before[name]})"
        yield Finding("fixed-dim", text)


def find_inputs(difference: Difference) -> Iterator[Finding]:
    """Inputs and outputs that came, went, or have another type."""
    a, b = difference.before.model, difference.after.model
    if not (a.inputs and b.inputs):
        # A report of an older schema does not say.
        return
    yield from _tensors("input", a.inputs, b.inputs)
    # The names of outputs are the importer's.
    yield from _tensors("output", _by_place(a.outputs), _by_place(b.outputs))


def _by_place(tensors: Sequence[TensorInfo]) -> list[TensorInfo]:
    return [
        TensorInfo(name=str(place), dtype=t.dtype, shape=t.shape)
        for place, t in enumerate(tensors, 1)
    ]


def _tensors(
    what: str, before: Sequence[TensorInfo], after: Sequence[TensorInfo]
) -> Iterator[Finding]:
    old, new = {t.name: t for t in before}, {t.name: t for t in after}
    gone = [t for t in before if t.name not in new]
    for tensor in after:
        was = old.get(tensor.name)
        if was is None:
            like = (tensor.dtype, tensor.shape)
            was = next((t for t in gone if (t.dtype, t.shape) == like), None)
            if was is None:
                yield Finding(f"{what}-added", f"the {what} {_told(tensor)} is new")
                continue
            gone.remove(was)
            text = f"the {what} {plain_text(was.name)} is called {plain_text(tensor.name)} now"
            yield Finding(f"{what}-renamed", text)
        if was.dtype != tensor.dtype:
            text = f"the {what} {plain_text(tensor.name)}: {was.dtype} → {tensor.dtype}"
            yield Finding(f"{what}-dtype", text)
        if was.shape != tensor.shape:
            sizes = f"{shape_text(was.shape)} → {shape_text(tensor.shape)}"
            yield Finding(
                _resized(what, was.shape, tensor.shape),
                f"the {what} {plain_text(tensor.name)}: {sizes}",
            )
    for tensor in gone:
        yield Finding(f"{what}-removed", f"the {what} {_told(tensor)} is gone")


def _told(tensor: TensorInfo) -> str:
    return f"{plain_text(tensor.name)} ({tensor.dtype} {shape_text(tensor.shape)})"


def _resized(what: str, before: tuple[int, ...], after: tuple[int, ...]) -> str:
    """By the first dim that differs: exporters put samples first, then tokens, where there are tokens."""
    places = [k for k, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
    if what == "input" and len(before) == len(after) and len(places) == 1 and places[0] < 2:
        if places[0] == 0:
            return "batch"
        if len(before) in (2, 3):
            return "sequence"
    return f"{what}-shape"


def same_interface(difference: Difference) -> bool:
    """Whether both take and give tensors of the same types, whatever these are called."""
    a, b = difference.before.model, difference.after.model
    if not (a.inputs and b.inputs):
        return True
    return all(
        Counter((t.dtype, t.shape) for t in old) == Counter((t.dtype, t.shape) for t in new)
        for old, new in ((a.inputs, b.inputs), (a.outputs, b.outputs))
    )


def input_ratios(difference: Difference) -> set[tuple[int, int]]:
    """By what inputs grew, dim by dim, as (before, after)."""
    old = {t.name: t.shape for t in difference.before.model.inputs}
    return {
        (a, b)
        for tensor in difference.after.model.inputs
        for a, b in zip(old.get(tensor.name, ()), tensor.shape, strict=False)
        if a != b
    }


def find_settings(difference: Difference) -> Iterator[Finding]:
    """What else differs and explains other figures: device, mode, strategy, versions."""
    a, b = difference.before, difference.after
    for what, old, new in (
        ("importer", a.model.importer, b.model.importer),
        ("hardware", a.hardware.name, b.hardware.name),
        ("mode", a.mode, b.mode),
        ("strategy", str(a.strategy), str(b.strategy)),
        ("samples", a.model.batch, b.model.batch),
        ("opbound version", a.opbound_version, b.opbound_version),
    ):
        if old != new:
            text = f"{what}: {plain_text(str(old))} → {plain_text(str(new))}"
            if what in ("hardware", "mode", "strategy", "opbound version"):
                text += "; times and bounds differ for that reason too"
            yield Finding(what.replace(" ", "-"), text)
    if a.hardware.name == b.hardware.name and a.hardware.sha256 != b.hardware.sha256:
        yield Finding("hardware", f"the file of {plain_text(a.hardware.name)} has changed")
