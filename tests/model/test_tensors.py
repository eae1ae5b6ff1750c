"""tensors: every form of weights file, and no other file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from networks import distance
from safetensors.torch import save_file

from rn50feat.errors import WeightsError
from rn50feat.model import network, weights

State = dict[str, torch.Tensor]


def save_zip(state: State, path: Path) -> None:
    torch.save(state, path)


def save_legacy(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_wrapped(state: State, path: Path) -> None:
    torch.save({"epoch": 90, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)


def save_bare(state: State, path: Path) -> None:
    kept = {n: v for n, v in state.items() if not n.startswith("fc.") and not n.endswith("num_batches_tracked")}
    torch.save(kept, path)


def save_safetensors(state: State, path: Path) -> None:
    save_file({name: value.contiguous() for name, value in state.items()}, path)


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_wrapped, save_bare, save_safetensors])
def test_every_form_of_weights_file_gives_the_same_network(
    resnet50: torch.nn.Module, tmp_path: Path, save: Callable[[State, Path], None]
) -> None:
    path = tmp_path / "weights"
    save(resnet50.state_dict(), path)
    loaded = network.load(weights.find(str(path)))
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert distance(loaded.module, resnet50) < 1e-5


def state_without(name: str) -> Callable[[State], State]:
    return lambda state: {other: value for other, value in state.items() if other != name}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda state: torchvision.models.resnet18().state_dict(), "is ResNet18, with 2-2-2-2 blocks"),
        (lambda state: torchvision.models.resnet101().state_dict(), "is ResNet101, with 3-4-23-3 blocks"),
        (lambda state: torchvision.models.wide_resnet50_2().state_dict(), "is a Wide ResNet"),
        (state_without("layer2.1.bn3.running_var"), "layer2.1.bn3.running_var is missing"),
        (lambda state: {**state, "bn1.bias": torch.full((64,), torch.nan)}, "bn1.bias has NaN or infinite"),
        (lambda state: {**state, "bn1.running_var": -torch.ones(64)}, "bn1.running_var has negative values"),
        (lambda state: [1, 2], "holds no tensors"),
        (lambda state: {"epoch": 3}, "holds no tensors"),
    ],
)
def test_a_file_that_is_no_resnet50_is_refused_by_its_first_wrong_tensor(
    resnet50: torch.nn.Module, tmp_path: Path, spoil: Callable[[State], object], reason: str
) -> None:
    path = tmp_path / "other.pth"
    torch.save(spoil(dict(resnet50.state_dict())), path)
    with pytest.raises(WeightsError, match=reason):
        network.load(weights.find(str(path)))


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("executed"),))


def test_nothing_in_a_weights_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Evil()}, "evil.pth")
    with pytest.raises(WeightsError, match=r"evil.pth holds more than tensors, .*: save model.state_dict\(\)$"):
        network.load(weights.find("evil.pth"))
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty: download it again$"),
        (b"just a text", "is not a weights file: use a ResNet50 state dict, .*weights$"),
        (b"root:x:0:0", "is not a weights file: use"),
        (b"\xff\xd8\xff\xe0" + bytes(range(256)), "is not a weights file: use a ResNet50 state dict, .*weights$"),
        (b"PK\3\4" + bytes(300), "is damaged or truncated: download it again$"),
        ((20).to_bytes(8, "little") + b'{"broken": ' + bytes(20), "damaged safetensors"),
        (bytes(257) + b"ustar" + bytes(250), "tar file of torch 0.1.*resnet50-0676ba61.pth instead"),
    ],
)
def test_a_damaged_file_is_told_from_weights(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        network.load(weights.find(str(tmp_path / "weights")))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_that_is_cut_off_is_told_as_that(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"conv1.weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WeightsError, match=r"cut.pth is damaged or truncated: download it again$"):
        network.load(weights.find(str(path)))
