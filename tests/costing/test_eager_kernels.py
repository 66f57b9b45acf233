"""Operators that an eager framework runs as several kernels: PyTorch's own calls are the oracle."""

import pytest

from costing.hardware_file import load_hardware
from costing.node_cost import NodePricer
from graph_ir.graph import GraphBuilder, Node
from graph_ir.tensor_type import DType, TensorType
from graph_ir.training import training_graph

FP32 = DType.FLOAT32
A100 = load_hardware("a100-sxm-80gb")
SHAPE = (64, 32, 256)


def backward(op: str, inputs: list[tuple[int, ...]], attrs: dict[str, object]) -> Node:
    """The backward node of an operator whose result has the first input's shape."""
    b = GraphBuilder()
    operands = [
        b.add_input(f"x{i}", TensorType(s, FP32), "parameter") for i, s in enumerate(inputs)
    ]
    outputs = [TensorType(inputs[0], FP32)]
    if op == "layer_norm":
        outputs += [TensorType(inputs[0][:-1], FP32)] * 2
    if op == "group_norm":
        outputs += [TensorType((inputs[0][0], int(str(attrs["groups"]))), FP32)] * 2
    (y, *_) = b.emit(op, operands, outputs, attrs)
    nodes = training_graph(b.build([y]), optimizer="sgd").nodes
    return next(node for node in nodes if node.phase == "backward")


@pytest.mark.parametrize("op", ["pow", "maximum"])
def test_formulas_move_what_pytorch_moves(op: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils._python_dispatch import TorchDispatchMode

    moved: list[tuple[int, int]] = []

    class Calls(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            # A number that became a tensor is no traffic.
            tensors = [a for a in args if isinstance(a, torch.Tensor) and a.dim()]
            moved.append((sum(t.nbytes for t in tensors), result.nbytes))
            return result

    x = torch.rand(SHAPE, requires_grad=True)
    y = x**3.0 if op == "pow" else torch.maximum(x, torch.rand(SHAPE))
    gradient = torch.ones_like(y)
    with Calls():
        torch.autograd.grad(y, x, gradient)
    inputs = [SHAPE] if op == "pow" else [SHAPE, SHAPE]
    node = backward(op, inputs, {"scalar": 3.0} if op == "pow" else {})
    assert node.definition.eager_kernels is not None
    assert sorted(node.definition.eager_kernels(node)) == sorted(m for m in moved if m[0])


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "tensors"),
    [
        # Gradient x result -> product; product, result -> gradient.
        ("softmax", [SHAPE], {"axis": -1}, 6),
        # Gradient, x -> gradient; gradient, x -> weights' gradients.
        ("layer_norm", [SHAPE, SHAPE[-1:], SHAPE[-1:]], {"rank": 1}, 5),
        ("group_norm", [SHAPE, SHAPE[1:2], SHAPE[1:2]], {"groups": 4}, 5),
    ],
)
def test_passes_over_the_large_tensors(
    op: str, inputs: list[tuple[int, ...]], attrs: dict[str, object], tensors: int
) -> None:
    node = backward(op, inputs, attrs)
    eager, compiled = (NodePricer(A100, eager).cost(node) for eager in (True, False))
    large = TensorType(SHAPE, FP32).bytes
    assert eager.bytes_read + eager.bytes_written == pytest.approx(tensors * large, rel=0.03)
    assert compiled.bytes_read + compiled.bytes_written == pytest.approx(3 * large, rel=0.03)
    assert eager.flops == compiled.flops == node.flops
    assert eager.time_s > compiled.time_s


def test_adamw_moves_what_pytorch_moves() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils._python_dispatch import TorchDispatchMode

    moved = [0, 0]

    class Calls(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            lists = [a for a in args if isinstance(a, list) and isinstance(a[0], torch.Tensor)]
            if str(function).startswith("aten._foreach") and lists[0][0].dim():
                written = lists[0] if result is None else result
                # A tensor that is an operand twice is read once.
                read = {id(t): t.nbytes for tensors in lists for t in tensors}
                moved[0] += sum(read.values())
                moved[1] += sum(t.nbytes for t in written)
            return result

    parameter = torch.nn.Parameter(torch.rand(SHAPE))
    parameter.grad = torch.rand(SHAPE)
    optimizer = torch.optim.AdamW([parameter], foreach=True)
    optimizer.step()
    with Calls():
        optimizer.step()
    b = GraphBuilder()
    x = b.add_input("x", TensorType(SHAPE, FP32), "parameter")
    (y,) = b.emit("tanh", [x], [x.type])
    nodes = training_graph(b.build([y]), optimizer="adamw").nodes
    node = next(node for node in nodes if node.op == "adamw")
    eager = NodePricer(A100).cost(node)
    assert [eager.bytes_read, eager.bytes_written] == moved
    assert NodePricer(A100, eager=False).cost(node).bytes_read < eager.bytes_read
