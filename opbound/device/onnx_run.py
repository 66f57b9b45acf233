"""Runs an ONNX file in onnxruntime, node by node as the file has them, and reads its profile."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from graph_ir.errors import OpboundError
from opbound.device.stopwatch import HostClock, typical, typical_s
from opbound.device.target import Target
from opbound.device.torch_run import Measured

_MARK = "opbound::"
_KERNEL = "_kernel_time"
# Element types as onnxruntime names them -> numpy's.
_TYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")},
    "bool": "bool",
}


def run_onnx(
    path: Path, shapes: Mapping[str, tuple[int, ...]], target: Target, *, repeats: int
) -> Measured:
    """Runs a file with random inputs.

    The session does not optimise, because a node that was fused away could not be compared; names
    are set to the first result's before, because names in files need not be unique.

    Args:
        path: of the file; weights in further files are found beside it.
        shapes: of each input.
        target: the device, a CPU.
        repeats: profiled runs.

    Raises:
        OpboundError: if onnxruntime is missing or cannot run the file, or the device is no CPU.
    """
    if target.is_cuda:
        raise OpboundError(
            "onnxruntime's profile has no times of a GPU's kernels: measure ONNX files on "
            "--device cpu, and the model as a torch module on a GPU"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise OpboundError(
            "running ONNX files needs onnxruntime: pip install onnxruntime"
        ) from error
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    for node in model.graph.node:
        node.name = _MARK + next((name for name in node.output if name), "")
    data = model.SerializeToString()
    del model
    with tempfile.TemporaryDirectory() as folder:
        try:
            plain = _session(onnxruntime, data, path, target, None)
            feed = _feed(plain, shapes, path)
            whole_s = typical_s(
                HostClock(), partial(plain.run, None, feed), budget_s=2.0, samples=repeats
            )
            session = _session(onnxruntime, data, path, target, str(Path(folder) / "profile"))
            for _ in range(repeats + 1):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except OpboundError:
            raise
        except Exception as error:  # onnxruntime raises classes of its own, without a common base
            line = " ".join(str(error).split())[:300]
            raise OpboundError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot run it: {line}"
            ) from error
    return Measured(node_times(events), {}, whole_s)


def node_times(events: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds by first result's name: over all runs but the first.

    Args:
        events: of onnxruntime's profile; durations are in microseconds.
    """
    found: dict[str, list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.startswith(_MARK) and name.endswith(_KERNEL):
            key = name.removeprefix(_MARK).removesuffix(_KERNEL)
            found.setdefault(key, []).append(float(event["dur"]) / 1e6)
    # The first run allocates memory and packs weights.
    return {name: typical(times[1:] or times) for name, times in found.items()}


def _session(ort: Any, data: bytes, path: Path, target: Target, profile: str | None) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.resolve().parent)
    )
    options.intra_op_num_threads = target.processors
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _feed(session: Any, shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, Any]:
    """Random floats, and ones for everything else: a valid index, and a mask that hides nothing."""
    import numpy as np

    generator = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for entry in session.get_inputs():
        kind = _TYPES.get(entry.type.removeprefix("tensor(").removesuffix(")"))
        shape = shapes.get(entry.name, tuple(entry.shape))
        if kind is None or not all(isinstance(size, int) for size in shape):
            raise OpboundError(
                f"{path}: input {entry.name!r} ({entry.type}, {entry.shape}) cannot be made up: "
                "give its dims with --dim NAME=INT"
            )
        made = generator.standard_normal(shape) if "float" in kind else np.ones(shape)
        feed[entry.name] = made.astype(kind)
    return feed
