"""apart: a process that reads, and what becomes of one that cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from keras_files import write_by_class, write_by_layer
from published import biases, keras_layers, state

from rn50feat.errors import WeightsError
from rn50feat.model import weight_files
from rn50feat.model.weight_files import apart

TENSORS = state(narrower=64)
LAYERS = keras_layers(TENSORS, biases(TENSORS))


def test_a_refusal_comes_through_as_it_is(tmp_path: Path) -> None:
    path = write_by_layer(tmp_path / "a file\udcff.h5", {"conv1_conv": {"kernel": np.ones((7, 7, 3, 9), np.float32)}})
    with pytest.raises(WeightsError, match=r"kernel:0 has shape \(7, 7, 3, 9\), not \(7, 7, 3, 64\)\): use") as caught:
        weight_files.read(path)
    assert str(caught.value).startswith(f"{path} is not the ResNet50 of keras.applications (conv1_conv/")


def test_a_bug_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_by_layer(tmp_path / "x.h5", LAYERS)
    (tmp_path / "h5py.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="x.h5 failed:\n(.*\n)*ZeroDivisionError"):
        weight_files.read(path)


def hanging(path: Path) -> Path:
    """Write a file over which HDF5 goes round for ever: a heap of names with a free piece of no size (HDF5 2.0)."""
    write_by_class(path, LAYERS)
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    at = heap + 16
    for _ in range(5):  # a piece: index, count, size in 8 bytes, and its content filled up to 8
        at += 16 + (int.from_bytes(content[at + 8 : at + 16], "little") + 7) // 8 * 8
    content[at : at + 16] = bytes(16)
    path.write_bytes(content)
    return path


def test_a_file_that_hdf5_hangs_over_is_refused_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "SECONDS", 5.0)
    with pytest.raises(WeightsError, match=r"x.h5 is a damaged HDF5 file \(.*\): download it again"):
        weight_files.read(hanging(tmp_path / "x.h5"))


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("os.kill(os.getpid(), 11)", r"is a damaged HDF5 file \(HDF5 crashed with SIGSEGV\): download it again"),
        (
            "os.kill(os.getpid(), 9)",
            "was not read: the process that read it was killed, perhaps for lack of memory: run",
        ),
        (
            "numpy.empty(1 << 40, numpy.uint8)",
            "is a damaged HDF5 file .Unable to allocate 1.00 TiB.*: download it again",
        ),
    ],
)
def test_a_process_that_crashes_or_wants_too_much_is_no_more_than_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, reason: str
) -> None:
    """A stand-in for h5py does at once what HDF5 does over the wrong bytes."""
    (tmp_path / "h5py.py").write_text(
        f"import numpy, os\nclass File:\n    def __init__(self, *_, **__): {end}\n"
        "class Dataset: pass\nclass Group: pass\nis_hdf5 = bool\n"
        "class h5z: FILTER_DEFLATE = FILTER_SHUFFLE = FILTER_FLETCHER32 = 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    write_by_class(tmp_path / "x.h5", {})
    with pytest.raises(WeightsError, match=f"x.h5 {reason}"):
        weight_files.read(tmp_path / "x.h5")
