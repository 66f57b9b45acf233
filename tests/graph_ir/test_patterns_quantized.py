"""Products of dequantised operands: integers and few bits in, the same numbers out."""

from __future__ import annotations

import numpy as np
import pytest
from pattern_graph import Maker, feeds, operators, results

from graph_ir.canonicalize import canonicalize
from graph_ir.graph import Graph, Node, Value
from graph_ir.tensor_type import DType


def stored(
    m: Maker, dtype: DType, shape: tuple[int, ...], scale: tuple[int, ...], axis: int
) -> Value:
    """Dequantised from few bits."""
    levels = m.weight(*shape, dtype=dtype)
    scales = m.weight(*scale, name="scale")
    made = levels.type.with_dtype(DType.FLOAT32)
    return m.builder.emit("dequantize", [levels, scales], [made], {"axis": axis})[0]


def matmul(m: Maker, x: DType | None, w: DType, scale: tuple[int, ...] = (5,)) -> Value:
    left = m.input(3, 4) if x is None else stored(m, x, (3, 4), (), 0)
    return m.matmul(left, stored(m, w, (4, 5), scale, 1 if scale == (5,) else 0))


def linear(m: Maker) -> Value:
    weight = stored(m, DType.INT8, (5, 4), (5,), 0)
    return m.op("linear", [stored(m, DType.UINT8, (3, 4), (1,), 0), weight], (3, 5))


def conv(m: Maker) -> Value:
    x, w = stored(m, DType.INT8, (2, 4, 6, 6), (), 0), stored(m, DType.INT8, (6, 2, 3, 3), (6,), 0)
    attrs = {"stride": (1, 1), "dilation": (1, 1), "padding": (1, 1), "groups": 2}
    return m.op("conv", [x, w], (2, 6, 6, 6), **attrs)


def whole(m: Maker, *, relu: bool) -> Value:
    """Dequantise, multiply, add a bias, quantise."""
    y = m.add(conv(m), m.weight(6, 1, 1))
    y = m.relu(y) if relu else y
    made = [y.type.with_dtype(DType.INT8)]
    return m.builder.emit("quantize", [y, m.weight(name="scale")], made, {"axis": 1})[0]


def product(graph: Graph) -> Node:
    (node,) = (n for n in graph.nodes if n.definition.kind == "contraction")
    return node


@pytest.mark.parametrize(
    ("build", "dtypes", "sums"),
    [
        (lambda m: matmul(m, DType.INT8, DType.INT8), "int8 int8", "int32"),
        (lambda m: matmul(m, DType.INT8, DType.INT8, ()), "int8 int8", "int32"),
        (lambda m: matmul(m, DType.FLOAT8_E4M3, DType.FLOAT8_E4M3), "float8_e4m3 " * 2, "float32"),
        (lambda m: matmul(m, None, DType.INT4), "float32 int4", "float32"),
        (linear, "uint8 int8", "int32"),
        (conv, "int8 int8", "int32"),
    ],
)
def test_the_product_reads_what_is_stored(build, dtypes: str, sums: str) -> None:  # type: ignore[no-untyped-def]
    maker = Maker()
    before = maker.build(build(maker))
    after = canonicalize(before)
    node = product(after)
    assert [v.type.dtype.label for v in node.inputs] == dtypes.split()
    assert node.outputs[0].type.dtype.label == sums
    assert node.flops == product(before).flops
    assert all(n.attrs.get("epilogue") for n in after.nodes if n is not node)
    assert node.name == before.nodes[-1].name
    numbers = feeds(before)
    for ours, theirs in zip(results(after, numbers), results(before, numbers), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("relu", [False, True])
def test_dequantise_compute_quantise_is_one_kernel(relu: bool) -> None:
    from graph_ir.fusion import fusion_groups

    maker = Maker()
    before = maker.build(whole(maker, relu=relu))
    after = canonicalize(before)
    assert fusion_groups(after)[0][0].op == "conv"
    assert len(fusion_groups(after)) == 1
    numbers = feeds(before)
    for ours, theirs in zip(results(after, numbers), results(before, numbers), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_others_read_stays_dequantised_for_them() -> None:
    maker = Maker()
    x = stored(maker, DType.INT8, (3, 4), (), 0)
    y = maker.matmul(x, stored(maker, DType.INT8, (4, 5), (5,), 1))
    after = canonicalize(maker.build(y, maker.neg(x)))
    assert product(after).inputs[0].type.dtype is DType.INT8
    assert operators(after) == {"matmul": 1, "dequantize": 3, "neg": 1}


@pytest.mark.parametrize("kind", ["blocks", "zero point", "contracted"])
def test_scales_inside_of_the_sums_are_applied_by_the_kernel(kind: str) -> None:
    maker = Maker()
    if kind != "zero point":
        scale = (2, 5) if kind == "blocks" else (4,)
        weight = stored(maker, DType.INT4, (4, 5), scale, 0)
    else:
        levels = maker.weight(4, 5, dtype=DType.INT4)
        operands = [levels, maker.weight(5), maker.weight(5, dtype=DType.INT4)]
        made = [levels.type.with_dtype(DType.FLOAT32)]
        weight = maker.builder.emit("dequantize", operands, made, {"axis": 1})[0]
    after = canonicalize(maker.build(maker.matmul(maker.input(3, 4), weight)))
    assert operators(after) == {"matmul": 1, "apply_scales": 1}
    assert product(after).inputs[1].type.dtype is DType.INT4


def test_training_keeps_the_rounding_apart() -> None:
    maker = Maker()
    graph = maker.build(matmul(maker, None, DType.INT8))
    assert canonicalize(graph, training=True) is graph


@pytest.mark.parametrize("scale", [(), (4,)])
def test_elements_that_only_move_stay_as_they_are_stored(scale: tuple[int, ...]) -> None:
    """A transpose carries a scale per row along; a reshape would tear it apart."""
    maker = Maker()
    x = stored(maker, DType.INT8, (4, 6), scale, 0)
    turned = maker.transpose(x, 1, 0)
    before = maker.build(maker.reshape(turned, 3, 8), maker.neg(turned))
    after = canonicalize(before)
    by_op = {n.op: n for n in after.nodes}
    assert by_op["transpose"].inputs[0].type.dtype is DType.INT8
    wide = DType.FLOAT32 if scale else DType.INT8
    assert by_op["reshape"].inputs[0].type.dtype is wide
    numbers = feeds(before)
    for ours, theirs in zip(results(after, numbers), results(before, numbers), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("same", [False, True])
def test_quantised_again_with_the_same_scale_is_what_was_stored(same: bool) -> None:
    maker = Maker()
    levels = maker.weight(4, 6, dtype=DType.INT8)
    scales = [maker.constant(np.float32(s)) for s in (0.5, 0.5 if same else 0.25)]
    wide = levels.type.with_dtype(DType.FLOAT32)
    x = maker.builder.emit("dequantize", [levels, scales[0]], [wide], {"axis": 0})[0]
    moved = maker.reshape(x, 6, 4)
    made = [moved.type.with_dtype(DType.INT8)]
    back = maker.builder.emit("quantize", [moved, scales[1]], made, {"axis": 0})[0]
    before = maker.build(back)
    after = canonicalize(before)
    assert ("quantize" in operators(after)) is not same
    numbers = feeds(before)
    numbers[levels] = np.round(numbers[levels])
    np.testing.assert_array_equal(results(after, numbers)[0], results(before, numbers)[0])
