"""aten's reductions, norms, pooling, sorting in graph_ir's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.torch_call import Call, Constant, is_tensor
from importers.torch_contraction import per_dim
from importers.torch_movement import as_shape

Rule = Callable[[Call], Any]


def _reduce(record: str) -> Rule:
    def rule(call: Call) -> Value | tuple[Value, Value]:
        source = call.value("self")
        rank = len(source.type.shape)
        given = call["dim"]
        given = [given] if isinstance(given, int) else list(given or range(rank))
        axes = tuple(sorted(d % max(rank, 1) for d in given))
        # A sum in another dtype reads the operand as it is.
        return call.one(record, [source], axes=axes, keepdims=bool(call["keepdim"]))

    return rule


def _variance(root: bool, with_mean: bool = False) -> Rule:
    """Mean, difference, square, mean: what the one kernel computes, as its parts."""

    def rule(call: Call) -> Value | tuple[Value, Value]:
        source = call.value("self")
        rank = len(source.type.shape)
        given = call["dim"]
        given = [given] if isinstance(given, int) else list(given or range(rank))
        axes = tuple(sorted(d % rank for d in given))
        kept = tuple(1 if i in axes else n for i, n in enumerate(source.type.shape))
        (mean,) = call.emit(
            "reduce_mean",
            [source],
            [source.type.with_shape(kept)],
            {"axes": axes, "keepdims": True},
            "mean",
        )
        (difference,) = call.emit("sub", [source, mean], [source.type], suffix="difference")
        (squares,) = call.emit("pow", [difference], [source.type], {"scalar": 2}, "square")
        total = 1
        for axis in axes:
            total *= source.type.shape[axis]
        unbiased = call["unbiased"] if call["unbiased"] is not None else True
        correction = call["correction"] if call["correction"] is not None else int(unbiased)
        attrs = {
            "axes": axes,
            "keepdims": bool(call["keepdim"]),
            "divisor": max(total - int(correction), 1),
        }
        if with_mean:
            (variance,) = call.emit("reduce_mean", [squares], call.types[:1], attrs)
            if mean.type.shape == call.types[1].shape:
                return variance, mean
            return variance, call.emit("reshape", [mean], call.types[1:], {"view": True}, "flat")[0]
        (variance,) = call.emit("reduce_mean", [squares], attrs=attrs)
        return call.one("sqrt", [variance]) if root else variance

    return rule


def _extreme(record: str, index_record: str) -> Rule:
    """`max` and `min`: of everything, or along a dim with the winner's index."""

    def rule(call: Call) -> Any:
        source = call.value("self")
        rank = len(source.type.shape)
        if call["dim"] is None:
            return call.one(record, [source], axes=tuple(range(rank)))
        axis = call.axis("dim", rank)
        attrs = {"axes": (axis,), "keepdims": bool(call["keepdim"])}
        (best,) = call.emit(record, [source], call.types[:1], attrs)
        if len(call.types) == 1:
            return best
        (index,) = call.emit(index_record, [source], call.types[1:], {"axis": axis})
        return best, index

    return rule


def _norm_over(call: Call) -> Value:
    source = call.value("self")
    rank = len(source.type.shape)
    given = call["dim"]
    given = [given] if isinstance(given, int) else list(given or range(rank))
    axes = tuple(sorted(d % max(rank, 1) for d in given))
    return call.one("reduce_norm", [source], axes=axes, keepdims=bool(call["keepdim"]))


def _softmax(record: str) -> Rule:
    def rule(call: Call) -> Value:
        source = call.value("self")
        if source.type.dtype != call.type.dtype:
            (source,) = call.emit("cast", [source], [call.type], suffix="cast")
        return call.one(record, [source], axis=call.axis("dim", len(source.type.shape)))

    return rule


def _layer_norm(record: str) -> Rule:
    """In training the statistics per row are results too: the backward pass reads them."""

    def rule(call: Call) -> Value:
        source = call.value("input")
        rank = len(call["normalized_shape"])
        weights = call.values(["weight", "bias"])
        eps = call["eps"]
        attrs = {"rank": rank} | ({} if eps is None else {"eps": float(eps)})
        rows = TensorType(source.type.shape[:-rank], DType.FLOAT32)
        count = (2 if record == "layer_norm" else 1) if call.training else 0
        result = call.emit(record, [source, *weights], [call.type, *[rows] * count], attrs)
        return result[0]

    return rule


def _group_norm(call: Call) -> Value:
    groups = int(call["num_groups"] or call.value("input").type.shape[1])
    operands = [call.value("input"), *call.values(["weight", "bias"])]
    return call.one("group_norm", operands, groups=groups, eps=float(call["eps"]))


def _batch_norm(call: Call) -> Any:
    import numpy as np

    source = call.value("input")
    channels = TensorType((source.type.shape[1],), DType.FLOAT32)
    given = call["training"] if call["training"] is not None else call["use_input_stats"]
    training = bool(given) and "no_training" not in str(call.node.target)
    scale = [
        call.value(name)
        if is_tensor(call[name])
        else call.constant(np.full(channels.shape, number), source.type.dtype)
        for name, number in (("weight", 1.0), ("bias", 0.0))
    ]
    attrs = {"training": training, "eps": float(call["eps"])}
    if not training:
        operands = [source, *scale, *call.values(["running_mean", "running_var"])]
        (result,) = call.emit("batch_norm", operands, call.types[:1], attrs)
        # The lower-level operators return statistics too, which are empty here.
        return (result, *map(Constant, call.types[1:])) if len(call.types) > 1 else result
    if len(call.types) > 1:
        return call.emit("batch_norm", [source, *scale], [call.types[0], channels, channels], attrs)
    return call.emit("batch_norm", [source, *scale], [call.types[0], channels, channels], attrs)[0]


def _pool(record: str) -> Rule:
    def rule(call: Call) -> Any:
        source = call.value("self")
        rank = (
            len(_list(call["kernel_size"]))
            if len(_list(call["kernel_size"])) > 1
            else _spatial(call)
        )
        kernel = per_dim(call["kernel_size"], rank, 1)
        attrs: dict[str, Any] = {
            "kernel": kernel,
            "stride": per_dim(call["stride"], rank, 0) if call["stride"] else kernel,
            "padding": per_dim(call["padding"], rank, 0),
            "dilation": per_dim(call["dilation"], rank, 1),
        }
        if record == "avg_pool":
            attrs["count_include_pad"] = bool(call["count_include_pad"])
        if record == "max_pool" and call.training:
            # Its kernel keeps the places of the maxima for the backward pass.
            places = call.types[0].with_dtype(DType.INT64)
            found = call.emit(record, [source], [call.types[0], places], attrs)
            return found[: len(call.types)] if len(call.types) > 1 else found[0]
        (best,) = call.emit(record, [source], call.types[:1], attrs)
        if len(call.types) == 1:
            return best
        return best, call.emit("fill", [], call.types[1:], suffix="indices")[0]

    return rule


def _spatial(call: Call) -> int:
    """Number of pooled dims, from the operator's name (max_pool2d)."""
    found = re.search(r"(\d)d", str(call.node.target))
    return int(found[1]) if found else 1


def _list(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _adaptive_average(call: Call) -> Value:
    """Even cells are an ordinary pooling; a single one is a mean over the image.

    Uneven ones resample it: each result is a weighted sum of neighbours, as in an interpolation.
    """
    source = call.value("self")
    rank = len(_list(call["output_size"]))
    old, new = source.type.shape[-rank:], call.type.shape[-rank:]
    axes = tuple(range(len(source.type.shape) - rank, len(source.type.shape)))
    if all(n == 1 for n in new):
        return call.one("reduce_mean", [source], axes=axes, keepdims=True)
    if old == new:
        return source
    if any(a % b for a, b in zip(old, new, strict=True)):
        return call.one("interpolate", [source], mode="linear")
    kernel = tuple(a // b for a, b in zip(old, new, strict=True))
    attrs = {"kernel": kernel, "stride": kernel, "padding": (0,) * rank, "dilation": (1,) * rank}
    return call.one("avg_pool", [source], **attrs)


def _adaptive_maximum(call: Call) -> Any:
    """Even cells are an ordinary pooling; uneven ones overlap, and nothing describes them."""
    source = call.value("self")
    rank = len(_list(call["output_size"]))
    old, new = source.type.shape[-rank:], call.type.shape[-rank:]
    if any(a % b for a, b in zip(old, new, strict=True)):
        return call.converter.unknown_call(call)
    kernel = tuple(a // b for a, b in zip(old, new, strict=True))
    attrs = {"kernel": kernel, "stride": kernel, "padding": (0,) * rank, "dilation": (1,) * rank}
    (best,) = call.emit("max_pool", [source], call.types[:1], attrs)
    return [best, call.emit("fill", [], call.types[1:], suffix="indices")[0]]


def _topk(call: Call) -> tuple[Value, ...]:
    source = call.value("self")
    return call.emit("topk", [source], attrs={"axis": call.axis("dim", len(source.type.shape))})


def _sort(call: Call) -> tuple[Value, ...]:
    source = call.value("self")
    axis = call.axis("dim", len(source.type.shape))
    return call.emit("sort", [source], attrs={"axis": axis, "descending": bool(call["descending"])})


def _argsort(call: Call) -> Value:
    source = call.value("self")
    types = [source.type, call.type]
    attrs = {
        "axis": call.axis("dim", len(source.type.shape)),
        "descending": bool(call["descending"]),
    }
    return call.emit("sort", [source], types, attrs)[1]


def _along(record: str) -> Rule:
    def rule(call: Call) -> Value:
        source = call.value("self")
        if call["dim"] is None:
            source = as_shape(call, source, (source.type.elements,))
        return call.one(record, [source], axis=call.axis("dim", len(source.type.shape)))

    return rule


RULES: Mapping[str, Rule] = {
    "aten.sum": _reduce("reduce_sum"),
    "aten.mean": _reduce("reduce_mean"),
    "aten.prod": _reduce("reduce_prod"),
    "aten.amax": _reduce("reduce_max"),
    "aten.amin": _reduce("reduce_min"),
    "aten.any": _reduce("reduce_max"),
    "aten.all": _reduce("reduce_min"),
    "aten._is_all_true": _reduce("reduce_min"),
    "aten.var": _variance(root=False),
    "aten.var_mean": _variance(root=False, with_mean=True),
    "aten.std": _variance(root=True),
    "aten.max": _extreme("reduce_max", "argmax"),
    "aten.min": _extreme("reduce_min", "argmin"),
    "aten.norm": _norm_over,
    "aten.linalg_vector_norm": _norm_over,
    "aten.softmax": _softmax("softmax"),
    "aten._softmax": _softmax("softmax"),
    "aten.log_softmax": _softmax("log_softmax"),
    "aten._log_softmax": _softmax("log_softmax"),
    "aten.layer_norm": _layer_norm("layer_norm"),
    "aten.rms_norm": _layer_norm("rms_norm"),
    "aten.group_norm": _group_norm,
    "aten.instance_norm": _group_norm,
    **{
        f"aten.{name}": _batch_norm
        for name in (
            "batch_norm",
            "native_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training",
        )
    },
    **{f"aten.max_pool{n}d": _pool("max_pool") for n in (1, 2, 3)},
    **{f"aten.max_pool{n}d_with_indices": _pool("max_pool") for n in (1, 2, 3)},
    **{f"aten.avg_pool{n}d": _pool("avg_pool") for n in (1, 2, 3)},
    **{f"aten.adaptive_avg_pool{n}d": _adaptive_average for n in (1, 2, 3)},
    **{f"aten._adaptive_avg_pool{n}d": _adaptive_average for n in (2, 3)},
    **{f"aten.adaptive_max_pool{n}d": _adaptive_maximum for n in (1, 2, 3)},
    "aten.topk": _topk,
    "aten.sort": _sort,
    "aten.argsort": _argsort,
    "aten.argmax": _along("argmax"),
    "aten.argmin": _along("argmin"),
    "aten.cumsum": _along("cumsum"),
    "aten.cumprod": _along("cumprod"),
}
"""Rules by aten name."""
