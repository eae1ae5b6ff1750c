"""backends.torch: batches in parts, devices and precisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import backend, cosines
from streams import Player, Toy, crops, expected

from rn50feat.backends import cuda
from rn50feat.backends.torch import PartSize, in_parts
from rn50feat.errors import DeviceError

CPU = torch.device("cpu")


def test_a_batch_that_is_too_large_goes_through_in_parts_and_the_size_recovers(
    player: Player, caplog: pytest.LogCaptureFixture
) -> None:
    toy, size = Toy(player, most=3), PartSize("cuda:0")
    lane = cuda.Lane(toy, CPU)
    assert np.array_equal(in_parts(lane, crops(11), size), expected(crops(11)))
    assert toy.sizes == [11, 5, 2, 4, 2, 2, 2, 2, 1]
    in_parts(lane, crops(100), size)
    assert toy.sizes.count(4) == 2  # tried once more after 32 parts that fitted
    assert max(toy.sizes[-10:]) <= 3
    toy.most = 1 << 30
    for _ in range(80):
        in_parts(lane, crops(100), size)
    assert toy.sizes[-1] == 100
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"cuda:0 has too little memory for {n} images: continuing with {n // 2}" for n in (11, 5, 4)]


def test_a_small_batch_that_fails_does_not_slow_the_next_ones_for_long(player: Player) -> None:
    toy, size = Toy(player, most=1), PartSize("cuda:0")
    in_parts(cuda.Lane(toy, CPU), crops(3), size)
    toy.most, toy.sizes = 1 << 30, []
    for _ in range(3):
        in_parts(cuda.Lane(toy, CPU), crops(100), size)
    assert len(toy.sizes) < 80


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB",
        "CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_every_way_to_run_out_of_memory_halves_the_batch(player: Player, message: str) -> None:
    class Full(Toy):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            if len(batch) > self.most:
                raise RuntimeError(message)
            return super().forward(batch)

    found = in_parts(cuda.Lane(Full(player, 2), CPU), crops(5), PartSize("cuda:0"))
    assert np.array_equal(found, expected(crops(5)))
    with pytest.raises(DeviceError) as refused:
        in_parts(cuda.Lane(Full(player, 0), CPU), crops(5), PartSize("cuda:0"))
    reason = cuda.reason(Exception(message))
    assert str(refused.value).startswith(f"cuda:0 has too little memory for one image ({reason}): free some")


def test_other_errors_are_no_lack_of_memory(player: Player) -> None:
    class Broken(Toy):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        in_parts(cuda.Lane(Broken(player), CPU), crops(5), PartSize("cuda:0"))


@pytest.mark.slow
def test_bf16_rows_point_the_same_way_as_fp32_rows() -> None:
    crops = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8)
    exact, rough = backend("fp32").features(crops), backend("bf16").features(crops)
    assert exact.shape == (4, 2048)
    assert (exact.dtype, rough.dtype) == (np.float32, np.float32)
    assert cosines(exact, rough).min() > 0.999
    assert not np.array_equal(exact, rough)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "device", "reason"),
    [
        ("fp16", "cpu", "fp16 needs a CUDA device"),
        ("fp32", "cuda:99", "there is no device cuda:99" if torch.cuda.is_available() else "finds no CUDA device"),
        ("fp32", "tpu", "there is no device tpu"),
    ],
)
def test_devices_and_precisions_that_are_not_here(precision: str, device: str, reason: str) -> None:
    with pytest.raises(DeviceError, match=reason):
        backend(precision, device)


@pytest.mark.slow
def test_a_device_that_runs_out_of_memory_gets_smaller_batches() -> None:
    """The rows and their order stay; what a GPU does is played by a lane that refuses more than three images."""
    crops = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), np.uint8)
    sizes: list[int] = []

    class Lane:
        def features(self, part: np.ndarray) -> np.ndarray:
            sizes.append(len(part))
            if len(part) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return part.reshape(len(part), -1).astype(np.float32)

        def release(self) -> None:
            pass

    limit, size = 3, PartSize("cuda:0")
    found = in_parts(Lane(), crops, size)  # type: ignore[arg-type]
    assert np.array_equal(found, crops.reshape(11, -1))
    assert sizes == [11, 5, 2, 4, 2, 2, 2, 2, 1]
    in_parts(Lane(), crops[:4], size)  # type: ignore[arg-type]
    assert sizes[-2:] == [2, 2]  # it does not try the large batch each time
    limit = 0
    with pytest.raises(DeviceError, match="too little memory for one image"):
        in_parts(Lane(), crops, size)  # type: ignore[arg-type]
