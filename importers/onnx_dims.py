"""Binds the dynamic dims of an ONNX model's inputs to sizes.

A dim without a value has a name (`dim_param`) or none; the n-th dim of input X without a name is
called `X.n` here. Some exporters write arithmetic ("past_sequence_length + 1") where a name
belongs; it is evaluated once its parts are bound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from graph_ir.errors import DimensionError, ModelFileError, did_you_mean
from graph_ir.tensor_type import TensorType
from importers.onnx_answers import INPUT, Answers
from importers.onnx_arithmetic import evaluated
from importers.onnx_values import OnnxValue, checked_shape, dtype_of

if TYPE_CHECKING:
    from onnx import GraphProto, ValueInfoProto

    from importers.imported_model import ImportOptions

_SEQUENCE = re.compile(
    r"(?<![a-z])(seq|tokens?|sequence|seqlen|length|len)(?![a-z])|seq_?len", re.I
)
_NOT_SEQUENCE = re.compile(r"past|cache|total|kv|page|block|memory|num_seq", re.I)
_TOTAL = re.compile(r"total|past_?(and|plus)|attention_mask", re.I)
_PAST = re.compile(r"past|cache", re.I)
_ARITHMETIC = re.compile(r"[-+*/()]")
_BATCH = re.compile(r"batch|^b$|^bs$|^n$|^bsz$", re.I)


class DimBinder:
    """Knows every dynamic dim by name, and which of them the user has bound."""

    def __init__(self, options: ImportOptions) -> None:
        self.options = options
        self.answers = Answers(options)
        self.bound: dict[str, int] = {}
        """Sizes of the dims that were needed so far."""
        self._given = dict(options.dims)
        self._known: set[str] = set()
        self._leading: set[str] = set()
        self.static_batch: tuple[int, int] | None = None
        """(the file's fixed batch, the one asked for) if a static batch is being replaced."""

    def inputs(self, graph: GraphProto) -> list[OnnxValue]:
        """The graph's true inputs (initializers may be listed as inputs too) with every dim bound.

        Raises:
            DimensionError: a dim is unbound, or an option names no dim of this model.
        """
        weights = {t.name for t in graph.initializer}
        infos = [i for i in graph.input if i.name not in weights]
        raw = [(info, self._raw_dims(info)) for info in infos]
        for info, dims in raw:
            self._bind_shape(info.name, dims)
        self._known |= {d for _, dims in raw for d in dims if isinstance(d, str)}
        self._leading = {d for _, dims in raw for d in dims[:1] if isinstance(d, str)}
        self._check_given()
        self._bind_by_role([(i, d) for i, d in raw])
        self._check_bound(raw)
        values = []
        for info, dims in raw:
            where = f"input {info.name!r}"
            sizes = [d if isinstance(d, int) else self.size_of(d, where) for d in dims]
            element_type = _tensor_type(info).elem_type
            type_ = TensorType(checked_shape(sizes, where), dtype_of(element_type))
            names = tuple(self._meaning(d, n) for n, d in enumerate(dims))
            in_file = None
            if self.static_batch is not None and names[:1] == ("batch",):
                in_file = type_.with_shape((self.static_batch[0], *type_.shape[1:]))
            data = self.answers.contents(type_, info.name)
            values.append(OnnxValue(info.name, type_, "input", data, names, in_file))
        return values

    def _check_bound(self, raw: list[tuple[ValueInfoProto, list[int | str]]]) -> None:
        """Raises a DimensionError that names every option that is still needed."""
        missing: dict[str, str] = {}
        for info, dims in raw:
            for dim in dims:
                if isinstance(dim, str) and self.lookup(dim) is None:
                    missing.setdefault(dim, f"input {info.name!r}")
        if len(missing) > 1:
            (first, where), *others = missing.items()
            more = [f"--dim '{name}=INT'" for name, _ in others[:_MAX_LISTED]]
            rest = f" and {len(others) - _MAX_LISTED} more" if len(others) > _MAX_LISTED else ""
            raise DimensionError(
                f"dim {first!r} of {where} is not fixed in the file: give {self._option_for(first)}; "
                f"also missing: {', '.join(more)}{rest}"
            )

    def size_of(self, name: str, where: str) -> int:
        """The size of the dim called `name`.

        Raises:
            DimensionError: it is unbound.
        """
        size = self.lookup(name)
        if size is None:
            option = self._option_for(name)
            raise DimensionError(f"dim {name!r} of {where} is not fixed in the file: give {option}")
        return size

    def lookup(self, name: str) -> int | None:
        """The size of the dim called `name` (which may be an expression of others), or None."""
        self._known.add(name)
        size = self._given.get(name, self.bound.get(name))
        if size is None and not name.isidentifier():
            size = evaluated(name, {**self.bound, **self._given})
        if size is not None:
            self.bound[name] = size
        return size

    def all_of(self, name: str) -> list[int] | None:
        """The sizes that the user gives for NAME.0, NAME.1, ..., or None if there are none."""
        found: list[int] = []
        while (size := self._given.get(f"{name}.{len(found)}")) is not None:
            self._known.add(f"{name}.{len(found)}")
            found.append(size)
        return found or None

    def check_all_used(self) -> None:
        """Raises a DimensionError if an option named a dim that the model does not have."""
        unused = sorted(set(self._given) - self._known)
        if unused:
            raise DimensionError(_no_such_dim(unused[0], self._known))

    def _check_given(self) -> None:
        # Names with a dot may belong to data-dependent dims, which are met later.
        for name in self._given:
            if name not in self._known and "." not in name:
                raise DimensionError(_no_such_dim(name, self._known))

    def _bind_shape(self, name: str, dims: list[int | str]) -> None:
        """Gives the sizes of --input to the dims of an input.

        Raises:
            DimensionError: they contradict the file or another option.
        """
        shape = self.answers.input_shape(name)
        if shape is None:
            return
        if len(shape) != len(dims):
            raise DimensionError(
                f"{INPUT} {name}: {len(shape)} sizes are given, but it has {len(dims)} dims"
            )
        for dim, size in zip(dims, shape, strict=True):
            known = self._given.setdefault(dim, size) if isinstance(dim, str) else dim
            if known != size:
                raise DimensionError(
                    f"{INPUT} {name}: a dim of {size} is given where {dim!r} is {known}"
                )

    def _raw_dims(self, info: ValueInfoProto) -> list[int | str]:
        tensor = _tensor_type(info)
        if not tensor.HasField("shape"):
            given = self.answers.input_shape(info.name) or self.all_of(info.name)
            if given is not None:
                return [f"{info.name}.{n}" for n in range(len(given))]
            raise DimensionError(
                f"input {info.name!r} has no shape in the file: give {INPUT} '{info.name}=SHAPE', "
                "for example 1x3x224x224"
            )
        dims: list[int | str] = []
        for n, dim in enumerate(tensor.shape.dim):
            kind = dim.WhichOneof("value")
            if kind == "dim_value" and dim.dim_value >= 0:
                dims.append(dim.dim_value)
            elif kind == "dim_value" and dim.dim_value != -1:
                raise ModelFileError(f"input {info.name!r} has a dim of {dim.dim_value}")
            else:
                dims.append((kind == "dim_param" and dim.dim_param) or f"{info.name}.{n}")
        return dims

    def _bind_by_role(self, raw: list[tuple[ValueInfoProto, list[int | str]]]) -> None:
        """Gives the sizes of --batch and --sequence to the dims that they mean."""
        options = self.options
        batch_dims = [
            d
            for _, dims in raw
            for n, d in enumerate(dims)
            if isinstance(d, str) and _is_batch(d, n)
        ]
        if not batch_dims:
            # Exporters also invent names (s77, dim0): the leading dim of the first input is meant.
            leading = next((d for _, dims in raw if len(dims) >= 2 for d in dims[:1]), None)
            if isinstance(leading, str) and not _is_sequence(leading):
                batch_dims = [leading]
        if options.batch is not None:
            for name in batch_dims:
                self.bound.setdefault(name, options.batch)
            if not batch_dims:
                self._replace_static_batch(raw, options.batch)
        names = dict.fromkeys(
            d for _, dims in raw for d in dims if isinstance(d, str) and not _ARITHMETIC.search(d)
        )
        sequence_dims = [d for d in names if d not in batch_dims and _is_sequence(d)]
        past = [d for d in names if _PAST.search(d) and not _TOTAL.search(d)]
        if options.mode in ("prefill", "decode"):
            lacking = [
                what
                for what, found in (
                    ("dynamic sequence dim", sequence_dims or options.mode == "decode"),
                    ("KV cache (past_key_values)", past),
                )
                if not found
            ]
            if lacking:
                raise DimensionError(
                    "--mode generation does not apply: the model's inputs have no "
                    f"{' and no '.join(lacking)}; use --mode inference, or export the model with them "
                    f"({_listed(names)})"
                )
        if options.sequence is not None:
            if not sequence_dims and options.mode != "decode":
                raise DimensionError(
                    "--sequence does not apply: no input has a dynamic sequence dim "
                    f"({_listed(names)})"
                )
            for name in sequence_dims:
                self.bound.setdefault(name, options.sequence)
        if options.past_tokens is not None:
            for name in past:
                self.bound.setdefault(name, options.past_tokens)
        for name in names:
            if _TOTAL.search(name) and name not in self._given and name.isidentifier():
                parts = [self.bound.get(d, self._given.get(d)) for d in (sequence_dims + past)[:2]]
                if len(parts) == 2 and None not in parts:
                    self.bound.setdefault(name, sum(p for p in parts if p is not None))

    def _replace_static_batch(
        self, raw: list[tuple[ValueInfoProto, list[int | str]]], batch: int
    ) -> None:
        """Puts the asked batch in place of a batch that is fixed in the file."""
        leading = [dims for _, dims in raw if len(dims) >= 2]
        if not leading or not isinstance(leading[0][0], int):
            raise DimensionError("--batch does not apply: no input of this model has a batch dim")
        fixed = leading[0][0]
        if fixed == batch or fixed == 0:
            return
        for dims in leading:
            if dims[0] == fixed:
                dims[0] = batch
        self.static_batch = (fixed, batch)

    def _meaning(self, dim: int | str, position: int) -> str | None:
        if isinstance(dim, str):
            if _is_batch(dim, position):
                return "batch"
            return "sequence" if _is_sequence(dim) else dim
        replaced = self.static_batch is not None and position == 0 and dim == self.static_batch[1]
        return "batch" if replaced else None

    def _option_for(self, name: str) -> str:
        if _is_batch(name, 0 if name in self._leading else -1):
            return f"--batch INT or --dim '{name}=INT'"
        if _is_sequence(name):
            return f"--sequence INT or --dim '{name}=INT'"
        return f"--dim '{name}=INT'"


def _tensor_type(info: ValueInfoProto):  # type: ignore[no-untyped-def]
    """The tensor type of an input; optional and sequence inputs are looked into."""
    type_ = info.type
    while type_.WhichOneof("value") in ("optional_type", "sequence_type"):
        kind = type_.WhichOneof("value")
        type_ = getattr(type_, kind).elem_type
    if type_.WhichOneof("value") not in ("tensor_type", "sparse_tensor_type"):
        raise ModelFileError(f"input {info.name!r} is no tensor: such models cannot be analysed")
    return getattr(type_, type_.WhichOneof("value"))


def _is_batch(name: str, position: int) -> bool:
    if _BATCH.search(name):
        return not re.search(r"plus|\+|cumulative", name)
    # A nameless first dim is taken for the batch; a named one must say so.
    return position == 0 and re.fullmatch(r".*\.0|None|unk__\d+|\?", name) is not None


def _is_sequence(name: str) -> bool:
    return bool(_SEQUENCE.search(name)) and not _NOT_SEQUENCE.search(name)


def _listed(names: Mapping[str, None] | set[str]) -> str:
    return f"dynamic dims: {', '.join(sorted(names))}" if names else "it has no dynamic dims"


def _no_such_dim(name: str, known: set[str]) -> str:
    hint = did_you_mean(name, known) if known else "the model has no dynamic dims"
    return f"--dim {name}: the model has no dim of that name; {hint}"


_MAX_LISTED = 8
