"""Computes ONNX nodes on small known tensors, so that shape arithmetic turns into numbers.

The operators that exporters use for shapes have a line of numpy here; everything else goes to
onnx's own reference implementation, one node at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from importers.onnx_values import dtype_of, numpy_dtype

if TYPE_CHECKING:
    from onnx import NodeProto

Array = NDArray[Any]
Attributes = Mapping[str, Any]

MAX_VECTOR = 4096
"""Vectors (also as rows or columns) up to this length are computed: shapes, axes, index lists."""

MAX_ARRAY = 64
"""Other tensors up to this size are computed: pads as pairs, little masks. Larger ones are
real work at run time (a causal mask), so they stay in the graph at every size of the model."""

_SKIP = frozenset(
    {
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
        "If",
        "Loop",
        "Scan",
    }
)


def is_foldable_size(shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape is small enough to be computed while importing."""
    elements = prod(shape)
    is_vector = elements == max(shape, default=1)
    return elements <= (MAX_VECTOR if is_vector else MAX_ARRAY)


def fold(
    node: NodeProto, attributes: Attributes, inputs: Sequence[Array | None], opset: int
) -> list[Array] | None:
    """The node's results, or None if they cannot be computed here.

    Args:
        node: an operator of the standard domain.
        attributes: its attributes, decoded.
        inputs: one array per input, None for an absent optional one.
        opset: version of the standard domain.
    """
    if node.op_type in _SKIP:
        return None
    rule = _RULES.get(node.op_type)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            if rule is not None:
                result = rule(attributes, *inputs)
                return None if result is None else [np.asarray(result)]
            return _reference(node, inputs, opset)
    except (ValueError, IndexError, TypeError, ZeroDivisionError, OverflowError):
        return None


def _reference(node: NodeProto, inputs: Sequence[Array | None], opset: int) -> list[Array] | None:
    from onnx import TypeProto, helper
    from onnx.reference import ReferenceEvaluator

    feeds = {n: a for n, a in zip(node.input, inputs, strict=True) if n and a is not None}
    graph = helper.make_graph(
        [node],
        "fold",
        [helper.make_value_info(n, TypeProto()) for n in feeds],
        [helper.make_value_info(n, TypeProto()) for n in node.output if n],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        results = ReferenceEvaluator(model).run(None, feeds)
    except Exception:
        return None
    if not all(isinstance(r, np.ndarray | np.generic) for r in results):
        return None
    return [np.asarray(r) for r in results]


def _axes(attributes: Attributes, given: Array | None) -> tuple[int, ...] | None:
    if given is not None:
        return tuple(int(a) for a in np.atleast_1d(given))
    axes = attributes.get("axes")
    return None if axes is None else tuple(axes)


def _unsqueeze(attributes: Attributes, data: Array, axes: Array | None = None) -> Array | None:
    places = _axes(attributes, axes)
    return None if places is None else np.expand_dims(data, places)


def _squeeze(attributes: Attributes, data: Array, axes: Array | None = None) -> Array:
    return np.squeeze(data, _axes(attributes, axes))


def _slice(
    attributes: Attributes,
    data: Array,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    first = attributes["starts"] if starts is None else starts.tolist()
    last = attributes["ends"] if ends is None else ends.tolist()
    places = attributes.get("axes") if axes is None else axes.tolist()
    places = range(len(first)) if places is None else places
    strides = [1] * len(first) if steps is None else steps.tolist()
    index: list[slice] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(first, last, places, strides, strict=True):
        # Counting down to before the first element is written as a very negative end.
        stop = None if step < 0 and end < -data.shape[axis] else end
        index[axis] = slice(start, stop, step)
    return data[tuple(index)]


def _reshape(attributes: Attributes, data: Array, shape: Array | None = None) -> Array:
    target = [int(s) for s in (attributes["shape"] if shape is None else shape)]
    if not attributes.get("allowzero"):
        target = [data.shape[i] if s == 0 else s for i, s in enumerate(target)]
    return data.reshape(target)


def _cast(attributes: Attributes, data: Array) -> Array | None:
    target = numpy_dtype(dtype_of(attributes["to"]))
    return None if target is None else data.astype(target)


def _divide(_: Attributes, a: Array, b: Array) -> Array | None:
    if np.issubdtype(a.dtype, np.integer):
        if (b == 0).any():
            return None
        # ONNX truncates towards zero, numpy's // rounds down.
        quotient = np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))
        return np.asarray(quotient, dtype=a.dtype)
    return np.asarray(a / b)


def _concat(attributes: Attributes, *arrays: Array) -> Array:
    return np.concatenate(arrays, attributes.get("axis", 0))


def _range(_: Attributes, start: Array, limit: Array, delta: Array) -> Array | None:
    if not delta or (limit - start) / delta > MAX_VECTOR:
        return None
    return np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _expand(_: Attributes, data: Array, shape: Array) -> Array:
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(shape.tolist())))


def _where(_: Attributes, condition: Array, a: Array, b: Array) -> Array:
    return np.asarray(np.where(condition, a, b))


def _binary(function: Callable[..., Any]) -> Callable[..., Array]:
    def apply(_: Attributes, a: Array, b: Array) -> Array:
        result: Array = function(a, b)
        return result

    return apply


def _unary(function: Callable[..., Any]) -> Callable[..., Array]:
    def apply(_: Attributes, a: Array) -> Array:
        result: Array = function(a)
        return result

    return apply


_RULES: Mapping[str, Callable[..., Array | None]] = {
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Reshape": _reshape,
    "Cast": _cast,
    "Div": _divide,
    "Concat": _concat,
    "Range": _range,
    "Expand": _expand,
    "Gather": lambda a, data, i: np.take(data, i, axis=a.get("axis", 0)),
    "Transpose": lambda a, data: np.transpose(data, a.get("perm")),
    "Where": _where,
    "Identity": _unary(lambda a: a),
    "Not": _unary(np.logical_not),
    "Neg": _unary(np.negative),
    "Abs": _unary(np.abs),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Sqrt": _unary(np.sqrt),
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Equal": _binary(np.equal),
    "Less": _binary(np.less),
    "Greater": _binary(np.greater),
    "LessOrEqual": _binary(np.less_equal),
    "GreaterOrEqual": _binary(np.greater_equal),
    "And": _binary(np.logical_and),
    "Or": _binary(np.logical_or),
}
