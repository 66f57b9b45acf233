"""Tensors that stay on disk, to be read where their numbers matter: a mask that is stored as a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from importers.onnx_external import external_entry
from importers.onnx_values import OnnxValue, dtype_of, numpy_dtype
from importers.onnx_wire import OFFSET_KEY

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A tensor's place in a file; numpy takes it for an array, of which only what is indexed is read."""

    path: Path
    offset: int
    stored: np.dtype[Any]
    """How its elements are stored."""
    dtype: np.dtype[Any]
    """What they are taken for."""
    shape: tuple[int, ...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The elements, mapped into memory.

        Raises:
            OSError: the file is gone.
        """
        mapped = np.memmap(self.path, self.stored, "r", self.offset, self.shape)
        wanted = self.dtype if dtype is None else np.dtype(dtype)
        return mapped if wanted == self.stored and not copy else mapped.astype(wanted)


def table_of(value: OnnxValue, model: Path) -> Any:
    """What tells a weight's elements without having read them; None if nothing does.

    Args:
        value: of the model.
        model: path of its file.
    """
    tensor = value.stored
    if tensor is None or isinstance(tensor, np.ndarray):
        return tensor
    stored, dtype = numpy_dtype(dtype_of(tensor.data_type)), numpy_dtype(value.dtype)
    offset = external_entry(tensor, OFFSET_KEY)
    path = model
    if offset is None:
        location = external_entry(tensor, "location")
        if location is None:
            return None
        path, offset = model.parent / location, external_entry(tensor, "offset") or "0"
    if stored is None or dtype is None or not offset.isdecimal():
        return None
    if _size_bytes(path) < int(offset) + stored.itemsize * value.type.elements:
        return None
    return StoredTable(path, int(offset), stored, dtype, value.shape)


@lru_cache(maxsize=64)
def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
