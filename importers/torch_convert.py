"""Walks an exported program's graph and builds the operator graph.

This file knows fx: values, constants, views, in-place writes, sub-graphs, names. What a single aten
operator means is said in the tables of `torch_canonical`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from graph_ir.errors import DimensionError, OpboundError, UnknownOperatorError
from graph_ir.graph import GraphBuilder, Value
from graph_ir.tensor_type import DType, TensorType
from importers.torch_attention import flexible_attention
from importers.torch_autocast import autocast_operands
from importers.torch_call import Call, Constant, Settings, flat, is_tensor
from importers.torch_canonical import find_rule, record_rule
from importers.torch_constants import (
    COMPUTABLE_ELEMENTS,
    FOLDED_ELEMENTS,
    Computable,
    as_numpy,
    evaluate_on_cpu,
    is_random,
)
from importers.torch_control import control_flow
from importers.torch_decompose import decomposed
from importers.torch_names import NodeNames
from importers.torch_nature import natural_rule


class Converter:
    """Translates one fx graph, and the graphs nested in it."""

    def __init__(
        self, builder: GraphBuilder, names: NodeNames, settings: Settings, rules: Mapping[str, Any]
    ) -> None:
        self.builder = builder
        self.names = names
        self.settings = settings
        self.rules = rules
        self.env: dict[Any, Any] = {}
        self.unknown: list[str] = []
        self.made: dict[str, tuple[str, ...]] = {}
        """The names of the nodes that each fx node became."""
        self.notes: list[str] = []
        """What a reader of the report should know about the translation."""
        self.cast_weights: dict[Any, Value] = {}
        """Weights that an autocast region has cast already."""
        self.autocast = False
        """Whether the graph being translated is an autocast region."""
        self._materialized: dict[Constant, Value] = {}
        self._layouts: dict[Any, Any] = {}
        self.roles: dict[Any, str] = {}
        """Roles of the values that certain fx nodes stand for."""

    def run(self, module: Any, arguments: Sequence[Any]) -> Any:
        """Translates a GraphModule.

        Args:
            module: the torch.fx.GraphModule.
            arguments: what each placeholder stands for, in order.

        Returns:
            What the module returns, in its own nesting.
        """
        nodes = list(module.graph.nodes)
        executed = executed_nodes(nodes)
        placeholders = iter(arguments)
        for node in nodes:
            if node.op == "placeholder":
                self.env[node] = next(placeholders)
            elif node.op == "get_attr":
                self.env[node] = _attribute(module, node.target)
            elif node.op == "output":
                return self.resolve(node.args[0])
            elif node in executed:
                before = len(self.builder.nodes)
                self.env[node] = self._call(module, node)
                self.made[node.name] = tuple(n.name for n in self.builder.nodes[before:])
        raise OpboundError("the exported program has no output")

    def _call(self, module: Any, node: Any) -> Any:
        target = node.target
        if not hasattr(target, "_schema"):
            return self._special(module, node)
        args = self._arguments(node)
        tensors = [v for v in flat(args.values()) if is_tensor(v)]
        if all(isinstance(v, Constant) for v in tensors) and not is_random(target):
            return self._fold(node)
        rule = find_rule(target, self.rules) or record_rule(target) or natural_rule(target)
        call = Call(self, node, args)
        if self.autocast:
            autocast_operands(call)
        result = rule(call) if rule is not None else self._decompose(call)
        self._follow_layout(node)
        given = self.argument_nodes(node)
        if target._schema.is_mutable and "self" in given and not str(target).endswith(".out"):
            self._write(given["self"], result, call)
        return result

    def _special(self, module: Any, node: Any) -> Any:
        """Tuple access, symbolic sizes, and operators that call a nested graph."""
        name = getattr(node.target, "__name__", str(node.target))
        if callable(getattr(node.target, "name", None)):
            name = node.target.name()
        from torch._ops import HigherOrderOperator

        args = [self.resolve(a) for a in node.args]
        if name == "getitem":
            found = args[0] if isinstance(args[0], list | tuple) else ()
            return found[args[1]] if args[1] < len(found) else None
        if name in (
            "wrap_with_set_grad_enabled",
            "wrap_with_autocast",
            "tag_activation_checkpoint",
            "wrap",
        ):
            graphs = [i for i, a in enumerate(args) if hasattr(a, "graph")]
            if graphs:
                before = self.autocast
                if name == "wrap_with_autocast":
                    self.autocast = bool(args[2])
                result = self.run(args[graphs[0]], args[graphs[0] + 1 :])
                self.autocast = before
                return result
        if name == "flex_attention":
            return flexible_attention(Call(self, node, {}), args)
        found = control_flow(self, node, name, args)
        if found is not None:
            return found
        if getattr(node.target, "__module__", "") == "_operator" and all(
            isinstance(a, int | float) for a in args
        ):
            return node.target(*args)
        if not isinstance(node.target, HigherOrderOperator) and all(
            isinstance(a, Constant) for a in flat(args) if is_tensor(a)
        ):
            # A call that only prepares tracing; what it makes of constants is a constant.
            found = [Constant(t) for t in self.types_of(node)]
            return found[0] if len(found) == 1 else found or None
        raise UnknownOperatorError(
            f"control flow {name!r} (node {node.name} in {self.names.module(node) or 'the model'}) "
            f"has no rule: "
            f"add it to Converter._special in importers/torch_convert.py"
        )

    def _decompose(self, call: Call) -> Any:
        """An operator without a rule, by those that torch defines it with."""
        simpler = decomposed(call.node, self.resolve)
        if simpler is None:
            return self.unknown_call(call)
        module, nodes = simpler
        return self.run(module, [self.resolve(n) for n in nodes])

    def unknown_call(self, call: Call) -> Any:
        """An operator that nothing describes: an error, or on request a node of which only bytes count."""
        node = call.node
        place = self.names.module(node) or "the model's top level"
        if not self.settings.allow_unknown:
            raise UnknownOperatorError(
                f"operator {node.target} (node {node.name} in {place}) has no rule: add one to "
                f"importers/torch_canonical.py, or pass --allow-unknown to count only its bytes"
            )
        self.unknown.append(str(node.target))
        inputs = [self.materialize(v, node) for v in flat(call.args.values()) if is_tensor(v)]
        attrs = {"frontend_type": str(node.target)}
        written = self._written_arguments(node)
        types = [*call.types, *(self.type_of(n.meta["val"], n) for n in written)]
        if not types:
            # A check or a number read back: nothing in the graph depends on it.
            return None
        results = call.emit("unknown", inputs, types, attrs)
        own = results[: len(call.types)]
        for target, value in zip(written, results[len(own) :], strict=True):
            self._write(target, value, call)
        return _nested(node.meta.get("val"), iter(own))

    def _written_arguments(self, node: Any) -> list[Any]:
        """The fx nodes of tensors that a custom operator writes to; aten's own return what they write."""
        if node.target.namespace == "aten":
            return []
        given = self.argument_nodes(node)
        schema = node.target._schema.arguments
        names = [a.name for a in schema if a.alias_info is not None and a.alias_info.is_write]
        found = [given[n] for n in names if n in given]
        return [n for n in found if hasattr(n, "all_input_nodes")]

    def _fold(self, node: Any) -> Any:
        """A call that reads no input of the model: its result is a constant, computed if it is small."""
        types = self.types_of(node)
        contents: Any = None
        if all(t.elements <= FOLDED_ELEMENTS for t in types):
            contents = evaluate_on_cpu(node, self.resolve)
        many = isinstance(node.meta["val"], tuple | list)
        parts = contents if many and contents is not None else [contents] * len(types)
        recipe = None
        if not many and all(t.elements <= COMPUTABLE_ELEMENTS for t in types):
            # What stands behind a name now may be written over later.
            known = {n: self.env[n] for n in node.all_input_nodes}
            recipe = partial(
                evaluate_on_cpu, node, lambda a: known[a] if hasattr(a, "all_input_nodes") else a
            )
        results = [
            Constant(t, c, recipe if c is None else None)
            for t, c in zip(types, parts, strict=False)
        ]
        if node.target._schema.is_mutable and not many:
            self.env[self.argument_nodes(node).get("self")] = results[0]
        return results if many else (results[0] if results else None)

    def _write(self, target: Any, result: Any, call: Call) -> None:
        """After an in-place operator: what was written is now behind `target`, and behind what it views."""
        self.env[target] = result
        source = (
            target.all_input_nodes[0]
            if target.op == "call_function" and target.all_input_nodes
            else None
        )
        rule = getattr(target.target, "_schema", None) if source is not None else None
        if source is None or rule is None or str(target.target) not in _WRITABLE_VIEWS:
            return
        base = self.env[source]
        if not is_tensor(base):
            return
        if target.meta["val"].shape == source.meta["val"].shape:
            self._write(source, result, call)
            return
        region = self._arguments(target)
        base_value = self.materialize(base, call.node)
        written = self.materialize(result, call.node)
        axis = int(region.get("dim") or 0) % len(base_value.type.shape)
        start, _, step = slice(
            region.get("start") or region.get("index"), None, region.get("step") or 1
        ).indices(base_value.type.shape[axis])
        attrs = {"axis": axis, "start": start, "step": step}
        if str(target.target) == "aten.select.int":
            shape = list(base_value.type.shape)
            shape[axis] = 1
            (written,) = call.emit(
                "reshape", [written], [written.type.with_shape(tuple(shape))], {"view": True}, "row"
            )
        (updated,) = call.emit(
            "slice_update", [base_value, written], [base_value.type], attrs, "write"
        )
        self._write(source, updated, call)

    def resolve(self, argument: Any) -> Any:
        """An fx argument with its nodes replaced by what they stand for."""
        if isinstance(argument, list | tuple):
            return [self.resolve(a) for a in argument]
        if isinstance(argument, dict):
            return {k: self.resolve(v) for k, v in argument.items()}
        if hasattr(argument, "all_input_nodes"):
            return self.env[argument]
        return argument

    def argument_nodes(self, node: Any) -> dict[str, Any]:
        """The call's arguments by schema name, as fx holds them."""
        schema = node.target._schema.arguments
        named = {a.name: a.default_value for a in schema if a.has_default_value()}
        named |= {a.name: value for a, value in zip(schema, node.args, strict=False)}
        named |= node.kwargs
        if "input" in named and "self" not in named:
            named["self"] = named["input"]
        return named

    def _arguments(self, node: Any) -> dict[str, Any]:
        return {name: self.resolve(value) for name, value in self.argument_nodes(node).items()}

    def materialize(self, value: Any, node: Any) -> Value:
        """The graph value of a tensor argument; a constant becomes a graph input on first use."""
        if isinstance(value, Value):
            return value
        if not isinstance(value, Constant):
            raise UnknownOperatorError(
                f"operator {node.target} (node {node.name}) takes a {type(value).__name__} where a tensor is "
                f"expected: add that form to its rule in importers/torch_canonical.py"
            )
        if value not in self._materialized:
            data = None if value.recipe is None else Computable(value.recipe)
            data = data if value.content is None else as_numpy(value.content)
            self._materialized[value] = self.builder.add_input(
                f"constant_{len(self._materialized)}", value.type, "constant", data=data
            )
        return self._materialized[value]

    def types_of(self, node: Any) -> list[TensorType]:
        """Types of a call's results."""
        meta = node.meta.get("val")
        return [self.type_of(t, node) for t in flat([meta]) if hasattr(t, "dtype")]

    def type_of(self, tensor: Any, node: Any) -> TensorType:
        """The type of a (meta) tensor, its dtype replaced as the settings say."""
        shape = tuple(tensor.shape)
        if not all(type(n) is int for n in shape):
            unbound = [str(n) for n in shape if type(n) is not int]
            if unbound[0].startswith("u"):
                raise DimensionError(
                    f"the size of {node.name} ({node.target}) in {self.names.module(node) or 'the model'} "
                    f"depends on data: replace it by an operator of a fixed size"
                )
            raise DimensionError(
                f"dim {unbound[0]} of {node.name} is not bound to a number: give it with --dim or --batch"
            )
        dtype = DType.parse(str(tensor.dtype))
        return TensorType(shape, self.settings.dtypes.get(dtype, dtype))

    def layout(self, node: Any) -> Any:
        """A meta tensor with the strides that the node's result has when it runs on a device."""
        return self._layouts.get(node, node.meta["val"])

    def _follow_layout(self, node: Any) -> None:
        """A view of a tensor whose strides were overridden has strides of its own."""
        source = self._layouts.get(node.args[0]) if node.args else None
        if source is None or node in self._layouts:
            return
        if str(node.target).split(".")[1] in _LAYOUT_VIEWS:
            rest = [self.resolve(a) for a in node.args[1:]]
            self._layouts[node] = node.target(source, *rest, **node.kwargs)

    def set_layout(self, node: Any, tensor: Any) -> None:
        """Overrides the strides that tracing assumed."""
        self._layouts[node] = tensor


_LAYOUT_VIEWS = frozenset(
    {
        "view",
        "reshape",
        "transpose",
        "permute",
        "contiguous",
        "unsqueeze",
        "squeeze",
        "flatten",
        "slice",
    }
)
# In-place writes through these reach what they view.
_WRITABLE_VIEWS = frozenset({"aten.slice.Tensor", "aten.select.int", "aten.alias.default"})


def executed_nodes(nodes: Sequence[Any]) -> set[Any]:
    """All nodes but the checks that tracing left behind, and what only they read.

    Eager execution computes a result that nothing reads too.
    """
    executed: set[Any] = set()
    for node in reversed(nodes):
        if str(node.target).startswith("aten._assert") or "sym_constrain" in str(node.target):
            continue
        mutable = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        if node in executed or mutable or not node.users:
            executed.add(node)
            executed.update(node.all_input_nodes)
    return executed


def _nested(like: Any, values: Iterator[Value]) -> Any:
    """Results in the nesting in which the operator returns its tensors."""
    if isinstance(like, tuple | list):
        return [_nested(part, values) for part in like]
    return next(values) if hasattr(like, "dtype") else None


def _attribute(module: Any, path: str) -> Any:
    found = module
    for part in path.split("."):
        found = getattr(found, part)
    return found
