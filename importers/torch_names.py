"""Names and module paths of exported nodes, so that users find their layers in the report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from graph_ir.op_def import OpDef

# Operators that are what a module is for; others in it are named after what they do.
_MAIN_KINDS = frozenset({"contraction", "attention", "normalization", "gather"})


class NodeNames:
    """Derives node names from the module stack that torch.export records."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._leaves: set[str] = set()

    def learn(self, nodes: Iterable[Any]) -> None:
        """Finds the leaf modules: those that no other called module lies in."""
        paths = {self.module(node) for node in nodes}
        inner = {path[:i] for path in paths for i in range(len(path)) if path[i] == "."}
        self._leaves |= paths - inner - {""}

    def module(self, node: Any) -> str:
        """Dotted path of the module that a node was traced in, '' at the top level."""
        stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
        if not stack:
            return ""
        path = str(next(reversed(stack.values()))[0])
        path = path.split("@", 1)[0].removeprefix("L['self'].")
        return self.strip(path)

    def strip(self, path: str) -> str:
        """A path or parameter name without the wrapper that opbound itself put around the model."""
        if not self._prefix:
            return path
        return "" if path == self._prefix else path.removeprefix(f"{self._prefix}.")

    def node_name(self, node: Any, record: OpDef, op: str, suffix: str = "") -> str:
        """The module's path for its main operator, else the path and what the operator does."""
        path = self.module(node)
        if suffix:
            return f"{path}.{suffix}" if path else suffix
        if path in self._leaves and (record.kind in _MAIN_KINDS or _is_builtin(node)):
            return path
        return f"{path}.{op}" if path else op


def _is_builtin(node: Any) -> bool:
    """Whether the innermost module is one of torch's own layers (an activation, a dropout)."""
    stack = node.meta.get("nn_module_stack")
    return bool(stack) and str(next(reversed(stack.values()))[1]).startswith("torch.nn.")
