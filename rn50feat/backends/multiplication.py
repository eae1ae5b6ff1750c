"""Measure how fast this processor multiplies matrices.

In: a precision. Out: the time that the network's multiplications take at least.
"""

from __future__ import annotations

import time

import torch

OPERATIONS = 2 * 4.09e9  # multiplications and additions for an image
SIDE = 2048


def least_seconds(precision: str, *, budget: float = 1.0) -> float:
    """Return the seconds of a core that multiplying matrices takes for the operations of an image, in fp32 or bf16."""
    matrix = torch.ones((SIDE, SIDE), dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best, end = float("inf"), time.monotonic() + budget
    matrix @ matrix  # threads start, and the processor reaches its speed
    while True:
        begun = time.process_time()
        matrix @ matrix
        best = min(best, time.process_time() - begun)
        if time.monotonic() > end:
            return best * OPERATIONS / (2 * SIDE**3)
