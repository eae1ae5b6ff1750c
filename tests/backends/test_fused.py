"""fused: the folded network computes what the plain one does, on each library."""

from __future__ import annotations

import pytest
import torch
from streams import cudnn_add_relu

from rn50feat.backends import fused
from rn50feat.model import network, weights
from rn50feat.model.variants import VARIANTS


@pytest.fixture(scope="module", params=["torchvision", "keras", "slim"])
def resnet(request: pytest.FixtureRequest) -> torch.nn.Module:
    return network.load(weights.find("random"), VARIANTS[request.param]).module


def images(count: int, side: int = 33) -> torch.Tensor:
    values = torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(0))
    return values.to(memory_format=torch.channels_last)


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
