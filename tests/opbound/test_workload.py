"""A global batch, divided over replicas and micro-batches."""

import pytest

from graph_ir.errors import OpboundError
from opbound.options import Options
from opbound.workload import PIPELINE_FILL, Workload, workload_of


@pytest.mark.parametrize(
    ("given", "traced", "microbatches"),
    [
        ({}, None, 1),
        ({"batch": 12}, 12, 1),
        ({"parallel": {"dp": 4}}, 4, 1),
        ({"batch": 12, "parallel": {"dp": 4}}, 12, 1),
        ({"batch": 12, "microbatch": 3}, 3, 4),
        ({"batch": 12, "microbatch": 3, "parallel": {"dp": 2}}, 6, 2),
        # In training, a pipeline takes samples one by one; in inference, the whole batch.
        ({"batch": 12, "parallel": {"pp": 3}, "mode": "training"}, 1, 12),
        ({"batch": 12, "parallel": {"pp": 3}}, 12, 1),
        ({"parallel": {"pp": 3}, "mode": "training"}, 1, PIPELINE_FILL * 3),
        ({"microbatch": 2, "parallel": {"dp": 2}}, 4, 1),
    ],
)
def test_micro_batches(given, traced, microbatches):
    assert workload_of(Options(**given)) == Workload(traced, microbatches)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"batch": 8, "parallel": {"dp": 3}}, "use --batch 9"),
        ({"batch": 8, "microbatch": 3}, "a divisor of 8"),
        ({"batch": 8, "microbatch": 8, "parallel": {"dp": 2}}, "a divisor of 4"),
    ],
)
def test_a_batch_that_does_not_divide(given, says):
    with pytest.raises(OpboundError, match=says):
        workload_of(Options(**given))
