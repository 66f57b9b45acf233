"""The words of a pipeline schedule: one pass of one micro-batch through one stage."""

from __future__ import annotations

from typing import NamedTuple

FORWARD = "forward"
BACKWARD = "backward"
"""The whole backward pass: gradients of activations and of weights."""
INPUT = "backward_input"
"""Only what the stage before waits for: gradients of activations (B in the zero-bubble paper)."""
WEIGHT = "backward_weight"
"""What is left of the backward pass: gradients of weights (W there)."""


class Work(NamedTuple):
    """One pass of one micro-batch through one stage."""

    stage: int
    """Index of the stage in model order. With several stages per rank it is not the rank's."""
    microbatch: int
    kind: str


Slot = tuple[Work, ...]
"""What a rank does at a time: one pass, or a forward and a backward pass that overlap."""
