"""Networks as onnxruntime quantises them: bytes and engines beside the float network."""

import logging

import numpy as np
import pytest

from costing.hardware_file import load_hardware
from costing.node_cost import NodePricer
from graph_ir.canonicalize import canonicalize
from graph_ir.fusion import fusion_groups
from importers import load

quantization = pytest.importorskip("onnxruntime.quantization")

TEXT = (
    "m (float[1, 16, 64, 64] x) => (float[1, 32, 1, 1] y) { a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)"
    "r = Relu (a) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)"
    "c = Conv <pads = [1, 1, 1, 1]> (p, w1, b1) s = Add (p, c) q = Relu (s)"
    "d = Conv <pads = [1, 1, 1, 1]> (q, w1, b1) t = Add (q, d) y = GlobalAveragePool (t) }"
)


class Calibration(quantization.CalibrationDataReader):
    def __init__(self):
        array = np.random.default_rng(0).normal(size=(1, 16, 64, 64)).astype(np.float32)
        self.batches = iter([{"x": array}])

    def get_next(self):
        return next(self.batches, None)


@pytest.fixture
def twins(onnx_model, tmp_path):
    """The same network in floats, and quantised in both of onnxruntime's forms."""
    generator = np.random.default_rng(0)
    shapes = {"w0": (32, 16, 3, 3), "b0": (32,), "w1": (32, 32, 3, 3), "b1": (32,)}
    weights = {n: generator.normal(size=s).astype(np.float32) * 0.1 for n, s in shapes.items()}
    paths = {"float": onnx_model(TEXT, weights=weights)}
    logging.disable(logging.WARNING)
    for form in ("QDQ", "QOperator"):
        paths[form] = tmp_path / f"{form}.onnx"
        quantization.quantize_static(
            paths["float"],
            paths[form],
            Calibration(),
            quant_format=quantization.QuantFormat[form],
            per_channel=form == "QDQ",
        )
    logging.disable(logging.NOTSET)
    return paths


def bytes_of_kernels(graph):
    """What crosses a kernel's border, once per kernel."""
    total = 0
    for group in fusion_groups(graph):
        made = {v for n in group for v in n.outputs}
        read = {v for n in group for v in n.inputs} - made
        written = {
            v for v in made if v in graph.outputs or not set(graph.users.get(v, ())) <= set(group)
        }
        total += sum(v.type.bytes for v in read | written)
    return total


def test_fused_a_quantised_network_moves_less_than_its_float_twin(twins, contraction_flops):
    graphs = {form: canonicalize(load(path).graph) for form, path in twins.items()}
    assert len({contraction_flops(g) for g in graphs.values()}) == 1
    moved = {form: bytes_of_kernels(g) for form, g in graphs.items()}
    assert moved["QDQ"] < 0.5 * moved["float"]
    # Both forms are one network: only what the forms keep apart may differ.
    assert moved["QDQ"] == pytest.approx(moved["QOperator"], rel=0.15)


def test_products_run_on_the_integer_engine(twins):
    hardware = load_hardware("h100-sxm-80gb")
    graph = canonicalize(load(twins["QDQ"]).graph)
    products = [n for n in graph.nodes if n.definition.kind == "contraction"]
    assert len(products) == 3
    for node in products:
        assert [v.type.dtype.bits for v in node.inputs] == [8, 8]
        assert NodePricer(hardware).cost(node).engine == "tensor_core"


def test_apart_every_operator_stays_as_the_file_has_it(twins):
    eager = load(twins["QDQ"]).graph
    assert sum(n.op == "dequantize" for n in eager.nodes) > 8
    assert all(
        n.inputs[0].type.dtype.is_float for n in eager.nodes if n.definition.kind == "contraction"
    )


@pytest.mark.parametrize("form", ["QOperator", "QDQ"])
def test_a_product_with_4_bit_weights_is_one_kernel(onnx_model, tmp_path, form):
    """One token: blocks' scales are more than its results, and still no kernel of their own."""
    nbits = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    import onnx

    weight = np.random.default_rng(0).normal(size=(512, 1024)).astype(np.float32)
    text = "m (float[1, 512] x) => (float[1, 1024] y) { a = MatMul (x, w) y = Relu (a) }"
    path = onnx_model(text, opset=21, weights={"w": weight})
    how = quantization.QuantFormat[form]
    config = nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, quant_format=how)
    logging.disable(logging.WARNING)
    quantizer = nbits.MatMulNBitsQuantizer(onnx.load(path), algo_config=config)
    quantizer.process()
    logging.disable(logging.NOTSET)
    small = tmp_path / "small.onnx"
    quantizer.model.save_model_to_file(str(small))
    graph = canonicalize(load(small).graph)
    assert len(fusion_groups(graph)) == 1
    scales = 4 * 512 * 1024 // 32
    assert bytes_of_kernels(graph) == 512 * 1024 // 2 + scales + 4 * (512 + 1024)
