"""Published measurements, row by row, through the whole program: what `opbound validate` runs.

Every row is an analysis as a user would ask for it: configuration, traced graph, partition, cost.
The figures under `published/` were read from the papers and pages that each table's source names.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from opbound.analysis import Analysis
from opbound.options import Options
from reports.validation import ValidationRow, ValidationTable

if TYPE_CHECKING:
    from importers import ImportedModel
    from reports import Report

Progress = Callable[[str], None]
Rows = Iterator[ValidationRow]

_A100 = "a100-sxm-80gb"
_DEVICES = {"A100-80GB-SXM4": _A100, "H100-80GB-HBM3": "h100-sxm-80gb"}
_KORTHIKANTI = "Korthikanti et al. 2022, arXiv 2205.05198"
_NARAYANAN = "Narayanan et al. 2021, arXiv 2104.04473"
_SDP4BIT = "Jia et al. 2024 (SDP4Bit), arXiv 2410.15526"
_SEQUENCE = 2048
_VOCABULARY = 51200


def published_tables(
    progress: Progress = lambda _: None, only: Sequence[str] = ()
) -> Iterator[ValidationTable]:
    """Each published table with opbound's predictions, one after the other.

    Args:
        progress: is told which row is being analysed.
        only: parts of tables' names; without any, all tables.
    """
    session = _Session(progress)
    for name, source, rows in (
        (
            "training steps",
            f"{_KORTHIKANTI}, tables 3 and 5: seconds per step, A100-80GB; pointwise execution, as "
            "Megatron-LM's own kernels fuse",
            _korthikanti_steps,
        ),
        (
            "one layer of a 22B model",
            f"{_KORTHIKANTI}, table 4: seconds of one layer's pass, tp=8, micro-batch 4",
            _korthikanti_layer,
        ),
        (
            "weak scaling of training",
            f"{_NARAYANAN}, table 1: seconds per step from the FLOP/s that it prints, full "
            "recomputation; communication hides behind nothing, as in Megatron-LM until then. It "
            "does not print the micro-batch: 4 is assumed without a pipeline (half of its batch per "
            "replica fits) and 1 with one, as in its table 2; no interleaving",
            _narayanan_scaling,
        ),
        (
            "pipeline and tensor parallelism",
            f"{_NARAYANAN}, table 2, the rows with pipeline and tensor parallelism: seconds per step "
            "from the FLOP/s that it prints, tp=8 assumed, micro-batch 1, full recomputation, no overlap",
            _narayanan_pipelines,
        ),
        (
            "ZeRO-3 without model parallelism",
            f"{_NARAYANAN}, table 2, the rows with DeepSpeed's ZeRO-3 of early 2021: seconds per step from "
            "the FLOP/s that it prints, full recomputation, no overlap. Beyond computing they take 30 to "
            "150 s, what the links need is 7 to 20 s: that implementation is not modelled",
            _narayanan_zero3,
        ),
        (
            "sharded data parallelism, one adapter per node",
            f"{_SDP4BIT}, table 2, the baselines on H800: seconds per step from the FLOP/s that it prints; "
            "its repository's scripts: distributed optimizer, gradients in fp32, micro-batch 1, selective "
            "recomputation, no overlap; 16 nodes with one 400 Gb/s adapter each",
            _sdp4bit,
        ),
        (
            "Llama-2 generation",
            "NVIDIA's page of Llama-2 latencies via Kundu et al., arXiv 2407.14645: seconds for 200 "
            "tokens in and 200 out, batch 1; fp16 assumed, fused kernels",
            _llama,
        ),
        (
            "training memory",
            f"{_KORTHIKANTI}, figure 1: GiB per GPU of the first stage; figures from its formulas "
            "(18 bytes per parameter of the layers, with gradients in fp32, as Megatron-LM keeps them; "
            "activations of the micro-batches in flight)",
            _memory,
        ),
    ):
        if only and not any(part in name for part in only):
            continue
        yield ValidationTable.of(name, source, list(rows(session)))


class _Session:
    """Analyses that share what they import: a model is traced once per size, not once per row."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._imported: dict[Any, ImportedModel] = {}

    def analyze(self, model: str, **options: Any) -> Report:
        analysis = self._analysis(model, options)
        return analysis.generation() if analysis.options.mode == "generation" else analysis.step()

    def passes(self, model: str, **options: Any) -> tuple[float, float]:
        """Seconds of one micro-batch's forward and backward pass on the first stage."""
        return self._analysis(model, options).passes()

    def _analysis(self, model: str, options: dict[str, Any]) -> _Reusing:
        options = {"hardware": _A100, "dtype": "fp16", "execution": "pointwise"} | options
        analysis = _Reusing(model, Options(**options), progress=self.progress)
        analysis.known = self._imported
        return analysis


class _Reusing(Analysis):
    known: dict[Any, ImportedModel]

    def passes(self) -> tuple[float, float]:
        imported = self.imported(self.options.mode, self.options.sequence)
        times = self.price(imported).cost.stages[0][0].times
        return times.forward.time_s, times.backward.time_s

    def imported(
        self, mode: str, sequence: int | None, past_tokens: int | None = None
    ) -> ImportedModel:
        key = (self.model, self.workload.traced, mode, sequence, past_tokens)
        if key not in self.known:
            self.known[key] = super().imported(mode, sequence, past_tokens)
        return self.known[key]


def _read(name: str) -> list[dict[str, str]]:
    text = (files("opbound") / "published" / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _korthikanti_steps(session: _Session) -> Rows:
    for row in _read("korthikanti_steps"):
        chunks = int(row["chunks"])
        axes = {axis: int(row[axis]) for axis in ("dp", "tp", "pp")}
        name = f"{row['model']} on {axes['dp'] * axes['tp'] * axes['pp']}, {row['recompute']}"
        session.progress(f"training step: {name}")
        report = session.analyze(
            f"hf:megatron-{row['model'].lower()}",
            mode="training",
            batch=int(row["global_batch"]),
            microbatch=int(row["micro_batch"]),
            sequence=_SEQUENCE,
            parallel=axes,
            schedule=f"interleaved:{chunks}" if chunks > 1 else "1f1b",
            recompute=row["recompute"],
            sequence_parallel=row["sequence_parallel"] == "yes",
        )
        yield ValidationRow(f"{name} recompute", report.totals.step_time_s, float(row["step_s"]))


_EXPERIMENTS = {
    "baseline no recompute (TP8 no SP)": ("none", False),
    "sequence parallelism": ("none", True),
    "baseline with full recompute": ("full", False),
    "selective recompute": ("selective", False),
    "selective + sequence": ("selective", True),
}
"""Recomputation and sequence parallelism of each row of the layer's table."""


def _korthikanti_layer(session: _Session) -> Rows:
    sizes = {"hidden": "6144", "heads": "64"}
    with TemporaryDirectory() as folder:
        # What two more layers add is two layers' time, without embedding and head.
        models = [_gpt(Path(folder), f"gpt-{n}", sizes | {"layers": str(n)}) for n in (2, 4)]
        for row in _read("korthikanti_layer"):
            recompute, sequence_parallel = _EXPERIMENTS[row["experiment"]]
            session.progress(f"one layer: {row['experiment']}")
            few, many = (
                session.passes(
                    model,
                    mode="training",
                    batch=4,
                    microbatch=4,
                    sequence=_SEQUENCE,
                    parallel={"tp": 8},
                    recompute=recompute,
                    sequence_parallel=sequence_parallel,
                )
                for model in models
            )
            for i, part in enumerate(("forward", "backward")):
                measured = float(row[f"{part}_ms"]) * 1e-3
                yield ValidationRow(
                    f"{row['experiment']}, {part}", (many[i] - few[i]) / 2, measured
                )


def _narayanan_scaling(session: _Session) -> Rows:
    with TemporaryDirectory() as folder:
        for row in _read("narayanan_scaling"):
            model = _gpt(Path(folder), f"gpt-{row['billions']}b", row)
            yield _narayanan(session, model, row, 4 if row["pp"] == "1" else 1)


def _narayanan_pipelines(session: _Session) -> Rows:
    for row in _read("narayanan_zero3"):
        if row["scheme"] == "PTD-P":
            yield _narayanan(session, _megatron(row), row, int(row["micro_batch"]))


def _narayanan_zero3(session: _Session) -> Rows:
    for row in _read("narayanan_zero3"):
        if row["scheme"] == "ZeRO-3":
            yield _narayanan(session, _megatron(row), row, int(row["micro_batch"]), zero=3)


def _megatron(row: dict[str, str]) -> str:
    return "hf:megatron-175b" if row["hidden"] == "12288" else "hf:megatron-530b"


def _narayanan(
    session: _Session, model: str, row: dict[str, str], microbatch: int, zero: int = 0
) -> ValidationRow:
    axes = {axis: int(row[axis]) for axis in ("dp", "tp", "pp")}
    gpus = axes["dp"] * axes["tp"] * axes["pp"]
    name = f"{row['billions']}B on {gpus}"
    session.progress(f"training step: {name}")
    report = session.analyze(
        model,
        mode="training",
        batch=int(row["global_batch"]),
        microbatch=microbatch,
        sequence=_SEQUENCE,
        parallel=axes,
        zero=zero,
        recompute="full",
        # Megatron-LM reduced gradients after the backward pass, and its tensor parallelism waited.
        overlap=False,
    )
    return ValidationRow(name, report.totals.step_time_s, float(row["step_s"]))


def _sdp4bit(session: _Session) -> Rows:
    cluster = str(files("opbound") / "published" / "sdp4bit_cluster.yaml")
    with TemporaryDirectory() as folder:
        for row in _read("sdp4bit_baselines"):
            tp, dp = int(row["tp"]), int(row["dp"])
            name = f"{row['billions']}B, tp={tp}, dp={dp}"
            session.progress(f"training step: {name}")
            report = session.analyze(
                _gpt(Path(folder), f"gpt-{row['billions']}b", row),
                hardware=cluster,
                mode="training",
                dtype="bf16",
                batch=dp,
                microbatch=1,
                sequence=_SEQUENCE,
                parallel={"dp": dp, "tp": tp},
                zero=1,
                gradient_dtype="fp32",
                recompute="selective",
                overlap=False,
            )
            measured_s = _model_flops(row, dp) / (dp * tp * float(row["tflops_per_gpu"]) * 1e12)
            yield ValidationRow(name, report.totals.step_time_s, measured_s)


def _model_flops(row: dict[str, str], batch: int) -> float:
    """FLOPs of a step without recomputation, as Megatron-LM counts them (Narayanan et al., equation 3)."""
    hidden, layers = int(row["hidden"]), int(row["layers"])
    layer = 1 + _SEQUENCE / (6 * hidden)
    head = _VOCABULARY / (12 * layers * hidden)
    return 72 * batch * _SEQUENCE * layers * hidden**2 * (layer + head)


def _gpt(folder: Path, name: str, row: dict[str, str]) -> str:
    """A configuration like those of the shipped Megatron models, of the row's sizes."""
    text = (files("importers") / "model_configs/megatron-22b.json").read_text(encoding="utf-8")
    config = json.loads(text)
    config |= {
        "n_embd": int(row["hidden"]),
        "n_layer": int(row["layers"]),
        "n_head": int(row["heads"]),
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return f"hf:{path}"


def _llama(session: _Session) -> Rows:
    for row in _read("llama2_latency"):
        name = row["model"].lower().replace("llama 2", "llama-2")
        label = f"{row['gpu'][:4]} {name} tp={row['tp']}"
        session.progress(f"generation: {label}")
        report = session.analyze(
            f"hf:{name}",
            hardware=_DEVICES[row["gpu"]],
            mode="generation",
            batch=1,
            prompt_tokens=200,
            new_tokens=200,
            parallel={"tp": int(row["tp"])},
            execution="fused",
        )
        yield ValidationRow(label, report.totals.step_time_s, float(row["latency_s"]))


def _memory(session: _Session) -> Rows:
    steps = {row["model"]: row for row in _read("korthikanti_steps") if row["dp"] == "1"}
    for row in _read("korthikanti_memory"):
        step = steps[row["model"]]
        selective = row["mode"].startswith("SP")
        chunks = int(step["chunks"])
        session.progress(f"memory: {row['model']}, {row['mode']}")
        report = session.analyze(
            f"hf:megatron-{row['model'].lower()}",
            mode="training",
            batch=int(step["global_batch"]),
            microbatch=int(step["micro_batch"]),
            sequence=_SEQUENCE,
            parallel={"tp": int(step["tp"]), "pp": int(step["pp"])},
            schedule=f"interleaved:{chunks}" if chunks > 1 else "1f1b",
            recompute="selective" if selective else "none",
            sequence_parallel=selective,
            gradient_dtype="fp32",
        )
        # The formulas' state is that of layers alone: a pipeline's second rank has nothing else.
        ranks = [rank.by_kind_bytes for rank in report.pipeline or ()] or [
            report.memory.by_kind_bytes
        ]
        layers, kinds = ranks[min(1, len(ranks) - 1)], ranks[0]
        state = sum(layers.get(k, 0) for k in ("parameters", "gradients", "optimizer"))
        label = f"{row['model']}, {row['mode']}"
        gib = 2.0**30
        yield ValidationRow(f"{label}: state", state / gib, float(row["state_GiB"]), "GiB")
        activations = kinds.get("activations", 0) / gib
        yield ValidationRow(
            f"{label}: activations", activations, float(row["activations_GiB"]), "GiB"
        )
