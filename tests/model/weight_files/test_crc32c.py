"""The checksums of checkpoints: masked as LevelDB does, and what is said without the package."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_v2

from rn50feat.errors import WeightsError
from rn50feat.model import weight_files
from rn50feat.model.weight_files import crc32c


def test_the_mask_is_that_of_leveldb() -> None:
    # crc32c_test.cc of LevelDB: masking changes a checksum, and masking twice is not the identity
    assert crc32c.masked(b"foo") == ((0xCFC4AE1D >> 15 | 0xCFC4AE1D << 17) + 0xA282EAD8) % 2**32
    assert crc32c.masked(memoryview(b"foo")) == crc32c.masked(b"foo")


def test_without_the_package_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    write_v2(tmp_path / "x.ckpt", {"a": np.zeros(1, np.float32)})
    with pytest.raises(WeightsError, match="^checkpoints of TensorFlow need google-crc32c: pip install 'rn50.*slim.'$"):
        weight_files.read(tmp_path / "x.ckpt.index")
