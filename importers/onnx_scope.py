"""The names that are visible while an ONNX graph or function body is resolved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
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
    place: str = ""
    """Like `prefix`, but the same for all trips of a loop."""
    pool: dict[tuple[str, str], OnnxValue] = field(default_factory=dict)
    """Weights by place and name: a loop's trips share theirs. All scopes of a model have one pool."""
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
            make = partial(tensor_value, tensor, name, f"initializer {name!r}")
            self.values[name] = self.shared(name, make)
            return self.values[name]
        return self.parent.lookup(name) if self.parent else None

    def shared(self, name: str, make: Callable[[], OnnxValue]) -> OnnxValue:
        """The weight of that name which an earlier trip of a loop made, else a new one."""
        key = (self.place, name)
        found = self.pool.get(key)
        if found is None:
            found = self.pool[key] = make()
        return found

    def names(self) -> set[str]:
        """Every name that is visible."""
        own = {*self.values, *self.pending}
        return own | self.parent.names() if self.parent else own
