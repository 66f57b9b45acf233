"""Lower-level aten operators, as torch.compile-style decompositions and core ATen programs have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graph_ir.equation import bind
from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.torch_call import Call, Constant, is_tensor
from importers.torch_contraction import with_bias
from importers.torch_movement import as_shape

Rule = Callable[[Call], Any]


def _native_norm(record: str) -> Rule:
    """Norms that also return the mean and the reciprocal deviation of their rows."""

    def rule(call: Call) -> Any:
        source = call.value("input")
        weights = call.values(["weight", "bias"])
        attrs: dict[str, Any] = {"eps": float(call["eps"])}
        if record == "layer_norm":
            attrs["rank"] = rank = len(call["normalized_shape"])
            rows = TensorType(source.type.shape[:-rank], DType.FLOAT32)
            results = call.emit(record, [source, *weights], [call.types[0], rows, rows], attrs)
            statistics = [as_shape(call, v, t.shape) for v, t in _paired(results[1:], call)]
            return [results[0], *statistics]
        attrs["groups"] = int(call["group"])
        (result,) = call.emit(record, [source, *weights], call.types[:1], attrs)
        return [result, *map(Constant, call.types[1:])]

    return rule


def _paired(values: Any, call: Call) -> Any:
    return zip(values, call.types[1:], strict=True)


def _native_dropout(call: Call) -> Any:
    source = call.value("input")
    if call["train"] is False or not call["p"]:
        return [source, Constant(call.types[1])]
    return list(call.emit("dropout", [source], attrs={"p": float(call["p"])}))


def _added_product(first: str, second: str, summed: bool) -> Rule:
    """`addmv`, `addbmm`: a product, with `summed` over its batch too, plus the first operand."""

    def rule(call: Call) -> Value:
        left, right = call.value(first), call.value(second)
        text = "b m k, b k n -> m n" if summed else "m k, k -> m"
        shapes = [left.type.shape, right.type.shape]
        equation = bind(text, shapes, [call.type.shape])
        (product,) = call.emit("einsum", [left, right], attrs={"equation": equation})
        for scalar, name in ((call["alpha"], "alpha"), (call["beta"], "beta")):
            if name == "alpha" and scalar not in (None, 1):
                (product,) = call.emit("mul", [product], attrs={"scalar": scalar}, suffix=name)
        if call["beta"] == 0:
            return product
        return with_bias(call, product, call.value("self"))

    return rule


def _trilinear(call: Call) -> Value:
    """`Bilinear`: x1[b, i] W[o, i, j] x2[b, j] -> [b, o], the first two multiplied first."""
    x, weight, y = (as_matrix(call, n) for n in ("i1", "i2", "i3"))
    batch, (out, inner, other) = x.type.shape[0], weight.type.shape[-3:]
    weight = as_shape(call, weight, (out, inner, other), "weight")
    middle = call.type.with_shape((batch, out, other))
    first = bind("b i, o i j -> b o j", [x.type.shape, weight.type.shape], [middle.shape])
    (half,) = call.emit("einsum", [x, weight], [middle], {"equation": first})
    shape = (batch, out)
    second = bind("b o j, b j -> b o", [middle.shape, y.type.shape], [shape])
    (found,) = call.emit("einsum", [half, y], [call.type.with_shape(shape)], {"equation": second})
    return as_shape(call, found, call.type.shape)


def as_matrix(call: Call, name: str) -> Value:
    """An operand as rows of its last dim; of rank three it is left alone."""
    value = call.value(name)
    if name == "i2":
        return value
    width = value.type.shape[-1]
    own = [n for n in value.type.shape if n != 1]
    if len(own) == 2 and own[-1] != width:
        width = own[-1]
    return as_shape(call, value, (value.type.elements // width, width), name)


def _embedding_bag(call: Call) -> Any:
    """Rows of the table, looked up and reduced bag by bag."""
    table, picks = call.value("weight"), call.value("indices")
    rows, width = picks.type.elements, table.type.shape[1]
    bags = call.types[0].shape[0]
    looked = table.type.with_shape((rows, width))
    flat = as_shape(call, picks, (rows,), "indices")
    (found,) = call.emit("gather", [table, flat], [looked], {"axis": 0}, "rows")
    if is_tensor(call["per_sample_weights"]):
        scale = as_shape(call, call.value("per_sample_weights"), (rows, 1), "weights")
        (found,) = call.emit("mul", [found, scale], [looked], suffix="weighted")
    record = {0: "reduce_sum", 1: "reduce_mean", 2: "reduce_max"}[int(call["mode"] or 0)]
    if bags and rows % bags == 0:
        grouped = as_shape(call, found, (bags, rows // bags, width), "bags")
        (result,) = call.emit(record, [grouped], call.types[:1], {"axes": (1,)})
    else:
        # Bags of unequal length: each row is added to its bag.
        (empty,) = call.emit("fill", [], call.types[:1], {"value": 0.0}, "bags")
        operands = [empty, call.value("offsets"), found]
        (result,) = call.emit("scatter_nd", operands, call.types[:1])
    return [result, *map(Constant, call.types[1:])]


def _scaled_product(call: Call) -> Value:
    """`_scaled_mm`: a product of fp8 matrices; the scales are applied to the result in registers."""
    (product,) = call.emit("matmul", [call.value("self"), call.value("mat2")], call.types[:1])
    for name in ("scale_a", "scale_b", "scale_result"):
        if is_tensor(call[name]):
            scale = call.value(name)
            attrs = {"epilogue": True}
            (product,) = call.emit("apply_scales", [product, scale], call.types[:1], attrs, name)
    return with_bias(call, product, call.value("bias")) if is_tensor(call["bias"]) else product


def _functional_batch_norm(call: Call) -> list[Any]:
    """Batch norm that returns its new running statistics; nothing but the state reads those."""
    import numpy as np

    source = call.value("input")
    channels = TensorType((source.type.shape[1],), DType.FLOAT32)
    given = dict(zip(("weight", "bias"), (1.0, 0.0), strict=True))
    scale = [
        call.value(name)
        if is_tensor(call[name])
        else call.constant(np.full(channels.shape, number), source.type.dtype)
        for name, number in given.items()
    ]
    attrs = {"training": True, "eps": float(call["eps"])}
    types = [call.types[0], channels, channels]
    found = call.emit("batch_norm", [source, *scale], types, attrs)
    return [*found, *map(Constant, call.types[3:])]


RULES: Mapping[str, Rule] = {
    "aten.native_layer_norm": _native_norm("layer_norm"),
    "aten.native_group_norm": _native_norm("group_norm"),
    "aten._native_batch_norm_legit_functional": _functional_batch_norm,
    "aten._batch_norm_with_update": _functional_batch_norm,
    "aten._batch_norm_with_update_functional": _functional_batch_norm,
    "aten.native_dropout": _native_dropout,
    "aten.addmv": _added_product("mat", "vec", summed=False),
    "aten.addbmm": _added_product("batch1", "batch2", summed=True),
    "aten._trilinear": _trilinear,
    "aten._embedding_bag": _embedding_bag,
    "aten._embedding_bag_forward_only": _embedding_bag,
    "aten._scaled_mm": _scaled_product,
}
"""Rules by aten name."""
