"""What an eager framework's kernels read and write, of operators that it runs as several of them.

Each function lists (bytes read, bytes written) of every kernel in order; the bytes between them go
through main memory. A compiler fuses them, and an operator without such a function is one kernel that
moves its operands and results once. As PyTorch runs them (aten/src/ATen/native/cuda, and
torch/csrc/autograd/FunctionsManual.cpp for those that are formulas of other operators).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graph_ir.graph import Node

Kernels = list[tuple[int, int]]


def softmax_backward(node: Node) -> Kernels:
    """The gradient times the result is a tensor of its own (SoftMax.cu)."""
    gradient, result = (v.type.bytes for v in node.inputs)
    return [(gradient + result, result), (2 * result, node.outputs[0].type.bytes)]


def row_norm_backward(node: Node) -> Kernels:
    """One kernel for the input's gradient, another for the weights' (layer_norm_kernel.cu)."""
    read = sum(v.type.bytes for v in node.inputs)
    first, *weights = (v.type.bytes for v in node.outputs)
    again = sum(v.type.bytes for v in node.inputs[: 2 + node.attrs["statistics"]])
    return [(read, first), (again, sum(weights))] if weights else [(read, first)]


def group_norm(node: Node) -> Kernels:
    """Statistics first, then every element with them (group_norm_kernel.cu)."""
    x = node.inputs[0].type.bytes
    read = sum(v.type.bytes for v in node.inputs)
    first, *statistics = (v.type.bytes for v in node.outputs)
    return [(x, sum(statistics)), (read + sum(statistics), first)]


def group_norm_backward(node: Node) -> Kernels:
    """Sums over each channel of the gradient, and of it times x; then every element with them."""
    read = sum(v.type.bytes for v in node.inputs)
    pair = sum(v.type.bytes for v in node.inputs[:2])
    first, *weights = (v.type.bytes for v in node.outputs)
    return [(pair, sum(weights)), (read, first)]


def pow_backward(node: Node) -> Kernels:
    """`grad * (exponent * x ** (exponent - 1))`, each operator a kernel."""
    gradient, x = (v.type.bytes for v in node.inputs)
    return [(x, x), (x, x), (gradient + x, x)]


def select_backward(node: Node) -> Kernels:
    """Of a maximum: halved where both are equal, then filled with zeros where the other is larger.

    `where(a == b, grad / 2, grad).masked_fill(a < b, 0)`; other selections are one kernel.
    """
    read = sum(v.type.bytes for v in node.inputs)
    gradient, result = node.inputs[0].type.bytes, node.outputs[0].type.bytes
    if node.attrs["of"] not in ("maximum", "minimum"):
        return [(read, result)]
    operands, mask = read - gradient, node.outputs[0].type.elements
    return [
        (operands, mask),
        (gradient, gradient),
        (mask + 2 * gradient, result),
        (operands, mask),
        (mask + result, result),
    ]


def adamw(node: Node) -> Kernels:
    """Eight operators over lists of tensors (torch/optim/adam.py, `foreach`), launched as one.

    Decay of the parameter; the mean; the square, scaled and then added to; its root, scaled, `eps` added;
    the step. With a master copy of the parameter a library's fused kernel does it.
    """
    parameter, gradient, mean, square, *master = (v.type.bytes for v in node.inputs)
    if master:
        definition = node.definition
        return [(definition.bytes_read_of(node), definition.bytes_written_of(node))]
    # The root is a tensor of its own, made once, scaled, added to and divided by.
    read = parameter + (mean + gradient) + square + (square + gradient) + square
    read += 2 * square + (parameter + mean + square)
    return [(read, 2 * parameter + mean + 2 * square + 3 * square)]
