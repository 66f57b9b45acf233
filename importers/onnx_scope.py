"""The names that are visible while an ONNX graph or function body is resolved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from importers.onnx_values import OnnxValue, tensor_value

if TYPE_CHECKING:
    from onnx import TensorProto, ValueInfoProto


def canonical_domain(domain: str) -> str:
    """The standard operator domain has two spellings; this is the short one."""
    return "" if domain == "ai.onnx" else domain


@dataclass(eq=False)
class Scope:
    """The names of one graph or function body; outer names are visible from inside a subgraph."""

    opsets: Mapping[str, int]
    parent: Scope | None = None
    prefix: str = ""
    """Goes before node names: the calls and branches around them."""
    module: str = ""
    depth: int = 0
    values: dict[str, OnnxValue] = field(default_factory=dict)
    pending: dict[str, TensorProto] = field(default_factory=dict)
    """Initializers that nothing has read yet."""
    declared: dict[str, ValueInfoProto] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)

    def lookup(self, name: str) -> OnnxValue | None:
        """The value of that name, in this scope or around it."""
        found = self.values.get(name)
        if found is not None:
            return found
        tensor = self.pending.get(name)
        if tensor is not None:
            self.values[name] = tensor_value(tensor, name, f"initializer {name!r}")
            return self.values[name]
        return self.parent.lookup(name) if self.parent else None

    def names(self) -> set[str]:
        """Every name that is visible."""
        own = {*self.values, *self.pending}
        return own | self.parent.names() if self.parent else own
