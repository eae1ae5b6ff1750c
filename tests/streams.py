"""Play a CUDA device on the CPU: work given to a stream runs at once, late or at random moments.

A stream's work really runs late on a GPU, and only an event that is waited for
says that it is done. Whoever reads too early gets NaN here.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

ORDERS = ("at once", "late", "at random")
CARD = "NVIDIA Played"


class Stream:
    """Work in order, done when somebody waits for it, or when `order` says so."""

    def __init__(self, order: str) -> None:
        self._order, self._lock = order, threading.Lock()
        self._waiting: deque[Callable[[], object]] = deque()
        self.given = self._done = 0

    def give(self, work: Callable[[], object]) -> None:
        self._waiting.append(work)
        self.given += 1
        if self._order != "late":
            self.run_to(self.given if self._order == "at once" else random.randint(self._done, self.given))

    def run_to(self, count: int) -> None:
        """Do the first `count` pieces of all that was ever given."""
        with self._lock:
            while self._done < count:
                self._waiting.popleft()()
                self._done += 1

    def synchronize(self) -> None:
        self.run_to(self.given)


class Player:
    """One played GPU that torch's own names lead to; `capability` and `free` bytes are as set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order, self.capability, self.free, self.pins = "at once", (9, 0), 80 << 30, True
        self._local = threading.local()
        self._copy = torch.Tensor.copy_
        to = torch.Tensor.to

        def sent(tensor: torch.Tensor, *where: Any, non_blocking: bool = False, **more: Any) -> torch.Tensor:
            if not non_blocking:
                return to(tensor, *where, **more)
            there = torch.full(tensor.shape, 77, dtype=tensor.dtype)  # memory that holds something else
            return there.copy_(tensor, non_blocking=True)

        def copied(tensor: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
            if not non_blocking:
                return self._copy(tensor, source)
            self.give(lambda: self._copy(tensor, source))
            return tensor

        def pinned(tensor: torch.Tensor) -> torch.Tensor:
            if not self.pins:
                raise RuntimeError("CUDA error: out of memory")
            return tensor.clone()

        for name, played in (("to", sent), ("copy_", copied), ("pin_memory", pinned)):
            monkeypatch.setattr(torch.Tensor, name, played)
        for name, value in {
            "Stream": lambda device: Stream(self.order),
            "Event": lambda blocking: Event(self),
            "stream": self._streaming,
            "device": lambda device: contextlib.nullcontext(),
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "empty_cache": lambda: None,
            "mem_get_info": lambda device: (self.free, self.free),
            "get_device_capability": lambda device: self.capability,
            "get_device_name": lambda device: CARD,
            "get_arch_list": lambda: ["sm_75", "sm_90"],
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def give(self, work: Callable[[], object]) -> None:
        """Give work to the stream that is current in this thread."""

        def inferring() -> None:
            with torch.inference_mode():
                work()

        self.stream.give(inferring)

    @property
    def stream(self) -> Stream:
        found: Stream = self._local.stream
        return found

    @contextlib.contextmanager
    def _streaming(self, stream: Stream) -> Iterator[None]:
        before = getattr(self._local, "stream", None)
        self._local.stream = stream
        yield
        self._local.stream = before


class Event:
    """A mark in a stream."""

    def __init__(self, player: Player) -> None:
        self._player = player

    def record(self) -> None:
        self._stream, self._mark = self._player.stream, self._player.stream.given

    def synchronize(self) -> None:
        self._stream.run_to(self._mark)


class Toy(torch.nn.Module):
    """A network on a played GPU that holds `most` images at once; a row tells its image from others."""

    def __init__(self, player: Player, most: int = 1 << 30) -> None:
        super().__init__()
        self.player, self.most, self.sizes = player, most, []

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(crops))
        if len(crops) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        rows = torch.full((len(crops), 2048), torch.nan)
        self.player.give(lambda: rows.copy_(torch.from_numpy(expected(crops.numpy()))))
        return rows


def expected(crops: np.ndarray) -> np.ndarray:
    """Return what `Toy` makes of crops."""
    rows = np.zeros((len(crops), 2048), np.float32)
    rows[:, :3] = crops.astype(np.float32).mean((1, 2))
    rows[:, 3] = crops[:, 0, 0, 0] * 7.0 + crops[:, -1, -1, 2]
    return rows


def cudnn_add_relu(x: Any, weight: Any, z: Any, alpha: float, *rest: Any) -> torch.Tensor:
    """Compute what cuDNN documents, given by position."""
    bias, stride, padding, dilation, groups = rest
    return (torch.conv2d(x, weight, bias, stride, padding, dilation, groups) + alpha * z).relu()


def crops(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
