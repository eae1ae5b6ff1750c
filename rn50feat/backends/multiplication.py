"""Measure how fast this processor multiplies matrices.

In: a precision. Out: the time that the network's multiplications take at least.
"""

from __future__ import annotations

import time

import torch

OPERATIONS = 2 * 4.09e9  # multiplications and additions for an image
SIDE = 2048


def least_seconds(precision: str, *, budget: float = 1.0) -> float:
    """Return the seconds of a core that multiplying matrices takes for the operations of an image.

    `precision` is fp32, bf16 or int8.
    """
    dtype = {"bf16": torch.bfloat16, "int8": torch.int8}.get(precision, torch.float32)
    matrix = torch.ones((SIDE, SIDE), dtype=dtype)
    multiply = torch._int_mm if dtype == torch.int8 else torch.mm  # mm overflows in 8 bits
    best, end = float("inf"), time.monotonic() + budget
    multiply(matrix, matrix)  # threads start, and the processor reaches its speed
    while True:
        begun = time.process_time()
        multiply(matrix, matrix)
        best = min(best, time.process_time() - begun)
        if time.monotonic() > end:
            return best * OPERATIONS / (2 * SIDE**3)
