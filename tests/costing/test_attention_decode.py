"""Decode attention as FlashAttention-2 runs it over a paged cache: what is copied, what is split."""

from dataclasses import replace

import pytest

from costing.attention import AttentionShape, attention_cost
from costing.hardware import Hardware
from costing.hardware_file import load_hardware
from graph_ir.tensor_type import DType

A100 = load_hardware("a100-sxm-80gb")


def decode_s(device: Hardware, batch: int, heads: int, kv_heads: int, keys: int) -> float:
    shape = AttentionShape(batch, heads, kv_heads, 1, keys, 128)
    return float(attention_cost(device, DType.BFLOAT16, shape).time_s[0])


def with_kernel(**changes: bool) -> Hardware:
    engine = A100.engines[0]
    kernel = replace(engine.attention, **changes)  # type: ignore[arg-type]
    return replace(A100, engines=(replace(engine, attention=kernel), *A100.engines[1:]))


@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "copied"),
    [(8, 32, 4, True), (1, 32, 4, False), (8, 32, 1, False), (8, 4, 4, False)],
)
def test_queries_are_copied_where_their_heads_do_not_lie_together(
    batch: int, heads: int, kv_heads: int, copied: bool
) -> None:
    in_place = decode_s(with_kernel(copies_groups=False), batch, heads, kv_heads, 1024)
    more = decode_s(A100, batch, heads, kv_heads, 1024) - in_place
    memory = A100.main_memory
    # Read and written once each: the queries, and the result.
    moved = 4 * batch * heads * 128 * 2 / memory.sustained_bytes_per_s
    two = 2 * (A100.launch.device_latency_s + memory.latency_s) + moved
    assert more == pytest.approx(two if copied else 0.0, abs=1e-12)


def test_keys_of_ungrouped_heads_are_walked_by_one_block() -> None:
    """vLLM's table: 1.53 ms for 65,536 keys of one head, 3.02 ms for twice as many."""
    long, twice = (decode_s(A100, 1, 1, 1, keys) for keys in (65536, 131072))
    assert twice == pytest.approx(2 * long, rel=0.05)
    assert decode_s(with_kernel(splits_ungrouped=True), 1, 1, 1, 131072) < twice / 5


def test_keys_of_grouped_heads_are_split() -> None:
    assert decode_s(A100, 1, 8, 1, 131072) < decode_s(A100, 1, 1, 1, 131072) / 5
