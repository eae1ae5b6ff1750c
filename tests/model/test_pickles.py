"""pickles: the tensors of torch and numpy, whatever else is in a file, and nothing in it is executed."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from rn50feat.model import pickles


class Options(dict):  # type: ignore[type-arg]
    """A dict with a name, as libraries for settings have it."""


CONTENT = {
    "state_dict": {
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "part": torch.arange(10.0)[3:7],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "half": torch.arange(3).half(),
        "brain": torch.arange(3).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    },
    "options": Options(lr=0.1),
    "nothing": argparse.Namespace(),
    "hyper_parameters": argparse.Namespace(lr=0.1, inner=argparse.Namespace(path=Path("x"))),
    "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]},
}


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_those_of_torch_next_to_classes_that_are_not_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "file.ckpt"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=zipped)
    tensors, others = pickles.flattened(pickles.read(path))
    for name, expected in CONTENT["state_dict"].items():
        found = tensors.pop(f"state_dict.{name}")
        assert (found.shape, found.load().dtype) == (tuple(expected.shape), expected.dtype)
        assert torch.equal(found.load(), expected.detach())
    assert list(tensors) == ["optimizer.state.0.exp_avg"]
    assert others["optimizer.param_groups.0.lr"] == 0.1
    for name in ("options", "nothing", "hyper_parameters"):
        assert isinstance(others[name], pickles.Unknown)
    assert others["hyper_parameters"].name == "argparse.Namespace"


@pytest.mark.parametrize("zipped", [True, False])
def test_two_names_of_one_tensor_have_one_place(tmp_path: Path, zipped: bool) -> None:
    values = torch.arange(4.0)
    content = {"a": values, "b": values, "c": values[1:], "d": values.clone()}
    torch.save(content, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    tensors, _ = pickles.flattened(pickles.read(tmp_path / "file"))
    assert len({tensors[name].place for name in "ab"}) == 1
    assert len({tensors[name].place for name in "abcd"}) == 3


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_numpy(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "whole": np.array(3, np.int64),
    }
    (tmp_path / "file.pkl").write_bytes(pickle.dumps({"blobs": arrays, "__author__": "me"}, protocol))
    tensors, others = pickles.flattened(pickles.read(tmp_path / "file.pkl"))
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[f"blobs.{name}"].load().numpy(), array)
    assert others == {"__author__": "me"}


def test_arrays_of_python_2(tmp_path: Path) -> None:
    """Its strings are bytes: written by hand, opcode by opcode."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R"
        b"(K\1K\2\x85cnumpy\ndtype\n"
        + text(b"f4")
        + b"K\0K\1\x87R(K\3"
        + text(b"<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
        b"\x89" + text(np.array([1.5, -2], np.float32).tobytes()) + b"tb"
    )
    (tmp_path / "file.pkl").write_bytes(b"\x80\2}" + text(b"conv1_w") + array + b"s.")
    tensors, _ = pickles.flattened(pickles.read(tmp_path / "file.pkl"))
    assert tensors["conv1_w"].load().tolist() == [1.5, -2]


class Evil:
    """Runs something when its pickle is read by Python itself."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, ...]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("zipped", [True, False, None])
def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool | None) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"a": Evil(Path.touch, Path("executed")), "b": Evil(exec, "open('executed', 'w')"), "c": [torch.ones(1)]}
    if zipped is None:
        Path("file").write_bytes(pickle.dumps({**content, "c": [np.ones(1)]}))
    else:
        torch.save(content, "file", _use_new_zipfile_serialization=zipped)
    tensors, others = pickles.flattened(pickles.read(Path("file")))
    assert [*tensors] == ["c.0"] and isinstance(others["a"], pickles.Unknown)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "attack",
    [
        b"c_codecs\nencode\nN}U\x0c__defaults__Nsb.",  # changes a function of this program
        b"c_codecs\nencode\n}U\x01xK\1sb.",
        b"ccollections\nOrderedDict\nN}U\x04copyNs\x86b.",
    ],
)
def test_a_pickle_cannot_change_this_program(tmp_path: Path, attack: bytes) -> None:
    before = {name: dict(vars(function)) for name, function in pickles._KNOWN.items()}
    (tmp_path / "file").write_bytes(b"\x80\2" + attack)
    with pytest.raises((pickle.UnpicklingError, TypeError, AttributeError, IndexError)):
        pickles.read(tmp_path / "file")
    assert {name: dict(vars(function)) for name, function in pickles._KNOWN.items()} == before


def test_content_that_holds_itself_ends(tmp_path: Path) -> None:
    endless: dict[str, object] = {"weight": np.ones(1)}
    endless["self"] = [endless]
    (tmp_path / "file").write_bytes(pickle.dumps(endless))
    assert list(pickles.flattened(pickles.read(tmp_path / "file"))[0]) == ["weight"]
