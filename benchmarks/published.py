"""Published measurements through the whole program: training steps, one layer, Llama-2 inference.

    python benchmarks/published.py [korthikanti|layer|llama ...]

Prints predicted and measured seconds with the error of each row, and the mean and largest absolute
error of each table. Sources: Korthikanti et al., arXiv 2205.05198, tables 3 to 5 (A100-80GB, Selene;
eager kernels as in Megatron-LM); NVIDIA's Llama-2 page via arXiv 2407.14645 (batch 1, 200 tokens in,
200 out; fused kernels, as TensorRT-LLM builds them).
"""

from __future__ import annotations

import csv
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import opbound

Row = tuple[str, float, float]
"""What was measured, predicted seconds, measured seconds."""

DEVICES = {"A100-80GB-SXM4": "a100-sxm-80gb", "H100-80GB-HBM3": "h100-sxm-80gb"}


def table(name: str) -> list[dict[str, str]]:
    shared = Path(os.environ.get("OPBOUND_SHARED", Path(__file__).parents[1] / "../shared"))
    with (shared / "measured/published" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def korthikanti() -> Iterator[Row]:
    for row in table("train_korthikanti_t3_t5_iteration_time"):
        chunks = int(row["interleave_m"])
        parallel = f"dp={row['dp']},tp={row['tp']},pp={row['pp']}"
        report = opbound.analyze(
            f"hf:megatron-{row['model'].lower()}",
            hardware="a100-sxm-80gb",
            mode="training",
            batch=int(row["global_batch"]),
            microbatch=int(row["micro_batch"]),
            sequence=int(row["seq_len"]),
            dtype="fp16",
            parallel=parallel,
            schedule=f"interleaved:{chunks}" if chunks > 1 else "1f1b",
            recompute=row["recompute"],
            sequence_parallel=row["sequence_parallel"] == "yes",
        )
        name = f"{row['model']} {parallel} {row['recompute']}"
        yield name, report.totals.step_time_s, float(row["iter_time_s_measured"])


def layer() -> Iterator[Row]:
    settings = {
        "baseline no recompute (TP8 no SP)": ("none", False),
        "sequence parallelism": ("none", True),
        "baseline with full recompute": ("full", False),
        "selective recompute": ("selective", False),
        "selective + sequence": ("selective", True),
    }
    layers = 48
    for row in table("train_korthikanti_t4_layer_time_22B"):
        recompute, sequence_parallel = settings[row["experiment"]]
        report = opbound.analyze(
            "hf:megatron-22b",
            hardware="a100-sxm-80gb",
            mode="training",
            batch=4,
            microbatch=4,
            sequence=2048,
            dtype="fp16",
            parallel="tp=8",
            recompute=recompute,
            sequence_parallel=sequence_parallel,
        )
        # The rows of the repeated layer are those that run a multiple of its repetitions.
        inner = [o for o in report.operators if o.count % layers == 0 and o.phase != "optimizer"]
        forward = sum(o.time_s for o in inner if o.phase == "forward" or o.name.endswith("forward"))
        total = sum(o.time_s for o in inner)
        for part, seconds in (("forward", forward), ("backward", total - forward)):
            measured = float(row["fwd_ms" if part == "forward" else "bwd_ms"]) * 1e-3
            yield f"{row['experiment']}, {part}", seconds / layers, measured


def llama() -> Iterator[Row]:
    for row in table("infer_nvidia_llama2_b1_200in_200out"):
        name = row["model"].lower().replace("llama 2", "llama-2")
        report = opbound.analyze(
            f"hf:{name}",
            hardware=DEVICES[row["gpu"]],
            mode="generation",
            batch=1,
            prompt_tokens=200,
            new_tokens=200,
            dtype="fp16",
            parallel=f"tp={row['tp']}",
            execution="fused",
        )
        label = f"{row['gpu'][:4]} {name} tp={row['tp']}"
        yield label, report.totals.step_time_s, float(row["latency_s_measured"])


def main() -> int:
    warnings.simplefilter("ignore")
    tables = {f.__name__: f for f in (korthikanti, layer, llama)}
    for name in sys.argv[1:] or list(tables):
        errors = []
        for label, predicted, measured in tables[name]():
            error = predicted / measured - 1
            errors.append(abs(error))
            print(f"{label:48s} {predicted:10.4f} {measured:10.4f} {error:+7.1%}", flush=True)
        print(f"{name}: mean {sum(errors) / len(errors):.1%}, largest {max(errors):.1%}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
