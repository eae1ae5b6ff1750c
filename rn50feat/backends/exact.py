"""Keep float32 exact even if the surrounding program allows less.

torch's setting for this (TF32, bfloat16) applies to the whole process, and
several threads run the network at once: the first one in changes it, the last
one out restores it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

_LIBRARIES: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.mkldnn)
_lock = Lock()
_before: list[str] = []
_inside = 0


@contextmanager
def exact() -> Iterator[None]:
    """Compute float32 convolutions inside the block with all 23 bits of the mantissa."""
    global _inside
    with _lock:
        if not _inside:
            _before[:] = [each.conv.fp32_precision for each in _LIBRARIES]
            _set(["ieee"] * len(_LIBRARIES))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _set(_before)


def _set(values: list[str]) -> None:
    for each, value in zip(_LIBRARIES, values):
        each.conv.fp32_precision = value
