"""Equations: what an operator computes, as an einsum over named dims.

`b s k, n k -> b s n` is a linear layer, `b s (h d) -> b s h d` a reshape (a compound dim is row-major, as
in einops), `n c (y+r) (x+q), k c r q -> n k y x` a convolution (a dim read through a sliding window).
FLOPs, the GEMM shape, the backward equations and the legal shardings all follow from it.

What a reader could get wrong: a dim of size 1 that is broadcast has no name at all; it is the empty
compound `()`, so it can never be sharded or unified with anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from math import prod
from typing import NamedTuple


class Window(NamedTuple):
    """A dim that is read at `output * stride + kernel * dilation - padding`."""

    output: str
    kernel: str


Dim = tuple[str, ...] | Window
"""One dim of a tensor: its factors, major first, or a sliding window."""

Dims = tuple[Dim, ...]
Shape = tuple[int, ...]


class GemmShape(NamedTuple):
    """Sizes of `batch` independent products C[m, n] = A[m, k] B[k, n]."""

    batch: int
    m: int
    n: int
    k: int


class ShardingRule(NamedTuple):
    """Where one name occurs when it is sharded over one mesh axis.

    Each entry is the index of the tensor dim that is split. An operand without the name (None) is whole
    on every device; a result without it (None) is partial: each device holds a term of the reduction (or,
    where the equation has none, statistics of its own part).
    """

    name: str
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]


def factors(dim: Dim) -> tuple[str, ...]:
    """All names that occur in a dim."""
    return (dim.output, dim.kernel) if isinstance(dim, Window) else dim


def names_of(dims: Dims) -> list[str]:
    """All names that occur in a tensor's dims, in order."""
    return [name for dim in dims for name in factors(dim)]


@dataclass(frozen=True)
class Equation:
    """An einsum over named dims, bound to sizes."""

    inputs: tuple[Dims, ...]
    """Dims of each operand."""
    outputs: tuple[Dims, ...]
    """Dims of each result."""
    sizes: Mapping[str, int] = field(compare=False)
    """Size of each name."""
    replicated: frozenset[str] = frozenset()
    """Names that cannot be split over devices: the operator needs all of them at once."""
    reduction: str | None = "sum"
    """How terms of a contracted name combine ('sum', 'max', 'min'), None if they do not."""
    statistics: frozenset[str] = frozenset()
    """Names that the operator takes statistics over (batch norm): splitting them changes the result in
    the way data-parallel training accepts for the batch, so only the batch may be split there."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every name, in order of first occurrence."""
        dims = (*self.inputs, *self.outputs)
        return tuple(dict.fromkeys(name for operand in dims for name in names_of(operand)))

    @cached_property
    def contracted(self) -> tuple[str, ...]:
        """Names that occur in an operand and in no result."""
        kept = {name for dims in self.outputs for name in names_of(dims)}
        return tuple(name for name in self.names if name not in kept)

    @cached_property
    def elements(self) -> int:
        """Size of the iteration space: the product of all names' sizes."""
        return prod(self.sizes[name] for name in self.names)

    @cached_property
    def multiply_add_flops(self) -> int:
        """FLOPs of the equation as a product of its operands, summed over the contracted names.

        One multiply-add is 2 FLOPs; without a contraction only the products count.
        """
        products = max(len(self.inputs) - 1, 0)
        return self.elements * (products + 1 if self.contracted else products)

    @cached_property
    def gemm(self) -> GemmShape | None:
        """The GEMM this equation is, or None if it is not a product of two operands that contracts."""
        if len(self.inputs) != 2 or len(self.outputs) != 1 or not self.contracted:
            return None
        left, right = (set(names_of(dims)) for dims in self.inputs)
        out = set(names_of(self.outputs[0]))
        size = self.sizes
        # A window in the result (a convolution's input gradient) makes every position a sum over the
        # kernel: the kernel's names are contracted there although the result's dims mention them.
        windowed = {d.kernel for d in self.outputs[0] if isinstance(d, Window)}
        groups = {"batch": 1, "m": 1, "n": 1, "k": 1}
        for name in self.names:
            if name in windowed or name not in out:
                groups["k"] *= size[name]
            elif name in left and name in right:
                groups["batch"] *= size[name]
            elif name in left:
                groups["m"] *= size[name]
            elif name in right:
                groups["n"] *= size[name]
        return GemmShape(**groups)

    @property
    def is_matrix_product(self) -> bool:
        """Whether both operands keep names of their own: a matrix engine can then reuse them."""
        if len(self.inputs) != 2 or len(self.outputs) != 1 or not self.contracted:
            return False
        left, right = (set(names_of(dims)) for dims in self.inputs)
        out = set(names_of(self.outputs[0]))
        return bool((left - right) & out) and bool((right - left) & out)

    def rule(self, name: str) -> ShardingRule | None:
        """The sharding of `name` over one mesh axis, or None if it cannot be split.

        A tensor can be split only where the name occurs once in it.
        """
        if name in self.replicated or self.sizes[name] < 2:
            return None
        inputs = tuple([_position(dims, name) for dims in self.inputs])
        outputs = tuple([_position(dims, name) for dims in self.outputs])
        if -1 in inputs or -1 in outputs:
            return None
        if None in outputs and self.reduction is None and name not in self.statistics:
            return None
        return ShardingRule(name, inputs, outputs)

    def gradient(self, index: int) -> Equation:
        """The equation of operand `index`'s gradient: that operand swapped with the result.

        The operands become (result's gradient, the other operands...). Valid for products of operands.
        """
        others = tuple(dims for i, dims in enumerate(self.inputs) if i != index)
        return replace(self, inputs=(self.outputs[0], *others), outputs=(self.inputs[index],))

    def shape_of(self, dims: Dims) -> Shape:
        """Shape of a tensor with these dims. Not defined for windows, whose size the tensor tells."""
        return tuple(prod(self.sizes[name] for name in factors(dim)) for dim in dims)

    def __str__(self) -> str:
        def text(operands: tuple[Dims, ...]) -> str:
            return ", ".join(" ".join(map(_dim_text, dims)) for dims in operands)

        return f"{text(self.inputs)} -> {text(self.outputs)}"


def _position(dims: Dims, name: str) -> int | None:
    """Index of the dim that holds `name`; None if none does, -1 if it cannot be split there."""
    found = None
    for i, dim in enumerate(dims):
        if name in dim:
            if found is not None or isinstance(dim, Window):
                return -1
            found = i
    return found


def _dim_text(dim: Dim) -> str:
    if isinstance(dim, Window):
        return f"({dim.output}+{dim.kernel})"
    if len(dim) == 1:
        return dim[0]
    return f"({' '.join(dim)})" if dim else "1"


_TOKEN = re.compile(r"\(([\w\s+]*)\)|(\.\.\.)|([A-Za-z_]\w*)|1")


@lru_cache(maxsize=4096)
def _parse_operand(text: str) -> tuple[Dim | str, ...]:
    dims: list[Dim | str] = []
    strange = _TOKEN.sub("", text).strip()
    if strange:
        raise ValueError(f"equation operand {text!r} has a strange {strange!r}")
    for match in _TOKEN.finditer(text):
        group, ellipsis, name = match.groups()
        if ellipsis:
            dims.append("...")
        elif name:
            dims.append((name,))
        elif group is None:
            dims.append(())
        elif "+" in group:
            output, kernel = (part.strip() for part in group.split("+"))
            dims.append(Window(output, kernel))
        else:
            dims.append(tuple(group.split()))
    return tuple(dims)


def _ellipsis_rank(operand: Sequence[Dim | str], shape: Shape) -> int:
    return len(shape) - len(operand) + 1 if "..." in operand else 0


def _expand(operand: Sequence[Dim | str], shape: Shape, wide: Shape) -> Dims:
    """Replaces '...' by the names of the broadcast dims, right-aligned; a dim of size 1 gets none."""
    dims: list[Dim] = []
    rank = _ellipsis_rank(operand, shape)
    for dim in operand:
        if not isinstance(dim, str):
            dims.append(dim)
            continue
        start = len(dims)
        for i in range(rank):
            axis = len(wide) - rank + i
            dims.append((f"i{axis}",) if shape[start + i] > 1 else ())
    return tuple(dims)


def bind(
    text: str,
    inputs: Sequence[Shape],
    outputs: Sequence[Shape],
    *,
    replicated: Iterable[str] = (),
    reduction: str | None = "sum",
    sizes: Mapping[str, int] | None = None,
) -> Equation:
    """Reads an equation and binds its names to the sizes of the tensors.

    Args:
        text: e.g. `"b s k, n k -> b s n"`; `...` stands for broadcast dims, right-aligned.
        inputs: shape of each operand.
        outputs: shape of each result.
        replicated: names that cannot be split. A window's two names never can.
        reduction: how contracted terms combine.
        sizes: sizes that the shapes do not tell, of factors of compound dims.

    Raises:
        ValueError: if the shapes do not fit the equation.
    """
    return _bind(
        text,
        tuple(map(tuple, inputs)),
        tuple(map(tuple, outputs)),
        frozenset(replicated),
        reduction,
        tuple(sorted(sizes.items())) if sizes else (),
    )


@lru_cache(maxsize=16384)
def _bind(
    text: str,
    inputs: tuple[Shape, ...],
    outputs: tuple[Shape, ...],
    replicated: frozenset[str],
    reduction: str | None,
    given: tuple[tuple[str, int], ...],
) -> Equation:
    left, arrow, right = text.partition("->")
    if not arrow or "->" in right:
        raise ValueError(f"equation {text!r} needs one '->'")
    operands = [_parse_operand(part) for part in left.split(",")] if left.strip() else []
    results = [_parse_operand(part) for part in right.split(",")]
    shapes = (*inputs, *outputs)
    parsed = (*operands, *results)
    if len(parsed) != len(shapes) or len(operands) != len(inputs):
        raise ValueError(f"equation {text!r} has another number of tensors than {shapes}")
    wide_rank = max((_ellipsis_rank(o, s) for o, s in zip(parsed, shapes, strict=True)), default=0)
    wide = tuple(0 for _ in range(wide_rank))
    dims = [_expand(o, s, wide) for o, s in zip(parsed, shapes, strict=True)]
    sizes = dict(given)
    windows = frozenset(n for d in dims for dim in d if isinstance(dim, Window) for n in dim)
    for operand, shape in zip(dims, shapes, strict=True):
        if len(operand) != len(shape):
            raise ValueError(f"equation {text!r} does not fit shapes {shapes}")
        for dim, size in zip(operand, shape, strict=True):
            if isinstance(dim, Window) or len(dim) != 1:
                continue
            if sizes.setdefault(dim[0], size) != size:
                raise ValueError(f"{dim[0]} is {sizes[dim[0]]} and {size} in {text!r}: {shapes}")
    for operand, shape in zip(dims, shapes, strict=True):
        for dim, size in zip(operand, shape, strict=True):
            if not isinstance(dim, Window) and len(dim) > 1:
                _solve(dim, size, sizes, text)
    return Equation(
        tuple(dims[: len(inputs)]),
        tuple(dims[len(inputs) :]),
        sizes,
        replicated | windows,
        reduction,
    )


def _solve(dim: tuple[str, ...], size: int, sizes: dict[str, int], text: str) -> None:
    """Finds the one unknown factor of a compound dim, and checks the product."""
    unknown = [name for name in dim if name not in sizes]
    known = prod(sizes[name] for name in dim if name in sizes)
    if len(unknown) == 1 and known and size % known == 0:
        sizes[unknown[0]] = size // known
    elif unknown or known != size:
        raise ValueError(f"compound ({' '.join(dim)}) of {text!r} does not fit size {size}")
