"""Convolutions among the products: which of their kernels split, and which have Winograd's way."""

from __future__ import annotations

from costing.engine import MATRIX
from costing.hardware import Hardware
from costing.op_cost import COMPUTE, OpCost
from costing.roofline import kernel_op_cost
from costing.winograd import TAPS, WinogradShape, winograd_cost
from graph_ir.equation import Equation, Window
from graph_ir.graph import Node


def splits_contraction(node: Node) -> bool:
    """Whether the product's kernel may split its contraction.

    On a vector engine every product may, but a convolution's only where it contracts batch and space:
    its weights' gradient, whose result is small (cuDNN's fp32 forward kernels, NeuSight's conv2d table).
    """
    windows = _windows(node.equation)
    contracted = node.equation.contracted
    return not windows or any(window.output in contracted for window in windows)


def winograd_node_cost(hardware: Hardware, node: Node) -> OpCost | None:
    """The price by Winograd's way, for a convolution with 3 x 3 taps and stride 1 or its inputs' gradient.

    None for any other product, and on engines whose library has no such kernels.
    """
    dtype = max((v.type.dtype for v in node.inputs), key=lambda d: d.bits)
    engine = hardware.engine_for(MATRIX, dtype)
    equation, shape = node.equation, node.equation.gemm
    if not engine.winograd or shape is None:
        return None
    windows = _windows(equation)
    taps = [equation.sizes[window.kernel] for window in windows]
    steps = (*node.attrs.get("stride", (1, 1)), *node.attrs.get("dilation", (1, 1)))
    if taps != [TAPS, TAPS] or any(step != 1 for step in steps) or splits_contraction(node):
        return None
    height, width = (equation.sizes[window.output] for window in windows)
    kernel = winograd_cost(
        hardware,
        dtype,
        WinogradShape(
            images=shape.m // (height * width),
            height=height,
            width=width,
            c_in=shape.k // TAPS**2,
            c_out=shape.n,
        ),
    )
    multiplied = float(kernel.terms[COMPUTE][0]) - hardware.main_memory.latency_s
    return kernel_op_cost(
        hardware,
        engine,
        dtype,
        kernel,
        flops=node.flops,
        executed_flops=multiplied * engine.sustained(dtype),
        bytes_read=node.bytes_read,
        bytes_written=node.bytes_written,
    )


def _windows(equation: Equation) -> list[Window]:
    """The sliding windows of a convolution, each once, in the order of its dims."""
    found = [
        dim
        for dims in (*equation.inputs, *equation.outputs)
        for dim in dims
        if isinstance(dim, Window)
    ]
    return list(dict.fromkeys(found))
