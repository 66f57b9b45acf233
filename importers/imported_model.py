"""What an importer is asked for and what it hands back.

Both classes are plain data, so that every frontend and the command line agree on one vocabulary
without importing each other's libraries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graph_ir.graph import Graph

MODES = ("inference", "training", "prefill", "decode")
"""What a graph is imported for; generation is one `prefill` import and one `decode` import."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Sizes and switches that turn a model file into a graph whose every shape is an integer."""

    batch: int | None = None
    """Global batch size; None keeps the model's own, or the frontend's default."""

    sequence: int | None = None
    """Tokens per sample; None keeps the model's own, or the frontend's default."""

    dims: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Sizes of named dynamic dims (ONNX `dim_param`), for example {"height": 640}."""

    trip_counts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """How often loops run, by the loop's name, where the data decides it."""

    branches: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Which branch of an If counts ("then" or "else"), by the If's name."""

    values: Mapping[str, Sequence[float]] = field(default_factory=lambda: MappingProxyType({}))
    """Elements of tensors on which shapes depend, row by row, by the tensor's name."""

    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=lambda: MappingProxyType({}))
    """Shapes of inputs by name; they bind all of an input's dynamic dims at once."""

    dtype: str | None = None
    """Name of the dtype that replaces the model's floating-point dtypes, for example "bf16"."""

    mode: str = "inference"
    """One of MODES. `training` matters to frontends whose forward differs then (dropout)."""

    past_tokens: int | None = None
    """With mode `decode`: tokens that the KV cache holds before this step."""

    allow_unknown: bool = False
    """Keep operators without a record as `unknown` nodes (bytes only) in place of an error."""

    keep_program: bool = False
    """Hand out the traced program of a torch model too, to run it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedModel:
    """One imported model: its operator graph and where it came from."""

    graph: Graph
    """The forward graph, every shape an integer."""

    name: str
    """Short name for titles: the file's stem, the configuration's name, the class's name."""

    source: str
    """What the user asked for: a path, `hf:NAME`, `package.module:factory`."""

    sha256: str
    """Hash of the model file (without the elements of its large tensors) or configuration, hexadecimal;
    for live modules of their printed structure."""

    importer: str
    """Frontend and route with versions, for example "onnx 1.19, opset 17" or "torch.export
    2.13.0"."""

    notes: tuple[str, ...] = ()
    """What a reader of the report should know, one sentence each (absent external data, bound
    dims)."""

    dims: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Dynamic dims by name with the sizes that they were bound to."""

    batch: int | None = None
    """Global batch size of `graph`, where the importer can tell it."""

    sequence: int | None = None
    """Tokens per sample of `graph`, where the importer can tell it."""

    made: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """For each operator of the model, the names of the nodes of `graph` that it became. A traced
    operator goes by its name in the program, one of an ONNX file by its first result's."""

    program: Any = field(default=None, repr=False)
    """With `keep_program`, the torch.export.ExportedProgram (or what stands for one) of `graph`."""
