"""Measured times of a model's torch.fx nodes, fp32 and eager, against each node priced on its own.

A row becomes a graph of one operator, with its backward pass derived as for any model. Rows that
launch nothing on the device (views, sizes, Python's arithmetic) take the host's time only and are left
out, on both sides.

NeuSight times one call at a time, between two events on an idle device: the host issues the operator,
then its kernels run. Backward it calls the node's own function object, with gradients enabled. So a
sum's backward pass launches nothing (autograd's engine reduces what was broadcast, not the function),
and dropout's takes the way that can be differentiated again.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from costing.hardware import Hardware
from costing.hardware_file import load_hardware
from costing.kernels import price_graph
from costing.node_cost import NodePricer
from graph_ir.graph import Graph, GraphBuilder, Value
from graph_ir.tensor_type import DType, TensorType
from graph_ir.training import training_graph
from opbound.validation_measured import CARDS, Comparison, Table, read_rows

_ELEMENTWISE = {
    **{name: name for name in ("add", "mul", "sub", "tanh", "gelu", "pow")},
    "truediv": "div",
    "max": "maximum",
    "activation": "tanh",
    "activation_fn": "relu",
}
_DROPOUTS = ("drop", "dropout", "attn_dropout", "resid_dropout")
_EMBEDDINGS = (
    *("wte", "wpe", "embed_tokens", "word_embeddings", "position_embeddings"),
    *("token_type_embeddings", "embedding"),
)
_NORMS = ("LayerNorm", "ln_1", "ln_2", "ln_f", "final_layer_norm", "self_attn_layer_norm")
_COPIES = ("contiguous", "reshape")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class NodeTimes:
    """Predicted and measured seconds of one model's rows."""

    forward: Comparison
    backward: Comparison


def node_times(folder: Path) -> Iterator[tuple[str, NodeTimes]]:
    """For each device and model, its rows that run on the device."""
    for place, device in CARDS.items():
        hardware = load_hardware(device)
        for path in _files(folder, place):
            yield device, _file_times(path, device, hardware)


def _files(folder: Path, place: str) -> list[Path]:
    return sorted((folder / "per_node_fp32_eager" / place).glob("*.csv.gz"))


def _file_times(path: Path, device: str, hardware: Hardware) -> NodeTimes:
    name = f"{path.name.removesuffix('.csv.gz')} on {device}"
    return _compare(name, read_rows(path), hardware, NodePricer(hardware))


def sums(folder: Path) -> Iterator[Comparison]:
    """Sums over each model's nodes, forward and backward, by device.

    On the 40 GB card BERT's two files take as long as at its base clock, 765 of 1,410 MHz: their products
    run at 54 to 57 % of the rate that the 80 GB card reaches on the same ones, memory is as fast as in
    the other files. There the clock rises in the middle of a file: of four equal products in a row, OPT's
    take 3.66, 2.73, 2.72 and 2.04 ms. So the sums are compared at both clocks.
    """
    yield from _sums(node_times(folder))
    place, device = "NVIDIA_A100-PCIE-40GB", "a100-pcie-40gb"
    resting, working = load_hardware(device).at_base_clock(), load_hardware(device)
    mixed = (
        (device, _file_times(path, device, resting if "bert" in path.name else working))
        for path in _files(folder, place)
    )
    for found in _sums(mixed):
        yield replace(found, name=f"{found.name}, BERT at the base clock")


def _sums(times_of: Iterable[tuple[str, NodeTimes]]) -> Iterator[Comparison]:
    found: dict[str, list[tuple[float, float]]] = {}
    for device, times in times_of:
        for part, rows in (("forward", times.forward), ("backward", times.backward)):
            total = (float(rows.predicted_s.sum()), float(rows.measured_s.sum()))
            if total[1] > 0:
                found.setdefault(f"fx nodes {device}, {part}, sum over a model", []).append(total)
    for name, totals in found.items():
        predicted, measured = np.array(totals).T
        yield Comparison(name, predicted, measured)


def by_node(folder: Path) -> Iterator[Comparison]:
    """Every node, each with the weight of its measured time."""
    found: dict[str, list[Comparison]] = {}
    for device, times in node_times(folder):
        for part, rows in (("forward", times.forward), ("backward", times.backward)):
            if len(rows.measured_s):
                found.setdefault(f"fx nodes {device}, {part}, by time", []).append(rows)
    for name, parts in found.items():
        predicted = np.concatenate([part.predicted_s for part in parts])
        measured = np.concatenate([part.measured_s for part in parts])
        yield Comparison(name, predicted, measured, measured / measured.mean())


def _compare(name: str, table: Table, hardware: Hardware, pricer: NodePricer) -> NodeTimes:
    rows: dict[str, list[tuple[float, float]]] = {"forward": [], "backward": []}
    for row in table:
        graph = row_graph(row)
        if graph is None:
            continue
        graph = _differentiable(graph)
        costs = price_graph(graph, hardware, pricer=pricer)
        for part, column in (("forward", "fw_latency"), ("backward", "bw_latency")):
            nodes = [node for node in graph.nodes if node.phase == part]
            if float(row[column]) > 0 and not (part == "backward" and _launches_nothing(graph)):
                seconds = hardware.launch.host_s + sum(costs[node].time_s for node in nodes)
                rows[part].append((seconds, float(row[column]) * 1e-3))
    both = [
        Comparison(f"{name}, {part}", *np.array(rows[part], dtype=float).reshape(-1, 2).T)
        for part in ("forward", "backward")
    ]
    return NodeTimes(*both)


def row_graph(row: dict[str, str]) -> Graph | None:
    """The training graph of one row's operator; None if it launches no kernel of its own."""
    target = row["target"].split(" at ")[0].rstrip(">").replace("<", "")
    word = target.split(".")[-1] if row["op"] == "call_module" else _function(target)
    if row["op"] not in ("call_method", "call_function", "call_module") or not row["dtype"]:
        return None
    shapes: list[Shape] = [tuple(s) for s in ast.literal_eval(row["input_shapes"]) if s != [1]]
    out: Shape = tuple(ast.literal_eval(row["output_shape"]))
    if not shapes or "float32" not in row["dtype"]:
        return None
    builder = GraphBuilder()
    result = _operator(builder, row, word, shapes, out)
    return None if result is None else training_graph(builder.build([result]), optimizer="sgd")


def _launches_nothing(graph: Graph) -> bool:
    """Whether the backward pass of a row's operator only hands the gradient on."""
    return any(node.op in ("add", "sub") and not node.attrs.get("epilogue") for node in graph.nodes)


def _differentiable(graph: Graph) -> Graph:
    """Dropout's backward pass as `grad * (mask.type_as(grad) * scale)`, the others as they are.

    PyTorch's derivatives.yaml: native_dropout takes it while gradients are enabled.
    """
    found = next((node for node in graph.nodes if node.op == "dropout_backward"), None)
    if found is None:
        return graph
    b = GraphBuilder()
    gradient = _operand(b, found.inputs[0].type.shape)
    (dropped,) = b.emit("dropout", [gradient], _dropout_types(gradient.type.shape), {"p": 0.1})[:1]
    mask = b.add_input("mask", found.inputs[1].type)
    kind = gradient.type
    (mask,) = b.emit("cast", [mask], [kind], phase="backward")
    (mask,) = b.emit("mul", [mask], [kind], {"scalar": 1 / 0.9}, phase="backward")
    (result,) = b.emit("mul", [gradient, mask], [kind], phase="backward")
    return b.build([dropped, result])


def _dropout_types(shape: Shape) -> list[TensorType]:
    return [TensorType(shape, DType.FLOAT32), TensorType(shape, DType.BOOL)]


def _function(target: str) -> str:
    """The name in `built-in method addmm of type object` or `function softmax`."""
    words = [w for w in target.split() if w not in ("built-in", "function", "method", "class")]
    return words[0].strip("'")


def _operator(
    b: GraphBuilder, row: dict[str, str], word: str, shapes: list[Shape], out: Shape
) -> Value | None:
    """Adds the row's operator to a graph; every float operand asks for its gradient."""
    if row["op"] == "call_method":
        # What was permuted before is copied; what lies in order is not.
        moved = word in _COPIES and row["_args"].startswith(("(permute", "(transpose"))
        return _emit(b, "copy", [_operand(b, shapes[0])], shapes[0]) if moved else None
    if row["op"] == "call_function" and word not in _FUNCTIONS:
        return None
    if word in ("matmul", "bmm"):
        return _emit(b, "matmul", [_operand(b, s) for s in shapes[:2]], out)
    if word == "addmm":
        product = _emit(b, "matmul", [_operand(b, s) for s in shapes[1:3]], out)
        return _emit(b, "add", [product, _operand(b, shapes[0])], out, epilogue=True)
    if word == "softmax":
        return _emit(b, "softmax", [_operand(b, shapes[0])], out, axis=-1)
    if word == "where":
        condition = b.add_input("condition", TensorType(shapes[0], DType.BOOL))
        return _emit(b, "where", [condition, _operand(b, shapes[1])], out)
    if word in _EMBEDDINGS:
        return _embedding(b, row, shapes, out)
    if word in _NORMS:
        types = [TensorType(s, DType.FLOAT32) for s in (out, out[:-1], out[:-1])]
        operands = [_operand(b, s) for s in (shapes[0], out[-1:], out[-1:])]
        return b.emit("layer_norm", operands, types, {"rank": 1, "eps": 1e-5}, name="node")[0]
    if word in _DROPOUTS:
        if float(row["bw_latency"]) == 0:
            return None  # At inference it hands its operand on.
        operands = [_operand(b, shapes[0])]
        return b.emit("dropout", operands, _dropout_types(out), {"p": 0.1}, name="node")[0]
    if word in _ELEMENTWISE:
        attrs = {"scalar": 3.0} if word in ("add", "mul", "sub", "truediv", "pow", "max") else {}
        operands = [_operand(b, s) for s in shapes[:2]]
        return _emit(b, _ELEMENTWISE[word], operands, out, **(attrs if len(operands) == 1 else {}))
    operands = [_operand(b, shapes[0]), _operand(b, (out[-1], shapes[0][-1]))]
    product = _emit(b, "linear", operands, out)
    if word == "lm_head":
        return product
    return _emit(b, "add", [product, _operand(b, out[-1:])], out, epilogue=True)


_FUNCTIONS = ("matmul", "bmm", "addmm", "softmax", "where", "embedding", *_ELEMENTWISE)


def _embedding(b: GraphBuilder, row: dict[str, str], shapes: list[Shape], out: Shape) -> Value:
    """The table's rows are those that the row names, else as many as make its summed gradient."""
    rows = shapes[1][0] if len(shapes) > 1 else _TABLES.get(row["Name"], shapes[0][-1])
    picks = b.add_input("picks", TensorType(shapes[0], DType.INT64))
    return _emit(b, "gather", [_operand(b, (rows, out[-1])), picks], out, axis=0)


_TABLES = {
    "bert_embeddings_word_embeddings": 30522,
    "bert_embeddings_token_type_embeddings": 2,
    "transformer_wte": 50257,
    "model_decoder_embed_tokens": 50272,
}
"""Rows of the models' embedding tables (their configurations), which the table of times leaves out."""


def _operand(b: GraphBuilder, shape: Shape) -> Value:
    return b.add_input("operand", TensorType(shape, DType.FLOAT32), "parameter")


def _emit(b: GraphBuilder, op: str, inputs: list[Value], out: Shape, **attrs: object) -> Value:
    (result,) = b.emit(op, inputs, [TensorType(out, DType.FLOAT32)], attrs, name="node")
    return result
