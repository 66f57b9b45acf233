"""aten's losses in graph_ir's words: the kernels that torch itself runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graph_ir.graph import Value
from importers.torch_call import Call
from importers.torch_movement import as_shape

Rule = Callable[[Call], Any]


def _cross_entropy(call: Call) -> Value:
    """Log-softmax, then the mean of the targets' entries, as torch's own kernels do it."""
    logits = _classes_last(call, call.value("self"))
    target = call.value("target")
    rank = len(logits.type.shape)
    (logs,) = call.emit("log_softmax", [logits], [logits.type], {"axis": rank - 1})
    smoothing = float(call["label_smoothing"] or 0)
    if target.type.dtype.is_float:
        return _soft_loss(call, logs, _classes_last(call, target))
    loss = _pick(call, logs, target)
    if not smoothing:
        return loss
    axes = tuple(range(rank)) if loss.type.shape != target.type.shape else (rank - 1,)
    (spread,) = call.emit("reduce_mean", [logs], [loss.type], {"axes": axes}, "smoothing")
    (other,) = call.emit("mul", [spread], [loss.type], {"scalar": -smoothing}, "smoothing_share")
    (own,) = call.emit("mul", [loss], [loss.type], {"scalar": 1 - smoothing}, "target_share")
    return call.one("add", [own, other])


def _soft_loss(call: Call, logs: Value, target: Value) -> Value:
    """Targets are probabilities: minus the mean over rows of the weighted sum of logarithms."""
    (weighted,) = call.emit("mul", [logs, target], [logs.type], suffix="weighted")
    rank = len(logs.type.shape)
    whole = not call.type.shape
    axes = tuple(range(rank)) if whole else (rank - 1,)
    rows = logs.type.elements // logs.type.shape[-1] if call["reduction"] in (None, 1) else 1
    (total,) = call.emit("reduce_sum", [weighted], [call.type], {"axes": axes})
    return call.one("mul", [total], scalar=-1.0 / rows)


def _classes_last(call: Call, scores: Value) -> Value:
    """Scores [n, classes, ...] with the classes as the last dim, as a view."""
    rank = len(scores.type.shape)
    if rank <= 2:
        return scores
    perm = (0, *range(2, rank), 1)
    moved = scores.type.with_shape(tuple(scores.type.shape[p] for p in perm))
    return call.emit("transpose", [scores], [moved], {"perm": perm, "view": True})[0]


def _nll(call: Call) -> Value:
    return _pick(call, _classes_last(call, call.value("self")), call.value("target"))


def _pick(call: Call, logs: Value, target: Value) -> Value:
    if not logs.type.shape[:-1]:
        logs = as_shape(call, logs, (1, *logs.type.shape), "row")
        target = as_shape(call, target, (1,), "target")
    attrs = {"divisor": 1} if call["reduction"] == 2 else {}
    return call.emit("nll_loss", [logs, target], [call.type], attrs)[0]


def _mean_squared_error(call: Call) -> Value:
    left, right = call.value("self"), call.value("target")
    (difference,) = call.emit("sub", [left, right], [left.type], suffix="difference")
    (squares,) = call.emit("pow", [difference], [left.type], {"scalar": 2}, "square")
    if call["reduction"] == 0:
        return squares
    record = "reduce_mean" if call["reduction"] in (None, 1) else "reduce_sum"
    return call.one(record, [squares], axes=tuple(range(len(left.type.shape))))


RULES: Mapping[str, Rule] = {
    "aten.cross_entropy_loss": _cross_entropy,
    "aten.nll_loss": _nll,
    "aten.nll_loss_nd": _nll,
    "aten.mse_loss": _mean_squared_error,
}
"""Rules by aten name."""
