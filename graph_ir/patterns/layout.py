"""Where a rearranged tensor's elements lie in the tensor that it was made from.

Each dim is a list of factors (size, stride), outermost first, with strides in elements of the source;
stride 0 repeats. Any chain of reshapes, transposes and expansions is one such layout, so two chains
that put the same elements in the same places are equal, however they were written.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

Factor = tuple[int, int]
Dim = tuple[Factor, ...]
Layout = tuple[Dim, ...]


def contiguous(shape: Sequence[int], order: Sequence[int] | None = None) -> Layout:
    """A tensor stored row by row, or with its dims from outermost to innermost in another order."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order or range(len(shape))):
        strides[axis] = step
        step *= shape[axis]
    return tuple(_dim([(n, s)]) for n, s in zip(shape, strides, strict=True))


def expanded(layout: Layout, shape: Sequence[int]) -> Layout:
    """Dims of size 1, and new leading ones, repeated."""
    lead = len(shape) - len(layout)
    given = ((),) * lead + layout
    return tuple(_dim([(n, 0)]) if size(d) == 1 else d for d, n in zip(given, shape, strict=True))


def reshaped(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The same elements in other dims; None if a dim would begin inside of a factor."""
    left = list(_dim([f for d in layout for f in d]))[::-1]
    dims: list[Dim] = []
    for wanted in shape:
        found: list[Factor] = []
        while wanted > 1:
            if not left:
                return None
            n, stride = left.pop()
            if wanted % n == 0:
                found.append((n, stride))
                wanted //= n
            elif n % wanted == 0:
                found.append((wanted, stride * (n // wanted)))
                left.append((n // wanted, stride))
                wanted = 1
            else:
                return None
        dims.append(_dim(found))
    return None if left else tuple(dims)


def sliced(layout: Layout, steps: Sequence[int], shape: Sequence[int]) -> Layout | None:
    """Every step-th element of each dim; None where a dim has more than one stride."""
    dims: list[Dim] = []
    for d, step, n in zip(layout, steps, shape, strict=True):
        if n == size(d) and step == 1:
            dims.append(d)
        elif len(d) > 1:
            return None
        else:
            dims.append(_dim([(n, d[0][1] * step)]) if d else ())
    return tuple(dims)


def size(dim: Dim) -> int:
    """Elements of a dim."""
    return prod(n for n, _ in dim)


def is_strided(layout: Layout) -> bool:
    """Whether each dim has one stride, as kernels want it."""
    return all(len(d) < 2 for d in layout)


def narrow(dim: Dim, *, leading: bool = False) -> Dim:
    """A dim without what repeats its elements one by one, or (leading) as a whole."""
    found = list(dim)
    while found and found[0 if leading else -1][1] == 0:
        found.pop(0 if leading else -1)
    return tuple(found)


def repeats(layout: Layout) -> bool:
    """Whether an element occurs more than once."""
    return any(stride == 0 for d in layout for _, stride in d)


def shape_of(layout: Layout) -> tuple[int, ...]:
    """Sizes of the dims."""
    return tuple(map(size, layout))


def way_from(
    shape: Sequence[int], layout: Layout
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """How to get a layout from its contiguous source: a shape to cut it to, and a permutation.

    Returns:
        The two, after which a reshape to the layout's sizes is left; None if a layout does not hold
        each element exactly once.
    """
    factors = [f for d in layout for f in d]
    order = sorted(range(len(factors)), key=lambda i: -factors[i][1])
    step = prod(shape)
    for i in order:
        n, stride = factors[i]
        if stride * n != step:
            return None
        step = stride
    if step != 1:
        return None
    return tuple(factors[i][0] for i in order), tuple(order.index(i) for i in range(len(factors)))


def _dim(factors: Sequence[Factor]) -> Dim:
    """Factors without those of size 1, neighbours joined where they have one stride."""
    found: list[Factor] = []
    for n, stride in factors:
        if n == 1:
            continue
        if found and found[-1][1] == n * stride:
            found[-1] = (found[-1][0] * n, stride)
        else:
            found.append((n, stride))
    return tuple(found)
