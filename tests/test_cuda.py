"""backends.cuda and backends.fused: what a GPU computes, played on the CPU; and on a GPU where there is one."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_network import backend, cosines

from rn50feat import network, weights
from rn50feat.backends import cuda, fused
from rn50feat.backends import torch as torch_backend
from rn50feat.backends.torch import TorchBackend, _devices
from rn50feat.engines import EngineOptions
from rn50feat.errors import DeviceError
from rn50feat.provenance import Preprocessing
from rn50feat.variants import VARIANTS

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module", params=list(VARIANTS))
def resnet(request: pytest.FixtureRequest) -> torch.nn.Module:
    return network.load(weights.find("random"), VARIANTS[request.param]).module


def pictures(count: int, side: int = 96) -> torch.Tensor:
    values = torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(0))
    return values.to(memory_format=torch.channels_last)


def cudnn_relu(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> torch.Tensor:
    return torch.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()


def cudnn_add_relu(x: Any, weight: Any, z: Any, alpha: float, *rest: Any) -> torch.Tensor:
    bias, stride, padding, dilation, groups = rest
    return (torch.conv2d(x, weight, bias, stride, padding, dilation, groups) + alpha * z).relu()


@pytest.mark.parametrize("library", ["plain", "_onednn", "_cudnn"])
def test_a_fused_network_computes_what_the_plain_one_does(
    resnet: torch.nn.Module, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name, definition in (("cudnn_convolution_relu", cudnn_relu), ("cudnn_convolution_add_relu", cudnn_add_relu)):
        # Called by position, and defined by what cuDNN documents.
        monkeypatch.setattr(torch, name, lambda *a, name=name, f=definition: (calls.append(name), f(*a))[1])
    batch = pictures(3)
    before = batch.clone()
    with torch.inference_mode():
        expected = resnet(batch)
        found = fused.Fused(resnet, getattr(fused, library))(batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch, before)  # what oneDNN overwrites is its own
    if library == "_cudnn":
        assert (calls.count("cudnn_convolution_relu"), calls.count("cudnn_convolution_add_relu")) == (33, 16)


def test_the_cpu_fuses_and_a_library_without_the_calls_is_left_alone(
    resnet: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(fused.fused(resnet, pictures(1)), fused.Fused)

    def refuse(*arguments: object) -> torch.Tensor:
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    monkeypatch.setattr(fused, "_onednn", refuse)
    assert fused.fused(resnet, pictures(1)) is resnet


class Toy(torch.nn.Module):
    """A network whose features are the mean colours; on a played GPU that holds `most` pictures."""

    def __init__(self, most: int = 10**6) -> None:
        super().__init__()
        self.most, self.sizes = most, []

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(crops))
        if len(crops) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        means = torch.zeros(len(crops), 2048)
        means[:, :3] = crops.float().mean(dim=(1, 2))
        if Graph.capturing is not None:
            Graph.capturing.captured = (self, crops, means)
        return means


class Graph:
    """A CUDA graph that computes again what was captured, on the same buffers."""

    capturing: Graph | None = None
    captures = replays = 0

    def replay(self) -> None:
        Graph.replays += 1
        module, crops, output = self.captured
        output.copy_(module.forward(crops))

    @staticmethod
    @contextlib.contextmanager
    def capture(graph: Graph, **settings: object) -> Iterator[None]:
        assert settings["capture_error_mode"] == "thread_local"
        Graph.captures += 1
        Graph.capturing = graph
        yield
        Graph.capturing = None


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device played by the CPU: streams, events and pinned memory do nothing."""
    zeros = torch.zeros
    nothing = SimpleNamespace(
        wait_stream=lambda other: None, synchronize=lambda: None, record=lambda: None, query=lambda: True
    )
    monkeypatch.setattr(torch, "zeros", lambda *a, pin_memory=False, **settings: zeros(*a, **settings))
    for name in ("Stream", "Event", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *a, **settings: nothing)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda *a: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Graph.capture)
    Graph.captures = Graph.replays = 0


def shaded(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.uint8)[:, None, None, None] * np.ones((8, 8, 3), np.uint8)


def played_backend(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> TorchBackend:
    """A backend on the lanes of one played device."""
    lanes = [cuda.Lane(cuda.once(lambda: toy), torch.device("cpu"), Preprocessing(crop=8)) for _ in range(cuda.LANES)]
    monkeypatch.setattr(torch_backend, "_devices", lambda name: [torch.device("cuda", 0)])
    monkeypatch.setattr(torch_backend, "_cuda_lanes", lambda *arguments: lanes)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40))
    return TorchBackend(network.Network(toy, "00"), Preprocessing(), device="cuda", precision="auto")


def test_a_lane_pads_the_last_batch_and_captures_once(played: None) -> None:
    lane = cuda.Lane(lambda: Toy(), torch.device("cpu"), Preprocessing(crop=8))
    for count in (5, 5, 2, 1):
        rows = lane.features(shaded(count), 100)
        assert rows.shape == (count, 2048)
        assert rows[:, 0].tolist() == list(range(1, count + 1))
        kept = rows.copy()
        lane.features(shaded(1), 100)
        assert np.array_equal(rows, kept)  # rows are the caller's, not the lane's buffer
    assert (Graph.captures, Graph.replays) == (1, 8)
    assert lane.features(shaded(7), 100)[:, 0].tolist() == list(range(1, 8))
    assert Graph.captures == 2  # a larger batch needs a graph of its own


def test_a_graph_that_is_too_large_is_captured_again_for_half_the_batch(
    played: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy(most=3)
    made = played_backend(toy, monkeypatch)
    assert (made.lanes, made.batch_size, made.precision, made.device) == (cuda.LANES, cuda.LARGEST, "fp16", "cuda:0")
    assert made.features(shaded(11))[:, 0].tolist() == list(range(1, 12))
    captures, sizes = Graph.captures, toy.sizes.copy()
    assert sizes[0] == 11  # whole at first, then halved until it fits
    assert set(sizes[-5:]) == {2}
    assert made.features(shaded(4))[:, 0].tolist() == [1, 2, 3, 4]
    assert Graph.captures == captures
    refused = played_backend(Toy(most=0), monkeypatch)
    with pytest.raises(DeviceError, match="too little memory for one picture"):
        refused.features(shaded(5))


def test_lanes_of_one_device_share_a_network_and_serve_threads_at_once(played: None) -> None:
    built: list[int] = []
    build: Callable[[], torch.nn.Module] = cuda.once(lambda: (built.append(1), Toy())[1])
    lanes = [cuda.Lane(build, torch.device("cpu"), Preprocessing(crop=8)) for _ in range(cuda.LANES)]
    found: dict[int, np.ndarray] = {}

    def serve(i: int) -> None:
        found[i] = lanes[i].features(shaded(3 + i), 100)

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i][:, 0].tolist() for i in range(2)] == [[1, 2, 3], [1, 2, 3, 4]]
    assert built == [1]


@pytest.mark.parametrize(
    ("free", "itemsize", "expected"), [(80 << 30, 2, 256), (8 << 30, 2, 256), (4 << 30, 4, 64), (1 << 20, 2, 1)]
)
def test_the_batch_is_what_free_memory_has_room_for(
    free: int, itemsize: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    assert cuda.batch_size(torch.device("cuda", 0), itemsize) == expected


def test_cuda_means_all_devices_and_a_number_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [str(each) for each in _devices("cuda")] == ["cuda:0", "cuda:1", "cuda:2"]
    assert _devices("auto") == _devices("cuda")
    assert [str(each) for each in _devices("cuda:1")] == ["cuda:1"]
    assert [str(each) for each in _devices("cpu")] == ["cpu"]


@GPU
@pytest.mark.parametrize(("precision", "nearness"), [("fp32", 0.99999), ("fp16", 0.999), ("bf16", 0.999)])
def test_a_gpus_rows_are_those_of_the_cpu(precision: str, nearness: float) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (11, 224, 224, 3), np.uint8)
    expected = backend("fp32").features(crops)
    found = backend(precision, "cuda:0")
    whole = found.features(crops)
    assert cosines(whole, expected).min() > nearness
    np.testing.assert_allclose(found.features(crops[:4]), whole[:4], rtol=1e-2, atol=1e-3)


@GPU
def test_extract_on_all_gpus_with_either_decoder(tmp_path: Any, scenes: Any) -> None:
    import rn50feat

    stores = {}
    for decoder in ("cpu", "gpu"):
        options = EngineOptions(device="cuda", decoder=decoder)
        rn50feat.extract(scenes, tmp_path / f"{decoder}.h5", weights="random", options=options)
        stores[decoder] = rn50feat.FeatureStore(tmp_path / f"{decoder}.h5")
    with stores["cpu"].reading(), stores["gpu"].reading():
        cpu, gpu = (np.concatenate([block for _, block in store.blocks()]) for store in stores.values())
    assert cosines(cpu.astype(np.float32), gpu.astype(np.float32)).min() > 0.999
    assert Preprocessing() == stores["gpu"].provenance.preprocessing


BENCHMARK = Path(__file__).parent / "benchmarks" / "gpu.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a CUDA device")
def test_the_benchmark_says_that_there_is_no_gpu() -> None:
    done = subprocess.run([sys.executable, BENCHMARK], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "no CUDA device here" in done.stderr


def test_the_benchmark_measures_what_it_can_on_the_cpu(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--count", "4", "--seconds", "0.01", "--json", tmp_path / "figures.json"]
    subprocess.run([sys.executable, BENCHMARK, *arguments], check=True, capture_output=True, cwd=tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert figures["fp32, decoder cpu"] > 0.99999
    assert figures["bf16, decoder cpu"] > 0.999
    for name in ("fp32, batch 4, fused", "1 processes on cpu", "extract, decoder cpu", "network, busy"):
        assert figures[name] > 0
