"""Every comparison with measured tables of operators, and where its rows come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from opbound.validation_convolution import convolution
from opbound.validation_measured import attention, collectives, gemm
from opbound.validation_moe import moe
from opbound.validation_nodes import by_node, sums
from reports.validation import ValidationTable

_FX_NODES = (
    "NeuSight, one row per torch.fx node of Hugging Face models, PyTorch 2.1, fp32 without TF32; rows "
    "that launch no kernel left out"
)
SOURCES = {
    gemm: "ai-dynamo/aiconfigurator, bf16 GEMM: A100 with sglang 0.5.10, H100 with vllm 0.24.0",
    attention: "ai-dynamo/aiconfigurator, vllm's FlashAttention: A100 vllm 0.14.0, H100 vllm 0.24.0",
    collectives: "ai-dynamo/aiconfigurator, NCCL on 2, 4 and 8 GPUs, fp16",
    convolution: "NeuSight, conv2d in fp32 without TF32: calls one by one at the base clock, the host's "
    "time included, which in the A100's table grows by 60 ns with every shape measured before",
    moe: "ai-dynamo/aiconfigurator, vllm 0.24.0's experts: in bf16 Triton's, tokens shared out evenly or by "
    "a power law; in fp8 with scales per block Triton's and CUTLASS's",
    sums: _FX_NODES,
    by_node: f"{_FX_NODES}; mean error weighted by measured time",
}
"""Where each comparison's rows come from."""


def operator_tables(folder: Path) -> Iterator[ValidationTable]:
    """Each measured table in `folder` with its errors; its many rows are left out."""
    for compare, source in SOURCES.items():
        for found in compare(folder):
            errors = found.errors
            yield ValidationTable(
                found.name, source, (), len(errors), found.mean, float(errors.max())
            )
