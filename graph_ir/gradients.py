"""What gradient rules use to build the backward graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from graph_ir.equation import Equation, bind
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.graph import GraphBuilder, Node, Phase, Value


class GradientBuilder:
    """Emits backward nodes that belong to a forward node."""

    def __init__(self, builder: GraphBuilder, required: set[Value]) -> None:
        self.builder = builder
        self._required = required
        self.phase: Phase = "backward"

    def needs(self, value: Value) -> bool:
        """Whether anyone wants this value's gradient."""
        return value in self._required

    def emit(
        self,
        node: Node,
        op: str,
        inputs: Sequence[Value],
        types: Sequence[TensorType],
        attrs: Mapping[str, Any] | None = None,
        label: str = "backward",
    ) -> tuple[Value, ...]:
        """Emits a node named after the forward node."""
        return self.builder.emit(
            op,
            inputs,
            types,
            attrs,
            name=f"{node.name}.{label}",
            module=node.module,
            phase=self.phase,
            count=node.count,
            instances=tuple(f"{name}.{label}" for name in node.instances),
            instance_modules=node.instance_modules,
            origin=node.origin or node.name,
        )

    def sum_to(self, node: Node, grad: Value, target: TensorType, label: str = "sum") -> Value:
        """Sums a gradient over the dims along which its operand was broadcast."""
        if grad.type.shape == target.shape:
            return grad
        lead = len(grad.type.shape) - len(target.shape)
        aligned = (1,) * lead + target.shape
        equation = reduction_to(grad.type.shape, aligned, target.shape)
        out = TensorType(target.shape, grad.type.dtype)
        return self.emit(node, "reduce_sum", [grad], [out], {"equation": equation}, label)[0]


def reduction_to(full: Sequence[int], aligned: Sequence[int], target: Sequence[int]) -> Equation:
    """The equation that sums `full` to `target`; `aligned` is the target with leading ones."""
    names = [f"i{i}" for i in range(len(full))]
    kept = [n if a == f else "1" for n, a, f in zip(names, aligned, full, strict=True)]
    kept = kept[len(full) - len(target) :]
    return bind(f"{' '.join(names)} -> {' '.join(kept)}", [tuple(full)], [tuple(target)])


def product_gradient(
    b: GradientBuilder, node: Node, grads: Sequence[Value | None]
) -> Sequence[Value | None]:
    """Gradients of a product of operands: each operand swapped with the result in the equation."""
    (grad,) = grads
    if grad is None:
        return [None] * len(node.inputs)
    results: list[Value | None] = []
    for i, operand in enumerate(node.inputs):
        if not b.needs(operand):
            results.append(None)
            continue
        others = [v for j, v in enumerate(node.inputs) if j != i]
        attrs = {
            **{k: v for k, v in node.attrs.items() if k != "view"},
            "equation": replace(node.equation.gradient(i), sizes=node.equation.sizes),
            "gradient_of": i,
        }
        label = "grad_weight" if operand.kind == "parameter" else f"grad_input{i or ''}"
        results.append(b.emit(node, node.op, [grad, *others], [operand.type], attrs, label)[0])
    return results


def linear_gradient(
    b: GradientBuilder, node: Node, grads: Sequence[Value | None]
) -> Sequence[Value | None]:
    """Gradient of an operator that only rearranges or sums one operand: the equation turned round."""
    (grad,) = grads
    if grad is None or not b.needs(node.inputs[0]):
        return [None] * len(node.inputs)
    operand = node.inputs[0]
    equation = node.equation
    turned = replace(equation, inputs=equation.outputs, outputs=equation.inputs, reduction="sum")
    attrs = {**node.attrs, "equation": turned, "gradient_of": 0}
    # Names that need replication may occur on one side only (an irregular reshape); nothing is summed.
    summed = set(turned.contracted) - turned.replicated
    spread = set(equation.contracted) - equation.replicated
    if summed:
        op = "reduce_sum"
        attrs = {"equation": turned}
    elif spread:
        op = "expand"
        attrs = {"equation": turned, "view": True}
    else:
        op = node.op
        if "perm" in attrs:
            attrs["perm"] = tuple(
                node.attrs["perm"].index(i) for i in range(len(node.attrs["perm"]))
            )
    return [b.emit(node, op, [grad], [operand.type], attrs, "grad")[0]]
