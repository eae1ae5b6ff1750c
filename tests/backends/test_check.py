"""check: a device proves that it computes the network before it is used."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from networks import backend
from streams import CARD, Player, cudnn_add_relu

from rn50feat.backends import check, cuda
from rn50feat.backends.torch import TorchBackend
from rn50feat.engines import local
from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import DeviceError
from rn50feat.images.provenance import Preprocessing
from rn50feat.model import weights

CPU = torch.device("cpu")


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
