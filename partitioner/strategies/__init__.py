"""Strategies, one per file. Each module of this package that splits logical axes offers `PASS`.

Adding a strategy means adding a file here; `split_passes` finds it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from graph_ir.graph import Graph
from partitioner.strategy import Strategy


@dataclass(frozen=True)
class Pass:
    """A strategy: a rewrite of a graph into the graph of one rank."""

    name: str
    order: int
    """Passes run in ascending order; splits of parameters come before what stores their parts."""
    apply: Callable[[Graph, Strategy], Graph]
    """Returns the graph unchanged if the strategy does not ask for this pass."""
    axis: str | None = None
    """The mesh axis that users may name because of this pass; None for those of the built-in ones."""


@lru_cache(maxsize=1)
def split_passes() -> tuple[Pass, ...]:
    """All strategies in the order they are applied."""
    found = []
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if isinstance(getattr(module, "PASS", None), Pass):
            found.append(module.PASS)
    return tuple(sorted(found, key=lambda p: p.order))
