"""The equation of a reshape: which factors of the old dims make up which new dims."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from math import prod

from graph_ir.equation import Dim, Equation, Shape


@lru_cache(maxsize=8192)
def reshape_equation(old: Shape, new: Shape) -> Equation:
    """Finds the common factors of two shapes with the same number of elements.

    Both shapes are cut where their row-major strides agree; within such a group the dims are refined to
    common factors: (4, 6) -> (8, 3) is `a (b c) -> (a b) c`. Where the strides do not divide each other
    ((2, 3) -> (3, 2)) no factor is common, and the group's names need replication.

    Raises:
        ValueError: if the shapes have different numbers of elements.
    """
    if prod(old) != prod(new):
        raise ValueError(f"cannot reshape {old} to {new}")
    old_dims: list[Dim] = [()] * len(old)
    new_dims: list[Dim] = [()] * len(new)
    sizes: dict[str, int] = {}
    replicated: set[str] = set()
    for group_old, group_new in _groups(old, new):
        strides_old, strides_new = _strides(old, group_old), _strides(new, group_new)
        cuts = sorted({*strides_old, *strides_new}, reverse=True)
        total = prod(old[i] for i in group_old)
        bounds = [total, *cuts]
        if all(a % b == 0 for a, b in pairwise(bounds)):
            names = {}
            for high, low in pairwise(bounds):
                names[low] = f"a{len(sizes)}"
                sizes[names[low]] = high // low
            _assign(old_dims, group_old, strides_old, total, names)
            _assign(new_dims, group_new, strides_new, total, names)
            continue
        for dims, shape, group in ((old_dims, old, group_old), (new_dims, new, group_new)):
            for i in group:
                name = f"a{len(sizes)}"
                sizes[name] = shape[i]
                replicated.add(name)
                dims[i] = (name,)
    return Equation((tuple(old_dims),), (tuple(new_dims),), sizes, frozenset(replicated), None)


def _groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Minimal runs of dims (without those of size 1) with equal products, left to right."""
    left = [i for i, n in enumerate(old) if n != 1]
    right = [i for i, n in enumerate(new) if n != 1]
    if 0 in old:
        return []
    groups = []
    i = j = 0
    while i < len(left):
        a, b = [left[i]], [right[j]]
        product_a, product_b = old[left[i]], new[right[j]]
        while product_a != product_b:
            if product_a < product_b:
                i += 1
                a.append(left[i])
                product_a *= old[left[i]]
            else:
                j += 1
                b.append(right[j])
                product_b *= new[right[j]]
        groups.append((a, b))
        i, j = i + 1, j + 1
    return groups


def _strides(shape: Shape, group: list[int]) -> list[int]:
    """Row-major stride of each dim within its group."""
    return [prod(shape[k] for k in group[i + 1 :]) for i in range(len(group))]


def _assign(
    dims: list[Dim], group: list[int], strides: list[int], total: int, names: dict[int, str]
) -> None:
    """Gives each dim the factors between its own stride and its left neighbour's."""
    high = total
    for i, low in zip(group, strides, strict=True):
        dims[i] = tuple(names[cut] for cut in sorted(names, reverse=True) if low <= cut < high)
        high = low
