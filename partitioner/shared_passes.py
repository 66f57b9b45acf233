"""What strategies have in common is done once: the passes in which they do not differ.

A pass sees a graph and a strategy. Which of the strategy's fields and mesh axes it looks at is noted while
it runs; another strategy that has the same there gets the same result. No pass has to say what it depends
on, so none can forget it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import fields
from typing import Any

from graph_ir.graph import Graph
from partitioner.mesh import Mesh, MeshAxis
from partitioner.strategies import Pass
from partitioner.strategy import Strategy

KEPT = 256
"""Results that are kept, the last ones used: some hundred operators each."""

_Seen = dict[tuple[str, str], object]
"""("field" or "axis", its name) -> what a pass saw there."""


class SharedPasses:
    """Runs passes for one strategy after the other."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, Graph], list[tuple[_Seen, Graph]]] = OrderedDict()

    def apply(self, step: Pass, graph: Graph, strategy: Strategy) -> Graph:
        """What the pass makes of the graph.

        Raises:
            MeshError: if the pass does.
        """
        key = (step.name, graph)
        known = self._known.setdefault(key, [])
        self._known.move_to_end(key)
        for noted, result in known:
            if all(_look(strategy, *place) == found for place, found in noted.items()):
                return result
        seen: _Seen = {}
        result = step.apply(graph, _Watched.of(strategy, seen))
        known.append((seen, result))
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return result


def _look(strategy: Strategy, kind: str, name: str) -> object:
    return strategy.mesh.axis(name) if kind == "axis" else getattr(strategy, name)


class _Watched(Strategy):
    """A strategy that notes what is read of it."""

    @staticmethod
    def of(strategy: Strategy, seen: _Seen) -> _Watched:
        watched = object.__new__(_Watched)
        mesh = object.__new__(_WatchedMesh)
        vars(watched).update(vars(strategy), mesh=mesh, seen=seen)
        vars(mesh).update(whole=strategy.mesh, seen=seen)
        return watched

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        seen = object.__getattribute__(self, "__dict__").get("seen")
        if name in _FIELDS and seen is not None:
            seen["field", name] = found
        return found


_FIELDS = frozenset(f.name for f in fields(Strategy)) - {"mesh"}


class _WatchedMesh(Mesh):
    """A mesh that notes which of its axes are asked for; who looks at all of them sees the mesh."""

    whole: Mesh
    seen: _Seen

    def axis(self, name: str) -> MeshAxis:
        found = self.seen["axis", name] = self.whole.axis(name)
        return found

    def __getattribute__(self, name: str) -> Any:
        if name not in ("sizes", "order"):
            return object.__getattribute__(self, name)
        self.seen["field", "mesh"] = self.whole
        return getattr(self.whole, name)
