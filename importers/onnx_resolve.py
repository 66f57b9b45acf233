"""Walks an ONNX graph in order and settles every type: what comes out has integers for all dims.

On the way shape arithmetic is computed and disappears, functions are expanded, branches are chosen
where their condition is known, and each tensor is told apart as input, weight or computed. What
remains is a flat list of `OnnxNode`s, ready to be translated operator by operator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from graph_ir.errors import (
    DimensionError,
    ModelFileError,
    UnknownOperatorError,
)
from graph_ir.tensor_type import TensorType
from importers import onnx_constants, onnx_control, onnx_infer, onnx_search, onnx_sequences
from importers.onnx_constants import dtype_of_array
from importers.onnx_fold import fold, is_foldable_size
from importers.onnx_functions import instantiate, schema_body
from importers.onnx_names import module_of, name_of
from importers.onnx_scope import Scope, canonical_domain
from importers.onnx_settle import Settler, TypeRule
from importers.onnx_structure import MAX_DEPTH, in_order, node_label, reads
from importers.onnx_values import OnnxNode, OnnxValue, checked_shape, dtype_of

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

    from importers.onnx_dims import DimBinder

_EXPANSION_BUDGET = 100_000
"""Nodes that functions and loops may add to those in the file."""

_ADOPTED = frozenset({"GatherND", "GridSample", "Pad", "Range", "Trilu", "Unique"})
"""Operators of com.microsoft that the standard has since taken over as they are."""

_MAX_NUMBERS = 6

_RELAYOUTS = frozenset({"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Cast"})


class Resolver:
    """Turns a model into resolved nodes."""

    def __init__(
        self,
        model: ModelProto,
        binder: DimBinder,
        has_rule: Callable[[str, str, int], bool],
        type_rules: Mapping[tuple[str, str], TypeRule],
        flops_of: Callable[[list[OnnxNode]], int],
    ) -> None:
        from onnx import helper

        self.binder = binder
        self.answers = binder.answers
        self.flops_of = flops_of
        self.has_rule = has_rule
        self.functions: dict[tuple[str, str], FunctionProto] = {
            (canonical_domain(f.domain), f.name): f for f in model.functions
        }
        self.opsets = {canonical_domain(o.domain): o.version for o in model.opset_import}
        self.settler = Settler(binder, type_rules)
        self.nodes: list[OnnxNode] = []
        self.count = 1
        self.at: NodeProto | OnnxNode | None = None
        """The node that is being read, for errors."""
        self._attribute_value = helper.get_attribute_value
        self._budget = len(model.graph.node) + _EXPANSION_BUDGET

    @property
    def place(self) -> str:
        """What is being read, for errors."""
        if self.at is None:
            return "its inputs"
        return self.at.label if isinstance(self.at, OnnxNode) else node_label(self.at)

    @property
    def notes(self) -> dict[str, None]:
        """What the report's reader should know, in order."""
        return self.settler.notes

    @notes.setter
    def notes(self, notes: dict[str, None]) -> None:
        self.settler.notes = notes

    def run(self, graph: GraphProto) -> tuple[list[OnnxValue], list[OnnxValue]]:
        """Resolves the main graph.

        Returns:
            Its inputs and its outputs; the nodes are in `nodes`.

        Raises:
            ModelFileError: the graph is invalid.
            DimensionError: a dim is unbound.
            UnknownOperatorError: an operator's result types cannot be told.
        """
        inputs = self.binder.inputs(graph)
        _check_unique(graph)
        outputs = self.graph(graph, Scope(self.opsets), inputs)
        self.binder.check_all_used()
        self.answers.check_all_used()
        return inputs, outputs

    def graph(
        self, graph: GraphProto, scope: Scope, arguments: Sequence[OnnxValue]
    ) -> list[OnnxValue]:
        """Resolves one graph or subgraph in `scope`, its inputs being `arguments`."""
        if scope.depth > MAX_DEPTH:
            raise ModelFileError(f"{scope.prefix} nests subgraphs deeper than {MAX_DEPTH}")
        scope.pending = {t.name: t for t in graph.initializer}
        weights = scope.pending.keys()
        formal = [i.name for i in graph.input if i.name not in weights]
        scope.values.update(zip(formal, arguments, strict=False))
        for sparse in graph.sparse_initializer:
            name = sparse.values.name
            shape = checked_shape(list(sparse.dims), f"initializer {name!r}")
            type_ = TensorType(shape, dtype_of(sparse.values.data_type))
            scope.values[name] = OnnxValue(name, type_, "weight")
        scope.declared = {v.name: v for v in (*graph.value_info, *graph.output)}
        names = [o.name for o in graph.output]
        self._nodes(graph.node, names, scope)
        return [self._result(name, scope) for name in names]

    def _nodes(self, nodes: Sequence[NodeProto], outputs: Sequence[str], scope: Scope) -> None:
        read = [list(reads(node)) for node in nodes]
        scope.uses = Counter(chain(outputs, *read))
        for node in in_order(nodes, read, scope.names()):
            self._budget -= 1
            if self._budget < 0:
                raise ModelFileError(
                    f"functions and loops expand to more than {_EXPANSION_BUDGET} nodes beyond "
                    f"those in the file (at {node_label(node)})"
                )
            self.at = node
            self.visit(node, scope)

    def _result(self, name: str, scope: Scope) -> OnnxValue:
        value = scope.lookup(name)
        if value is None:
            raise ModelFileError(f"the graph returns {name!r}, which nothing produces")
        return value

    def visit(self, node: NodeProto, scope: Scope) -> None:
        """Resolves one node: computes it, expands it, or appends it to `nodes`."""
        domain = self._domain_of(node, scope)
        function = self.functions.get((domain, node.op_type))
        if function is not None:
            self._call(node, function, scope)
            return
        inputs = [scope.lookup(name) if name else None for name in node.input]
        resolved = self._describe(node, domain, inputs, scope)
        special = _SPECIAL.get((domain, node.op_type))
        if special is not None:
            special(self, node, resolved, scope)
            return
        if domain == "" and self._known_result(node, resolved, scope):
            return
        self.append(node, resolved, scope)

    def _domain_of(self, node: NodeProto, scope: Scope) -> str:
        """The node's domain; onnxruntime's operators are found without theirs, as it does itself."""
        domain = canonical_domain(node.domain)
        if domain == "com.microsoft" and node.op_type in _ADOPTED:
            return ""
        if domain or self.has_rule("", node.op_type, 1):
            return domain
        foreign = (
            self.has_rule("com.microsoft", node.op_type, 1)
            or ("com.microsoft", node.op_type) in _SPECIAL
        )
        known = onnx_infer.schema_of("", node.op_type, scope.opsets.get("", 1)) is not None
        return "com.microsoft" if foreign and not known else domain

    def _describe(
        self,
        node: NodeProto,
        domain: str,
        inputs: list[OnnxValue | None],
        scope: Scope,
    ) -> OnnxNode:
        attributes = {a.name: self._attribute_value(a) for a in node.attribute}
        name = name_of(node)
        version = scope.opsets.get(domain, 1)
        return OnnxNode(
            scope.prefix + name,
            domain,
            node.op_type,
            version,
            attributes,
            inputs,
            [],
            module_of(node) or scope.module,
            self.count,
            len(node.output),
        )

    def _known_result(self, node: NodeProto, resolved: OnnxNode, scope: Scope) -> bool:
        """Computes the node if it is a re-layout of a weight, or small and known."""
        inputs = resolved.inputs
        first = inputs[0] if inputs else None
        arrays = None
        if inputs and all(v is None or v.data is not None for v in inputs):
            arrays = fold(
                node, resolved.attributes, [v.data if v else None for v in inputs], resolved.version
            )
            if arrays is not None and not all(is_foldable_size(a.shape) for a in arrays):
                arrays = None
        relayout = (
            first is not None
            and first.origin == "weight"
            and node.op_type in _RELAYOUTS
            and scope.uses[node.input[0]] == 1
            and all(v is None or v.data is not None for v in inputs[1:])
        )
        if relayout and first is not None:
            types = self.settler.types(node, resolved, scope)
            if types is None or types[0] is None:
                return False
            data = arrays[0] if arrays else None
            stored = first.stored if data is None and node.op_type != "Transpose" else None
            make = partial(OnnxValue, first.name, types[0], "weight", data, stored=stored)
            scope.values[node.output[0]] = scope.shared(node.output[0], make)
            return True
        if arrays is None:
            return False
        from_weights = all(v is None or v.origin == "weight" for v in inputs)
        for name, array in zip(node.output, arrays, strict=False):
            type_ = TensorType(tuple(array.shape), dtype_of_array(array))
            origin = "weight" if from_weights else "computed"
            scope.values[name] = OnnxValue(scope.prefix + name, type_, origin, array)  # type: ignore[arg-type]
        return True

    def append(self, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
        """Settles the node's result types and keeps it; or expands it by its schema's function.

        Raises:
            UnknownOperatorError: its result types cannot be told.
        """
        results = max((i + 1 for i, name in enumerate(node.output) if name), default=0)
        known = self.has_rule(resolved.domain, resolved.op_type, results)
        if not known and self._expand(node, resolved, scope):
            return
        settled = self.settler.settle(node, resolved, scope)
        types = settled.types
        if types is None and known:
            result = scope.prefix + node.output[0]
            raise DimensionError(
                f"{resolved.label}: the shape of {result!r} depends on data: give "
                f"{_deciding(resolved)}every one of its dims: --dim '{result}.0=INT', "
                f"--dim '{result}.1=INT' ... for as many as it has"
            )
        if types is None:
            place = f" in module {resolved.module!r}" if resolved.module else ""
            raise UnknownOperatorError(
                f"{resolved.label}{place}: the operator is unknown and the file does not state its "
                "result's shape; add a rule to importers/onnx_ops/ and a record to graph_ir/ops/, or "
                f"pass --allow-unknown and --dim '{scope.prefix}{node.output[0]}.0=INT' and so on"
            )
        self.nodes.extend(settled.before)
        for name, type_, old in zip(node.output, types, settled.in_file, strict=True):
            if not name or type_ is None:
                resolved.outputs.append(None)
                continue
            data = self.answers.contents(type_, name, scope.prefix + name)
            value = OnnxValue(scope.prefix + name, type_, data=data, in_file=old)
            scope.values[name] = value
            resolved.outputs.append(value)
        self.nodes.append(resolved)

    def _expand(self, node: NodeProto, resolved: OnnxNode, scope: Scope) -> bool:
        """Replaces an operator by the function body of its schema, if it has one."""
        schema = onnx_infer.schema_of(resolved.domain, resolved.op_type, resolved.version)
        body = schema_body(node, resolved, schema) if schema is not None else None
        if body is not None:
            self._call(node, body, scope)
        return body is not None

    def _call(self, node: NodeProto, function: FunctionProto, scope: Scope) -> None:
        """Resolves a function's body in place of a call."""
        if scope.depth > MAX_DEPTH:
            raise ModelFileError(
                f"{node_label(node)}: functions nest deeper than {MAX_DEPTH}, perhaps without end"
            )
        name = name_of(node)
        own = {canonical_domain(o.domain): o.version for o in function.opset_import}
        inner = Scope(
            {"": onnx_infer.newest_opset(), **scope.opsets, **own},
            prefix=f"{scope.prefix}{name}/",
            module=module_of(node) or scope.module,
            depth=scope.depth + 1,
            place=f"{scope.place}{name}/",
            pool=scope.pool,
        )
        for formal, actual in zip(function.input, node.input, strict=False):
            value = scope.lookup(actual) if actual else None
            if value is not None:
                inner.values[formal] = value
        absent = set(function.input) - set(inner.values)
        body = [instantiate(n, node, function, absent) for n in function.node]
        inner.declared = {v.name: v for v in function.value_info}
        self._nodes(body, list(function.output), inner)
        for formal, actual in zip(function.output, node.output, strict=False):
            if actual:
                scope.values[actual] = self._result(formal, inner)


def _deciding(node: OnnxNode) -> str:
    """The option that says what the operand holds on which the node's shapes depend."""
    unknown = [
        v
        for v in node.inputs[1:]
        if v is not None and v.data is None and v.dtype.kind == "int" and len(v.shape) <= 1
    ]
    if not unknown:
        return ""
    count = unknown[0].type.elements
    numbers = ",".join(["N"] * count) if count <= _MAX_NUMBERS else f"N,... ({count} numbers)"
    return f"--value '{unknown[0].name}={numbers}', or "


def _check_unique(graph: GraphProto) -> None:
    for what, names in (
        ("input", [i.name for i in graph.input]),
        ("initializer", [t.name for t in graph.initializer]),
    ):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ModelFileError(f"{what} {twice[0]!r} occurs twice: names must be unique")


_SPECIAL: Mapping[tuple[str, str], onnx_constants.Special] = {
    **{
        ("", name): special
        for name, special in {
            **onnx_constants.SPECIAL,
            **onnx_control.SPECIAL,
            **onnx_sequences.SPECIAL,
        }.items()
    },
    **{("com.microsoft", name): special for name, special in onnx_search.SPECIAL.items()},
}
