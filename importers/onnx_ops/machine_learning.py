"""The domain ai.onnx.ml: trees, vector machines and tables, whose work depends on the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.elementwise import same_as_first
from importers.onnx_ops.emitter import Emitter, required, rule
from importers.onnx_values import OnnxNode, dtype_of

ML = "ai.onnx.ml"


@rule("TreeEnsembleClassifier", "TreeEnsembleRegressor", "TreeEnsemble", domain=ML)
def tree_ensemble(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Each row walks down every tree: the attributes hold the nodes, as tables that are looked up."""
    counts = [len(v) for v in node.attributes.values() if isinstance(v, list | tuple)]
    arrays = [int(np.prod(v.dims)) for v in node.attributes.values() if hasattr(v, "dims")]
    size = max([*counts, *arrays], default=1)
    # Per tree node: feature (int64), threshold (float), two children (int64) as the file states them.
    table = e.builder.add_input(
        f"{node.name}.nodes", TensorType((size, 7), DType.FLOAT32), "buffer"
    )
    return _looked_up(e, node, [table, e.at(node, 0)])


@rule("SVMClassifier", "SVMRegressor", "LinearClassifier", "LinearRegressor", domain=ML)
def linear_model(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A product of each row with coefficients that stand in an attribute."""
    x = e.at(node, 0)
    coefficients = node.attributes.get("coefficients", ())
    vectors = node.attributes.get("support_vectors", ())
    features = x.type.shape[-1] if x.type.shape else 1
    rows = max(1, len(vectors or coefficients) // max(features, 1))
    type_ = TensorType((rows, features), DType.FLOAT32)
    weight = e.builder.add_input(f"{node.name}.coefficients", type_, "parameter")
    scores_type = TensorType((*x.type.shape[:-1], rows), DType.FLOAT32)
    scores = e.emit(node, "linear", [x, weight], scores_type, None, "scores")
    return _looked_up(e, node, [scores, scores])


@rule("Scaler", "Normalizer", "Imputer", "Binarizer", domain=ML)
def scaler(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Shifts, scales or replaces, element by element."""
    return [e.emit(node, "mul", [e.at(node, 0)], e.result_type(node), {"scalar": 1.0})]


@rule(
    "ArrayFeatureExtractor",
    "CategoryMapper",
    "DictVectorizer",
    "FeatureVectorizer",
    "LabelEncoder",
    "OneHotEncoder",
    domain=ML,
)
def lookup(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A table that is looked up element by element."""
    x = e.at(node, 0)
    return _looked_up(e, node, [x, x])


@rule("ZipMap", "CastMap", domain=ML)
def zip_map(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A map from labels to the operand's elements: no tensor work."""
    return [e.at(node, 0)]


def _looked_up(e: Emitter, node: OnnxNode, operands: Sequence[Value]) -> Sequence[Value | None]:
    present = [i for i, v in enumerate(node.outputs) if v is not None]
    types = [e.result_type(node, i) for i in present]
    results = e.emit_all(node, "gather_nd", operands, types)
    found = dict(zip(present, results, strict=True))
    return [found.get(i) for i in range(len(node.outputs))]


def _classifier_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    rows = x.shape[0] if len(x.shape) > 1 else 1
    strings = node.attributes.get("classlabels_strings") or ()
    ints = (
        node.attributes.get("classlabels_int64s") or node.attributes.get("classlabels_ints") or ()
    )
    label = DType.STRING if strings else DType.INT64
    classes = max(len(strings), len(ints), 1)
    return [TensorType((rows,), label), TensorType((rows, classes), DType.FLOAT32)]


def _regressor_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    rows = x.shape[0] if len(x.shape) > 1 else 1
    # Trees and linear models name their number of targets differently.
    targets = node.attributes.get("n_targets") or node.attributes.get("targets") or 1
    return [TensorType((rows, targets), DType.FLOAT32)]


def _same_shape(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    return [x.with_dtype(DType.FLOAT32 if x.dtype.is_float else x.dtype)]


def _as_floats(node: OnnxNode) -> Sequence[TensorType | None]:
    return [required(node, 0).type.with_dtype(DType.FLOAT32)]


def _vectorizer_types(node: OnnxNode) -> Sequence[TensorType | None]:
    """Features of all operands side by side."""
    rows = required(node, 0).shape[:1] if len(required(node, 0).shape) > 1 else (1,)
    widths = node.attributes.get("inputdimensions") or [
        v.shape[-1] if v.shape else 1 for v in node.inputs if v is not None
    ]
    return [TensorType((*rows, sum(widths)), DType.FLOAT32)]


def _label_types(node: OnnxNode) -> Sequence[TensorType | None]:
    """A label for each label, of the type that the attributes give them in."""
    x, kinds = required(node, 0).type, ("values_strings", "values_int64s", "values_floats")
    found = next((k for k in kinds if node.attributes.get(k)), None)
    table = node.attributes.get("values_tensor")
    if table is not None:
        return [x.with_dtype(dtype_of(table.data_type))]
    if found is None:
        # Before version 2 a list of strings numbered them.
        return [x.with_dtype(DType.INT64 if x.dtype is DType.STRING else DType.STRING)]
    return [x.with_dtype((DType.STRING, DType.INT64, DType.FLOAT32)[kinds.index(found)])]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (ML, "TreeEnsembleClassifier"): _classifier_types,
    (ML, "SVMClassifier"): _classifier_types,
    (ML, "LinearClassifier"): _classifier_types,
    (ML, "TreeEnsembleRegressor"): _regressor_types,
    (ML, "SVMRegressor"): _regressor_types,
    (ML, "LinearRegressor"): _regressor_types,
    (ML, "FeatureVectorizer"): _vectorizer_types,
    (ML, "LabelEncoder"): _label_types,
    (ML, "Imputer"): same_as_first,
    (ML, "Normalizer"): _as_floats,
    (ML, "Scaler"): _as_floats,
    (ML, "ZipMap"): _same_shape,
    (ML, "CastMap"): _same_shape,
}
