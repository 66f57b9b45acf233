"""The nine real networks that onnx ships, beside a direct count from their raw protos."""

from collections import Counter
from math import prod

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from importers import load

NAMES = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
# Trainable parameters as published: torchvision's resnet50, vgg19 and squeezenet1_0 minus 0 layers.
PUBLISHED = {"resnet50": 25_557_032, "vgg19": 143_667_240, "squeezenet": 1_235_496}


def hand_count(path):
    """FLOPs of each Conv and Gemm from kernel shapes and result positions, nothing else."""
    model = onnx.load(path)
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            shapes[node.output[0]] = tuple(int(n) for n in constants[node.input[0]])
    inferred = onnx.shape_inference.infer_shapes(model)
    for info in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input):
        dims = tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
        shapes.setdefault(info.name, dims)
    counts = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            n, k, *space = shapes[node.output[0]]
            _, c, *taps = shapes[node.input[1]]
            counts.append(("conv", 2 * n * k * prod(space) * c * prod(taps)))
        elif node.op_type == "Gemm":
            m, k = shapes[node.input[0]]
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            n = shapes[node.input[1]][0 if transposed else 1]
            counts.append(("linear" if transposed else "matmul", 2 * m * k * n))
    return counts


@pytest.mark.parametrize("name", NAMES)
def test_each_layers_flops_equal_a_count_by_hand(light, name):
    path = light / f"light_{name}.onnx"
    graph = load(path).graph
    ours = [(n.op, n.flops) for n in graph.nodes if n.op in ("conv", "linear", "matmul")]
    assert Counter(ours) == Counter(hand_count(path))
    assert len(ours) > 5


@pytest.mark.parametrize("name", NAMES)
def test_weights_made_by_constant_of_shape_are_parameters(light, name):
    path = light / f"light_{name}.onnx"
    graph = load(path).graph
    model = onnx.load(path)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made = {
        n.output[0]: prod(int(i) for i in constants[n.input[0]])
        for n in model.graph.node
        if n.op_type == "ConstantOfShape"
    }
    statistics = {
        i for n in model.graph.node if n.op_type == "BatchNormalization" for i in n.input[3:]
    }
    read = {i for n in model.graph.node if n.op_type != "ConstantOfShape" for i in n.input}
    made |= {k: v.size for k, v in constants.items() if k in read and v.dtype.kind == "f"}
    expected = sum(size for name, size in made.items() if name not in statistics)
    assert sum(p.type.elements for p in graph.parameters) == expected
    buffers = sum(v.type.elements for v in graph.inputs if v.kind == "buffer")
    assert buffers == sum(size for name, size in made.items() if name in statistics)
    assert expected == PUBLISHED.get(name, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_batch_scales_everything_but_the_weights(light, name):
    """The files fix their batch at 1, also inside Reshape; it is replaced all the same."""
    path = light / f"light_{name}.onnx"
    one, eight = load(path).graph, load(path, batch=8).graph
    assert [n.op for n in one.nodes] == [n.op for n in eight.nodes]
    for a, b in zip(one.nodes, eight.nodes, strict=True):
        if a.op == "reshape" and a.inputs[0].kind == "parameter":
            continue  # a bias seen as [k, 1, 1]
        weights_only = all(v.kind == "parameter" for v in a.inputs)
        assert b.flops == a.flops * (1 if weights_only else 8), a.name
    assert np.array_equal(
        [p.type.elements for p in one.parameters], [p.type.elements for p in eight.parameters]
    )
    assert eight.outputs[0].type.elements == 8 * one.outputs[0].type.elements


def test_a_whole_training_graph_has_three_times_the_forward_products(light):
    """Every convolution has a gradient for its image and one for its weight; the first has no image."""
    from graph_ir.training import training_graph

    graph = load(light / "light_resnet50.onnx", mode="training", batch=2).graph
    training = training_graph(graph)
    products = Counter()
    for node in training.nodes:
        if node.definition.kind == "contraction":
            products[node.phase] += node.flops
    first = next(n for n in graph.nodes if n.op == "conv")
    assert products["backward"] == 2 * products["forward"] - first.flops
