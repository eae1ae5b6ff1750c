"""disk: what a name holds is replaced, never followed, and nothing but files is opened."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rn50feat.durable.disk import DISK, advice, close, open_regular


def test_a_new_file_takes_the_place_of_a_link_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "new").symlink_to("target")
    handle = DISK.create(tmp_path / "new")
    DISK.write(handle, b"0123456789", 2)
    DISK.truncate(handle, 5)
    DISK.sync(handle)
    close(handle)
    close(handle)  # an error here can lose nothing
    DISK.sync_folder(tmp_path)
    assert (tmp_path / "new").read_bytes() == b"\0\x00012"
    assert (tmp_path / "target").read_bytes() == b"precious"


def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/null"), tmp_path / "missing"):
        with pytest.raises(OSError):
            open_regular(path)
    (tmp_path / "file").write_bytes(b"content")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"content"


def test_an_error_comes_with_what_helps() -> None:
    assert advice(OSError(errno.ENOSPC, "")) == "free some space"
    assert advice(OSError("unknown")) == "check the disk"
