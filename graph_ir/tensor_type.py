"""Types of tensors: a dtype and a shape whose dims are all known integers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from math import prod

from graph_ir.errors import OpboundError, did_you_mean


class DType(Enum):
    """An element type: its name, its size in bits, and its kind ('float', 'int', 'bool')."""

    FLOAT64 = ("float64", 64, "float")
    FLOAT32 = ("float32", 32, "float")
    FLOAT16 = ("float16", 16, "float")
    BFLOAT16 = ("bfloat16", 16, "float")
    FLOAT8_E4M3 = ("float8_e4m3", 8, "float")
    FLOAT8_E5M2 = ("float8_e5m2", 8, "float")
    FLOAT8_E8M0 = ("float8_e8m0", 8, "float")
    FLOAT4_E2M1 = ("float4_e2m1", 4, "float")
    COMPLEX64 = ("complex64", 64, "complex")
    COMPLEX128 = ("complex128", 128, "complex")
    INT64 = ("int64", 64, "int")
    INT32 = ("int32", 32, "int")
    INT16 = ("int16", 16, "int")
    INT8 = ("int8", 8, "int")
    INT4 = ("int4", 4, "int")
    INT2 = ("int2", 2, "int")
    UINT64 = ("uint64", 64, "int")
    UINT32 = ("uint32", 32, "int")
    UINT16 = ("uint16", 16, "int")
    UINT8 = ("uint8", 8, "int")
    UINT4 = ("uint4", 4, "int")
    UINT2 = ("uint2", 2, "int")
    BOOL = ("bool", 8, "bool")
    STRING = ("string", 64, "string")

    def __init__(self, label: str, bits: int, kind: str) -> None:
        self.label = label
        self.bits = bits
        self.kind = kind

    @property
    def is_float(self) -> bool:
        """Whether gradients can flow through values of this type."""
        return self.kind in ("float", "complex")

    def __str__(self) -> str:
        return self.label

    @classmethod
    def parse(cls, text: str) -> DType:
        """Reads a dtype name as people write it: 'bf16', 'float16', 'half', 'torch.int8'.

        Raises:
            OpboundError: if the name is not known.
        """
        name = text.strip().lower().removeprefix("torch.")
        found = _BY_NAME.get(name)
        if found is None:
            raise OpboundError(f"unknown dtype {text!r}; {did_you_mean(name, _BY_NAME)}")
        return found


_ALIASES = {
    "fp64": "float64",
    "double": "float64",
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp8": "float8_e4m3",
    "float8_e4m3fn": "float8_e4m3",
    "float8_e4m3fnuz": "float8_e4m3",
    "float8_e5m2fnuz": "float8_e5m2",
    "float8e4m3fn": "float8_e4m3",
    "float8e4m3fnuz": "float8_e4m3",
    "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2",
    "float8_e8m0fnu": "float8_e8m0",
    "float8e8m0": "float8_e8m0",
    "fp4": "float4_e2m1",
    "float4e2m1": "float4_e2m1",
    "long": "int64",
    "int": "int32",
    "short": "int16",
}
_BY_NAME = {dtype.label: dtype for dtype in DType}
_BY_NAME.update({alias: _BY_NAME[label] for alias, label in _ALIASES.items()})


@dataclass(frozen=True)
class TensorType:
    """Shape and element type of a tensor. `shape` is a tuple of non-negative integers."""

    shape: tuple[int, ...]
    dtype: DType

    @cached_property
    def elements(self) -> int:
        """Number of elements (1 for a scalar)."""
        return prod(self.shape)

    @cached_property
    def bytes(self) -> int:
        """Size in bytes, sub-byte types packed and rounded up to a whole byte."""
        return (self.elements * self.dtype.bits + 7) // 8

    def with_shape(self, shape: tuple[int, ...]) -> TensorType:
        """The same dtype with another shape."""
        return TensorType(tuple(shape), self.dtype)

    def with_dtype(self, dtype: DType) -> TensorType:
        """The same shape with another dtype."""
        return TensorType(self.shape, dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"
