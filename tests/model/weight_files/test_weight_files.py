"""weight_files: what is which kind of file, and which files belong to it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write_v1, write_v2
from keras_files import write_archive, write_by_class, write_by_layer
from safetensors.torch import save_file

from rn50feat.errors import WeightsError
from rn50feat.model import weight_files

LAYERS = {"conv1_conv": {"kernel": np.ones((7, 7, 3, 4), np.float32), "bias": np.ones(4, np.float32)}}
VARIABLES = {"resnet_v1_50/conv1/weights": np.ones((7, 7, 3, 4), np.float32)}


def test_files_are_told_by_their_content_not_by_their_names(tmp_path: Path) -> None:
    write_by_layer(tmp_path / "classic.keras", LAYERS)  # as Keras 2.12 and earlier did
    write_by_class(tmp_path / "numbered", LAYERS)
    write_archive(tmp_path / "archive.h5", LAYERS)
    write_v1(tmp_path / "single.ckpt", VARIABLES)
    write_v2(tmp_path / "bundle.ckpt", VARIABLES)
    tensor = {"conv1.weight": torch.ones(3)}
    torch.save(tensor, tmp_path / "zip.pth")
    torch.save(tensor, tmp_path / "pickle.pth", _use_new_zipfile_serialization=False)
    save_file(tensor, tmp_path / "some.safetensors")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut.keras").write_bytes((tmp_path / "archive.h5").read_bytes()[:-30])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    kinds = {path.name: weight_files.recognise(path) for path in tmp_path.iterdir()}
    assert {name for name, kind in kinds.items() if kind == "keras"} == {"classic.keras", "numbered", "archive.h5"}
    assert {name for name, kind in kinds.items() if kind == "checkpoint"} == {"single.ckpt", "bundle.ckpt.index"}
    assert len(kinds) == 12


def test_a_checkpoint_is_found_by_its_prefix_its_index_and_its_data(tmp_path: Path) -> None:
    index = write_v2(tmp_path / "x.ckpt-7", VARIABLES, shards=2)
    data = [tmp_path / f"x.ckpt-7.data-0000{i}-of-00002" for i in (0, 1)]
    assert {weight_files.resolve(path) for path in (tmp_path / "x.ckpt-7", index, *data)} == {index}
    assert weight_files.files(index) == (index, *data)
    single = write_v1(tmp_path / "y.ckpt", VARIABLES)
    write_v2(tmp_path / "y.ckpt", VARIABLES)  # both forms side by side: what exists is meant
    assert weight_files.resolve(single) == single
    assert weight_files.files(single) == (single,)
    plain = write_by_layer(tmp_path / "z.h5", LAYERS)
    assert (weight_files.resolve(plain), weight_files.files(plain)) == (plain, (plain,))
    assert weight_files.resolve(tmp_path / "gone.ckpt") is None


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\3\4 and no more"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="file is neither a Keras file nor a TensorFlow checkpoint: use one"):
        weight_files.read(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for ask in (weight_files.read, weight_files.files, weight_files.recognise):
        with pytest.raises(WeightsError, match=r"gone cannot be read \(No such file or directory\): fix that"):
            ask(tmp_path / "gone")


def test_checkpoints_need_no_h5py_and_nothing_needs_torch(tmp_path: Path) -> None:
    write_v1(tmp_path / "x.ckpt", VARIABLES)
    write_by_layer(tmp_path / "x.h5", LAYERS)
    for name, absent in (("x.ckpt", {"torch", "h5py"}), ("x.h5", {"torch"})):
        program = (
            "import sys; from pathlib import Path\n"
            "from rn50feat import errors; from rn50feat.model import weight_files\n"
            f"try: weight_files.read(Path({str(tmp_path / name)!r}))\n"
            f"except errors.WeightsError: print(sorted({absent!r} & set(sys.modules)))"
        )
        output = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
        assert output.stdout == "[]\n"
