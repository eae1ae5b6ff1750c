"""cuda: a GPU played on the CPU, and a real one where there is one."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from networks import backend
from streams import ORDERS, Player, Toy, crops, expected

from rn50feat.backends import check, cuda
from rn50feat.backends.torch import PartSize, in_parts
from rn50feat.errors import DeviceError
from rn50feat.images.provenance import Preprocessing

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CPU = torch.device("cpu")


def wrong_rows(make: Callable[[], Any], size: PartSize, jobs: int = 60) -> int:
    """Return how many of `jobs` come back wrong from two lanes in two threads; each reuses its crops at once."""
    pool, lanes = crops(100), [make(), make()]

    def work(lane: Any) -> int:
        wrong, rng = 0, np.random.default_rng(1)
        for _ in range(jobs // 2):
            given = pool[rng.integers(0, 100, rng.choice([1, 2, 3, 7, 16, 33]))].copy()
            told = expected(given)
            found = in_parts(lane, given, size)
            given[:] = 0
            wrong += not np.array_equal(found, told)
        return wrong

    with ThreadPoolExecutor(2) as threads:
        return sum(threads.map(work, lanes))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("most", [1 << 30, 10])
@pytest.mark.parametrize("pins", [True, False])
def test_a_lane_waits_for_its_own_work(player: Player, order: str, most: int, pins: bool) -> None:
    player.order, player.pins = order, pins
    assert wrong_rows(lambda: cuda.Lane(Toy(player, most), CPU), PartSize("cuda:0")) == 0


@pytest.mark.parametrize(
    ("right", "mutant"),
    [
        ("self._done.synchronize()\n", "pass\n"),
        ("received.copy_(rows, non_blocking=True)", "received[:-1].copy_(rows[:-1], non_blocking=True)"),
        (
            "    received.copy_(rows, non_blocking=True)\n            self._done.record()",
            "    self._done.record()\n            received.copy_(rows, non_blocking=True)",
        ),
        (
            "rows = self._network(sent.to(self._device, non_blocking=True))",
            "rows = self._network(sent.to(self._device, non_blocking=True)); self._done.record()",
        ),
    ],
)
def test_the_player_catches_what_a_lane_must_not_do(player: Player, right: str, mutant: str) -> None:
    source = textwrap.dedent(inspect.getsource(cuda.Lane))
    assert right in source
    made: dict[str, Any] = {}
    changed = source.replace(right, mutant)
    if mutant.endswith("self._done.record()"):  # too early: the right place is left out
        changed = changed.replace("        self._done.record()\n        self._done.sync", "        self._done.sync")
        changed = changed.replace("non_blocking=True)\n            self._done.record()\n", "non_blocking=True)\n")
    exec(compile(changed, "mutant", "exec"), {**vars(cuda)}, made)
    player.order = "late"
    size = PartSize("cuda:0")
    assert wrong_rows(lambda: made["Lane"](Toy(player), CPU), size) > 0


def test_the_precision_is_one_that_the_card_is_good_at(player: Player) -> None:
    device = torch.device("cuda", 0)
    for capability, name, dtype in (
        ((6, 1), "auto", torch.float32),
        ((7, 0), "auto", torch.float16),
        ((9, 0), "auto", torch.float16),
        ((8, 0), "bf16", torch.bfloat16),
        ((7, 5), "fp32", torch.float32),
    ):
        player.capability = capability
        assert cuda.precision(name, device) == dtype
    player.capability = (7, 5)
    with pytest.raises(DeviceError, match=r"capability 7.5\) does not support bf16.*use --precision fp16"):
        cuda.precision("bf16", device)


@pytest.mark.parametrize(
    ("free", "itemsize", "most"),
    [(80 << 30, 2, 256), (8 << 30, 2, 256), (4 << 30, 4, 64), (100 << 20, 2, 2), (1 << 20, 2, 1)],
)
def test_the_batch_is_what_free_memory_has_room_for(player: Player, free: int, itemsize: int, most: int) -> None:
    player.free = free
    assert cuda.batch_size(torch.device("cuda", 0), itemsize) == most


def test_cuda_means_all_devices_and_a_number_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [str(each) for each in cuda.devices("cuda")] == ["cuda:0", "cuda:1", "cuda:2"]
    assert cuda.devices("auto") == cuda.devices("cuda")
    assert [str(each) for each in cuda.devices("cuda:1")] == ["cuda:1"]
    for name, message in (("cuda:3", "only cuda:0 to cuda:2"), ("gpu", "there is no device gpu: use auto, cpu")):
        with pytest.raises(DeviceError, match=message):
            cuda.devices(name)


def test_without_a_device_torchs_own_reason_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def outdated() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", outdated)
    with pytest.raises(
        DeviceError, match=r"no CUDA device \(The NVIDIA driver .* too old \(found version 11040\)\): use"
    ):
        cuda.devices("cuda")


@GPU
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_gpus_rows_are_those_of_the_cpu(precision: str) -> None:
    given = np.concatenate([check.crops(Preprocessing()), 255 - check.crops(Preprocessing())[2:]])
    plain = backend("fp32").features(given)
    made = backend(precision, "cuda:0")
    for count in (14, 5, 1):
        found = made.features(given[:count])
        assert (
            check.error(found, plain[:count] if count == 16 else plain) < check.LIMITS[precision]
            if count == 16
            else True
        )
        distances = np.linalg.norm(found[:, None] - plain[None], axis=2)
        assert distances.argmin(axis=1).tolist() == list(range(count))


@GPU
def test_memory_that_held_nan_does_not_reach_the_rows() -> None:
    made = backend("fp16", "cuda:0")
    given = check.crops(Preprocessing())
    clean = made.features(given)
    torch.full((1 << 28,), torch.nan, device="cuda:0", dtype=torch.float16)  # freed at once: the next maps lie there
    np.testing.assert_array_equal(made.features(given), clean)
