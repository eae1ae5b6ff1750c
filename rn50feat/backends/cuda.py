"""Run the network on a CUDA device: one batch at a time, on a stream of its own.

In: crops in the host's memory. Out: features. Two lanes a device, used by two
threads, overlap the copies of one batch with the computation of another. A
batch is one launch of a CUDA graph, captured when the first one comes: ResNet50
has some 60 kernels, and launching them one by one costs more than a small
batch computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from rn50feat.provenance import Preprocessing

if TYPE_CHECKING:
    from rn50feat.backends import Crops

LANES = 2  # for each device
LARGEST = 256  # pictures a batch, unless the user says another number
# Device memory for a picture in one lane, for each byte of a value: the three largest layers (2.4 million values)
# and cuDNN's workspace, doubled to be on the safe side; what is too much all the same, is halved.
_VALUES = 8_000_000
# Heuristics choose cuDNN's algorithms, so that every run takes the same ones; trying them all could be faster.
BENCHMARK = False

_capturing = Lock()  # one capture at a time; and cuDNN's settings belong to the whole process


def batch_size(device: torch.device, itemsize: int) -> int:
    """Return the largest power of two of pictures that the free memory of `device` has room for, in each lane."""
    free, _ = torch.cuda.mem_get_info(device)
    room = free // (LANES * _VALUES * itemsize)
    return min(LARGEST, 1 << int(math.log2(max(1, room))))


@contextmanager
def settings() -> Iterator[None]:
    """Choose cuDNN's algorithms, for one thread at a time: no TF32, which keeps 10 bits of a float32's 23."""
    chosen = torch.backends.cudnn.flags(enabled=True, benchmark=BENCHMARK, deterministic=False, allow_tf32=False)
    with _capturing, chosen:
        yield


class Lane:
    """A stream, its buffers on both sides, and a graph of the network for one size of batch."""

    def __init__(
        self, build: Callable[[], torch.nn.Module], device: torch.device, preprocessing: Preprocessing
    ) -> None:
        """Take the network, from crops to features, from `build` when the first batch comes."""
        self._build, self._device = build, device
        self._crop, self._dtype = preprocessing.crop, getattr(torch, preprocessing.crop_dtype)
        self._size = 0  # of the captured batch

    def features(self, crops: Crops, most: int) -> NDArray[np.float32]:
        """Return features, float32 of shape (n, 2048), of n crops; capture anew where the graph is not for 1 to `most`.

        A batch smaller than the graph's is padded with what was there before,
        and those rows are dropped. Raises `torch.OutOfMemoryError` when the
        device cannot hold it.
        """
        with torch.inference_mode(), torch.cuda.device(self._device):
            if not len(crops) <= self._size <= most:
                self._capture(len(crops))
            self._sent[: len(crops)].copy_(torch.from_numpy(crops))
            with torch.cuda.stream(self._stream):
                self._input.copy_(self._sent, non_blocking=True)
                self._graph.replay()
                self._received.copy_(self._output, non_blocking=True)
                self._done.record()
            self._done.synchronize()
            return self._received[: len(crops)].numpy().copy()

    def release(self) -> None:
        """Give the memory of the graph back."""
        self._size = 0
        for name in ("_graph", "_input", "_output", "_sent", "_received"):
            self.__dict__.pop(name, None)
        with _capturing:  # torch's allocator frees nothing while another lane captures
            torch.cuda.empty_cache()

    def _capture(self, size: int) -> None:
        """Capture the network for batches of `size`, on buffers that stay where they are."""
        self.release()
        network = self._build()
        with settings():
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            # A thread that waits sleeps: a busy one would take a core from the decoders.
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            shape = (size, self._crop, self._crop, 3)
            self._sent = torch.zeros(shape, dtype=self._dtype, pin_memory=True)
            self._input = torch.zeros(shape, dtype=self._dtype, device=self._device)
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(2):  # cuDNN chooses, loads and compiles its kernels outside the capture
                    network(self._input)
            self._stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            # thread_local: the other lanes go on meanwhile, and may allocate memory.
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                self._output = network(self._input)
            self._received = torch.zeros(self._output.shape, dtype=self._output.dtype, pin_memory=True)
        self._size = size


def once(build: Callable[[], torch.nn.Module]) -> Callable[[], torch.nn.Module]:
    """Return `build` that builds at its first call only; the lanes of a device share what it returns."""
    lock, kept = Lock(), cache(build)

    def locked() -> torch.nn.Module:
        with lock:
            return kept()

    return locked
