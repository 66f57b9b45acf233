"""Samples of every operator, with distinct sizes and random numbers.

Dims of one sample have different sizes, so that a rule that mixes them up cannot pass by chance, and numbers
are random, so that a term that is left out shows.
"""

from __future__ import annotations

from samples_contraction import attention, convolutions, products
from samples_elementwise import elementwise
from samples_movement import lookups, movement
from samples_norm_parts import norm_parts
from samples_reduction import norms, reductions

SAMPLES = [
    *elementwise(),
    *products(),
    *convolutions(),
    *attention(),
    *norms(),
    *norm_parts(),
    *reductions(),
    *movement(),
    *lookups(),
]
