"""backends.cuda, backends.fused and backends.check: a GPU played on the CPU, and a real one where there is one."""

from __future__ import annotations

import inspect
import json
import logging
import runpy
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import backend
from streams import CARD, ORDERS, Player, Toy, expected

from rn50feat.backends import check, cuda, exact, fused
from rn50feat.backends.torch import PartSize, TorchBackend, in_parts
from rn50feat.engines import local
from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import DeviceError
from rn50feat.images.provenance import Preprocessing
from rn50feat.model import network, weights
from rn50feat.model.variants import VARIANTS

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["torchvision", "keras", "slim"])
def resnet(request: pytest.FixtureRequest) -> torch.nn.Module:
    return network.load(weights.find("random"), VARIANTS[request.param]).module


def images(count: int, side: int = 33) -> torch.Tensor:
    values = torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(0))
    return values.to(memory_format=torch.channels_last)


def cudnn_add_relu(x: Any, weight: Any, z: Any, alpha: float, *rest: Any) -> torch.Tensor:
    """Compute what cuDNN documents, given by position."""
    bias, stride, padding, dilation, groups = rest
    return (torch.conv2d(x, weight, bias, stride, padding, dilation, groups) + alpha * z).relu()


@pytest.mark.parametrize("library", ["plain", "oneDNN", "cuDNN"])
def test_a_fused_network_computes_what_the_plain_one_does(
    resnet: torch.nn.Module, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(
        torch, "cudnn_convolution_add_relu", lambda *a: (calls.append(bool(a[2].any())), cudnn_add_relu(*a))[1]
    )
    batch = images(2)
    before = batch.clone()
    start = {"plain": lambda: fused.plain, "oneDNN": lambda: fused._onednn, "cuDNN": fused.CuDNN}[library]
    with torch.inference_mode():
        rows = resnet(batch)
        found = fused.Fused(resnet, start)(batch)
    torch.testing.assert_close(found, rows, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch, before)  # what oneDNN overwrites is its own
    if library == "cuDNN":  # two convolutions of each block add zeros, the third one the shortcut; none adds garbage
        assert (calls.count(False), calls.count(True)) == (32, 16)


def test_the_cpu_fuses_and_a_library_without_the_calls_is_left_alone(
    resnet: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(fused.fused_on_cpu(resnet, torch.float32), fused.Fused)

    def refuse(*arguments: object) -> torch.Tensor:
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    monkeypatch.setattr(fused, "_onednn", refuse)
    assert fused.fused_on_cpu(resnet, torch.float32) is resnet


@pytest.fixture
def player(monkeypatch: pytest.MonkeyPatch) -> Player:
    return Player(monkeypatch)


def crops(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


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


@pytest.fixture
def card(player: Player, monkeypatch: pytest.MonkeyPatch) -> Player:
    """A played GPU that computes what the CPU does, cuDNN's call included."""
    monkeypatch.setattr(cuda, "devices", lambda name: [CPU])
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", cudnn_add_relu)
    return player


def on_card(precision: str = "fp32", device: str = "cuda") -> TorchBackend:
    return backend(precision, device)


def test_a_device_proves_itself_and_is_used(card: Player) -> None:
    made = on_card()
    assert (made.lanes, made.batch_size, made.precision) == (cuda.LANES, cuda.LARGEST, "fp32")
    given = check.crops(Preprocessing())
    plain = backend("fp32").features(given)
    assert check.error(made.features(given), plain) < 1e-3
    rolled = np.roll(plain, 1, axis=0)
    assert check.error(rolled, plain) > 0.5  # each row is another image's
    assert check.error(np.full_like(plain, np.nan), plain) == np.inf


def test_fusion_that_is_wrong_is_left_out_with_one_line(
    card: Player, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def leaking(x: Any, weight: Any, z: Any, alpha: float, *rest: Any) -> torch.Tensor:
        return cudnn_add_relu(x, weight, z, alpha, *rest) * 1.01

    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", leaking)
    made = on_card()
    (told,) = warned(caplog)
    assert told.startswith("cpu: its rows differ from the CPU's by ")
    given = check.crops(Preprocessing())
    assert check.error(made.features(given), backend("fp32").features(given)) < 1e-3


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines that a user sees."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"


@pytest.fixture
def without_kernels(card: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that torch was not built for."""

    def refuse(*arguments: object) -> np.ndarray:
        raise RuntimeError(f"{NO_KERNEL}\nCUDA kernel errors might be asynchronously reported at some other API call")

    monkeypatch.setattr(cuda.Lane, "features", refuse)
    card.capability = (6, 1)


def test_a_card_without_kernels_is_named_with_what_torch_was_built_for(without_kernels: None) -> None:
    with pytest.raises(DeviceError) as refused:
        on_card()
    told = str(refused.value)
    assert told.startswith(f"cpu ({CARD}, capability 6.1) cannot run the network with torch ")
    assert "built for sm_75 sm_90" in told
    assert f"({NO_KERNEL})" in told
    assert "\n" not in told


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_auto_goes_on_with_the_cpu_and_says_why_in_one_line(
    without_kernels: None, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(local, "_may_have_gpu", lambda: True)
    options = EngineOptions(backend=name, precision="fp32")
    made = local.backend(weights.find("random"), weights.provenance(weights.find("random")), options)
    assert made.device == "cpu"
    if name == "torch":
        assert made.name == "torch"
    (told,) = warned(caplog)
    assert told.startswith(f"no GPU is used: cpu ({CARD}, capability 6.1) cannot run the network")
    with pytest.raises(DeviceError, match="cannot run the network"):
        cuda_only = EngineOptions(backend=name, precision="fp32", device="cuda")
        local.backend(weights.find("random"), weights.provenance(weights.find("random")), cuda_only)


def test_of_several_devices_auto_uses_those_that_work(
    card: Player, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = torch.device("cpu"), torch.device("cpu", 0)
    monkeypatch.setattr(cuda, "devices", lambda name: [good, bad])
    whole = cuda.working
    monkeypatch.setattr(cuda, "working", lambda c, device, *rest: whole(c if device == good else [], device, *rest))
    assert on_card(device="auto").device == "cpu"
    assert "continuing without a device: cpu:0" in caplog.text
    with pytest.raises(DeviceError, match="cpu:0"):
        on_card()


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


def test_a_host_programs_tf32_does_not_reach_the_network() -> None:
    before = torch.backends.fp32_precision
    torch.backends.fp32_precision = "tf32"
    try:
        with exact.exact(), exact.exact():
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = before


def test_the_exact_context_holds_until_the_last_one_is_out() -> None:
    before = torch.backends.cudnn.conv.fp32_precision
    first, second = exact.exact(), exact.exact()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    second.__exit__(None, None, None)
    assert torch.backends.cudnn.conv.fp32_precision == before


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


BENCHMARK = str(Path(__file__).parent.parent / "benchmarks" / "gpu.py")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a CUDA device")
def test_the_benchmark_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [BENCHMARK])
    with pytest.raises(SystemExit, match="no CUDA device here"):
        runpy.run_path(BENCHMARK, run_name="__main__")


@pytest.mark.slow
def test_the_benchmark_measures_what_it_can_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--device", "cpu", "--count", "4", "--seconds", "0.01", "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", [BENCHMARK, *arguments])
    runpy.run_path(BENCHMARK, run_name="__main__")
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert figures["fp32, worst error over spread"] < 1e-3
    for name in ("fp32, batch 4, fused", "extract", "network, busy"):
        assert figures[name] > 0
