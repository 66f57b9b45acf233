"""RNN, LSTM and GRU, written out step by step.

The products with the input are one contraction over all steps; those with the state follow one
another. Steps repeat, so the graph's folding keeps one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.emitter import Emitter, required, rule
from importers.onnx_values import OnnxNode

_QUANTIZED = "DynamicQuantizeLSTM"
_MAX_STEPS = 4096

# (emitter, node, gates of the input, gates of the state, state, cell, label) -> (state, cell)
_Cell = Callable[..., tuple[Value, Value | None]]


@rule(_QUANTIZED, domain="com.microsoft")
@rule("RNN", "LSTM", "GRU")
def recurrent(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """X[s, b, i], W[dirs, gates h, i], R[dirs, gates h, h], B, lengths, initial states.

    The quantised form has its weights the other way round, [dirs, i, gates h].
    """
    x_value, weight = required(node, 0), required(node, 1)
    batch_first = bool(node.attributes.get("layout", 0))
    x = e.at(node, 0)
    if batch_first:
        x = e.transpose(node, x, (1, 0, 2), "time_major")
    steps, batch, _ = x.type.shape
    quantized = node.op_type == _QUANTIZED
    directions, width = weight.shape[0], weight.shape[2 if quantized else 1]
    hidden = node.attributes.get("hidden_size") or required(node, 2).shape[-1]
    if steps > _MAX_STEPS:
        raise ModelFileError(
            f"{node.label} runs {steps} steps: sequences up to {_MAX_STEPS} are written out, "
            "give a shorter one"
        )
    run = _Run(e, node, x, steps, batch, hidden, width, x_value.type)
    outputs, states, cells = [], [], []
    for direction in range(directions):
        sequence, state, cell = run.direction(direction, directions)
        outputs.append(sequence)
        states.append(state)
        cells.append(cell)
    y = run.join(outputs, "output", axis=1, shape=(steps, directions, batch, hidden))
    last = run.join(states, "last_state", axis=0, shape=(directions, batch, hidden))
    found: list[Value | None] = [y, last]
    if node.op_type in ("LSTM", _QUANTIZED):
        kept = [c for c in cells if c is not None]
        found.append(run.join(kept, "last_cell", axis=0, shape=(directions, batch, hidden)))
    if batch_first:
        moved = [(2, 0, 1, 3), (1, 0, 2), (1, 0, 2)]
        found = [
            e.transpose(node, v, perm, f"batch_major{i}") if v is not None else None
            for i, (v, perm) in enumerate(zip(found, moved, strict=False))
        ]
    return found


class _Run:
    """The steps of one recurrent node."""

    def __init__(
        self,
        e: Emitter,
        node: OnnxNode,
        x: Value,
        steps: int,
        batch: int,
        hidden: int,
        width: int,
        type_: TensorType,
    ) -> None:
        self.e, self.node, self.x = e, node, x
        self.steps, self.batch, self.hidden, self.width = steps, batch, hidden, width
        self.type = e.type_of(type_)
        self.quantized = node.op_type == _QUANTIZED
        self.place = (0, 1)
        """The present direction and how many there are."""

    def direction(self, index: int, count: int) -> tuple[Value, Value, Value | None]:
        """All steps of one direction: the results [s, b, h], the last state and cell."""
        e, node, tag = self.e, self.node, f"direction{index}."
        self.place = (index, count)
        weight = self.matrix(1, index, count, self.x.type.shape[2], f"{tag}W")
        recurrence = self.matrix(2, index, count, self.hidden, f"{tag}R")
        gates = self.product(self.x, weight, f"{tag}input", 8)
        if node.input(3) is not None:
            bias = self.part(3, index, count, (2 * self.width,), f"{tag}B")
            halves = [self.type.with_shape((self.width,))] * 2
            first, second = e.emit_all(
                node, "split", [bias], halves, {"axis": 0, "view": True}, f"{tag}biases"
            )
            for i, half in enumerate((first, second)):
                epilogue = {"epilogue": True}
                gates = e.emit(node, "add", [gates, half], gates.type, epilogue, f"{tag}bias{i}")
        step_type = self.type.with_shape((1, self.batch, self.width))
        per_step = [gates]
        if self.steps > 1:
            attrs = {"axis": 0, "view": True}
            types = [step_type] * self.steps
            per_step = list(e.emit_all(node, "split", [gates], types, attrs, f"{tag}steps"))
        state = self.initial(5, index, count, f"{tag}state")
        cell = self.initial(6, index, count, f"{tag}cell") if "LSTM" in node.op_type else None
        reverse = node.attributes.get("direction", b"forward") in (b"reverse", "reverse")
        order = range(self.steps)
        order = order[::-1] if reverse or index == 1 else order
        results: dict[int, Value] = {}
        flat = (self.batch, self.width)
        for step in order:
            label = f"{tag}step{step}."
            now = e.reshape(node, per_step[step], flat, f"{label}gates")
            state, cell = _CELLS[node.op_type](self, now, recurrence, state, cell, label)
            results[step] = state
        ordered = [results[i] for i in range(self.steps)]
        shape = (self.steps, self.batch, self.hidden)
        return self.join(ordered, f"{tag}sequence", 0, shape), state, cell

    def matrix(self, operand: int, index: int, count: int, inner: int, label: str) -> Value:
        """One direction's weight."""
        shape = (inner, self.width) if self.quantized else (self.width, inner)
        return self.part(operand, index, count, shape, label)

    def part(
        self, operand: int, index: int, count: int, shape: tuple[int, ...], label: str
    ) -> Value:
        """One direction's share of a weight [dirs, ...]."""
        weight = required(self.node, operand)
        kind = "parameter" if weight.origin == "weight" else None
        value = self.e.operand(weight, kind)  # type: ignore[arg-type]
        if count > 1:
            row = value.type.with_shape((1, *value.type.shape[1:]))
            starts = (index, *[0] * (len(value.type.shape) - 1))
            attrs = {"starts": starts, "steps": (1,) * len(starts), "view": True}
            value = self.e.emit(self.node, "slice", [value], row, attrs, f"{label}_slice")
        return self.e.reshape(self.node, value, shape, label)

    def initial(self, operand: int, index: int, count: int, label: str) -> Value:
        """The given initial state, or zeros."""
        shape = (self.batch, self.hidden)
        given = self.node.input(operand)
        # A state of zeros may have been written for another batch than the one asked for.
        if given is not None and given.type.elements == count * self.batch * self.hidden:
            return self.part(operand, index, count, shape, label)
        return self.e.emit(self.node, "fill", [], self.type.with_shape(shape), {"value": 0}, label)

    def join(self, parts: Sequence[Value], label: str, axis: int, shape: tuple[int, ...]) -> Value:
        """Stacks values along a new dim."""
        row = (*shape[:axis], 1, *shape[axis + 1 :])
        pieces = [self.e.reshape(self.node, v, row, f"{label}{i}") for i, v in enumerate(parts)]
        if len(pieces) == 1:
            return pieces[0]
        type_ = self.type.with_shape(shape)
        return self.e.emit(self.node, "concat", pieces, type_, {"axis": axis}, label)

    def product(self, x: Value, weight: Value, label: str, scale: int = 10) -> Value:
        """x[..., i] times a weight; in integers if the weight is, with operand `scale` to go back."""
        out = x.type.with_shape((*x.type.shape[:-1], self.width))
        if not self.quantized:
            return self.e.emit(self.node, "linear", [x, weight], out, None, label)
        inner = required(self.node, scale).shape[1:]
        factor = self.part(scale, *self.place, inner, f"{label}.scale")
        levels = x.type.with_dtype(DType.UINT8)
        # The operand is quantised by its own range.
        whole = self.e.emit(self.node, "quantize", [x], levels, {"axis": -1}, f"{label}.levels")
        wide = out.with_dtype(DType.INT32)
        sums = self.e.emit(self.node, "matmul", [whole, weight], wide, None, label)
        attrs = {"axis": -1, "epilogue": True}
        return self.e.emit(self.node, "dequantize", [sums, factor], out, attrs, f"{label}.floats")

    def pointwise(self, op: str, operands: Sequence[Value], label: str) -> Value:
        """An elementwise operator on values of one shape."""
        return self.e.emit(self.node, op, operands, operands[0].type, None, label)

    def gates(self, value: Value, count: int, label: str) -> list[Value]:
        """A value [b, (gates h)] per gate."""
        types = [self.type.with_shape((self.batch, self.hidden))] * count
        attrs = {"axis": 1, "view": True}
        return list(self.e.emit_all(self.node, "split", [value], types, attrs, label))


def _rnn(
    run: _Run, now: Value, recurrence: Value, state: Value, cell: Value | None, label: str
) -> tuple[Value, Value | None]:
    product = run.product(state, recurrence, f"{label}recurrence")
    total = run.pointwise("add", [now, product], f"{label}sum")
    return run.pointwise("tanh", [total], f"{label}state"), None


def _lstm(
    run: _Run, now: Value, recurrence: Value, state: Value, cell: Value | None, label: str
) -> tuple[Value, Value | None]:
    if cell is None:
        raise ModelFileError(f"{run.node.label} has no cell state")
    product = run.product(state, recurrence, f"{label}recurrence")
    total = run.pointwise("add", [now, product], f"{label}sum")
    i, o, f, c = run.gates(total, 4, f"{label}split")
    i, o, f = (
        run.pointwise("sigmoid", [g], f"{label}{name}")
        for g, name in ((i, "input_gate"), (o, "output_gate"), (f, "forget_gate"))
    )
    c = run.pointwise("tanh", [c], f"{label}candidate")
    kept = run.pointwise("mul", [f, cell], f"{label}kept")
    added = run.pointwise("mul", [i, c], f"{label}added")
    cell = run.pointwise("add", [kept, added], f"{label}cell")
    shown = run.pointwise("tanh", [cell], f"{label}shown")
    return run.pointwise("mul", [o, shown], f"{label}state"), cell


def _gru(
    run: _Run, now: Value, recurrence: Value, state: Value, cell: Value | None, label: str
) -> tuple[Value, Value | None]:
    product = run.product(state, recurrence, f"{label}recurrence")
    z, r, h = run.gates(now, 3, f"{label}split")
    rz, rr, rh = run.gates(product, 3, f"{label}recurrence_split")
    z = run.pointwise("sigmoid", [run.pointwise("add", [z, rz], f"{label}z_sum")], f"{label}z")
    r = run.pointwise("sigmoid", [run.pointwise("add", [r, rr], f"{label}r_sum")], f"{label}r")
    # With linear_before_reset = 0 the reset comes before the product; the work is the same.
    reset = run.pointwise("mul", [r, rh], f"{label}reset")
    h = run.pointwise("tanh", [run.pointwise("add", [h, reset], f"{label}h_sum")], f"{label}h")
    change = run.pointwise("mul", [z, run.pointwise("sub", [state, h], f"{label}gap")], f"{label}c")
    return run.pointwise("add", [h, change], f"{label}state"), None


_CELLS: dict[str, _Cell] = {"RNN": _rnn, "LSTM": _lstm, "GRU": _gru, _QUANTIZED: _lstm}


def _quantized_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, weight = required(node, 0).type, required(node, 1).shape
    if len(x.shape) != 3 or len(weight) != 3:
        raise ModelFileError(f"{node.label}: {list(x.shape)} and {list(weight)} do not fit")
    (steps, batch, _), directions, hidden = x.shape, weight[0], weight[2] // 4
    state = x.with_shape((directions, batch, hidden))
    return [x.with_shape((steps, directions, batch, hidden)), state, state]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    ("com.microsoft", _QUANTIZED): _quantized_types,
}
