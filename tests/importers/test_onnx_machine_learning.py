"""ai.onnx.ml, whose operators onnx itself infers no shapes for: beside what onnxruntime returns."""

import numpy as np
import pytest

from importers import load

runtime = pytest.importorskip("onnxruntime")

ROWS = ("f", 2, 4)
SVM = {
    "kernel_params": [0.1, 0.0, 3.0],
    "coefficients": [1.0] * 3,
    "support_vectors": [1.0] * 12,
    "rho": [0.0],
}
CASES = {
    "Normalizer": ([ROWS], 1, {"norm": "L1"}),
    "Scaler": ([ROWS], 1, {"offset": [0.0] * 4, "scale": [1.0] * 4}),
    "Imputer": ([ROWS], 1, {"imputed_value_floats": [0.0] * 4}),
    "Binarizer": ([ROWS], 1, {}),
    "FeatureVectorizer": ([ROWS, ("f", 2, 3)], 1, {"inputdimensions": [4, 3]}),
    "LabelEncoder": ([("l", 2)], 1, {"keys_int64s": [0, 1], "values_floats": [0.5, 1.5]}),
    "LinearRegressor": ([ROWS], 1, {"targets": 3, "coefficients": [1.0] * 12}),
    "SVMRegressor": ([ROWS], 1, {"n_supports": 3, **SVM}),
    "LinearClassifier": (
        [ROWS],
        2,
        {"coefficients": [1.0] * 12, "intercepts": [1.0] * 3, "classlabels_ints": [0, 1, 2]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_types_equal_onnxruntimes(node_model, name):
    operands, outputs, attributes = CASES[name]
    path = node_model(f"ai.onnx.ml::{name}", operands, outputs, attributes)
    graph = load(path).graph
    # The results' types in the file are placeholders, which onnxruntime would not accept.
    import onnx

    model = onnx.load(path)
    for info in model.graph.output:
        info.ClearField("type")
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {
        f"x{i}": np.ones(x[1:], np.float32 if x[0] == "f" else np.int64)
        for i, x in enumerate(operands)
    }
    theirs = session.run(None, feeds)
    ours = [(v.type.shape, v.type.dtype.label) for v in graph.outputs]
    assert ours == [(a.shape, a.dtype.name) for a in theirs]
