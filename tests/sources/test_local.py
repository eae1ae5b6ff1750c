"""local: which files of this machine are found, under which names, and what is read of them."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from pathlib import Path

import pytest

from rn50feat.errors import SourceError
from rn50feat.sources import contents
from rn50feat.sources.reference import Reference
from rn50feat.sources.selection import Selection


def names(folder: Path, *more: Path) -> list[str]:
    found = Selection([folder, *more]).references()
    return [os.path.relpath(reference.location, folder) for reference in found]


def make(folder: Path, *files: str) -> None:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def test_files_come_sorted_and_folders_in_their_place(tmp_path: Path) -> None:
    make(tmp_path, "c", "a/2", "a/10", "b", "B/x", "a/sub/1")
    assert names(tmp_path) == ["B/x", "a/10", "a/2", "a/sub/1", "b", "c"]


def test_links_are_followed_but_no_folder_is_entered_twice(tmp_path: Path) -> None:
    make(tmp_path, "a/1", "b/2")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/self").symlink_to(".")
    (tmp_path / "c").symlink_to("b")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").symlink_to("b/2")
    assert names(tmp_path) == ["a/1", "b/2", "file"]


def test_real_folders_keep_their_names_and_links_come_last_once(tmp_path: Path) -> None:
    make(tmp_path, "in/z/1", "out/2", "out/sub/3", "more/4")
    (tmp_path / "in/a").symlink_to("z")
    (tmp_path / "in/b").symlink_to("../out")
    (tmp_path / "in/c").symlink_to("../out/sub")
    (tmp_path / "out/deeper").symlink_to("../more")
    assert names(tmp_path / "in") == ["z/1", "b/2", "b/sub/3", "b/deeper/4"]
    assert names(tmp_path / "in", tmp_path / "out") == ["z/1", "../out/2", "../out/sub/3", "../out/deeper/4"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's folders are elsewhere")
def test_what_the_kernel_makes_up_is_never_entered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "a")
    for name, target in (
        ("p", "/proc"), ("s", "/sys"), ("d", "/dev"), ("self", "/proc/self"), ("fd", "/dev/fd"), ("shm", "/dev/shm"),
    ):  # fmt: skip
        (tmp_path / name).symlink_to(target)
    (tmp_path / "file.png").symlink_to("/proc/version")
    assert names(tmp_path) == ["a"]
    assert f"{tmp_path}/p leads to /proc, where the system has no images: not followed" in caplog.text
    caplog.clear()
    assert names(Path("/proc/self")) == []
    assert "belongs to the system and has no images: not entered" in caplog.text


def test_only_regular_files_are_found(tmp_path: Path) -> None:
    make(tmp_path, "a")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert names(tmp_path) == ["a"]


def test_a_pipe_in_the_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="no longer a regular file"):
        contents.read(Reference(str(tmp_path / "pipe"), 1, 1))


def test_reading_gives_the_facts_of_the_bytes_that_were_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"new bytes")
    os.utime(path, ns=(5, 7))
    stale = Reference(str(path), 1, 1)
    reference, data = contents.read(stale)
    assert (data, reference.size, reference.mtime_ns) == (b"new bytes", 9, 7)
    assert reference == contents.digest(stale)
    assert reference.digest == hashlib.blake2b(b"new bytes", digest_size=16).digest()


def test_an_unreadable_file_says_why(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has vanished"):
        contents.read(Reference(str(tmp_path / "gone"), 1, 1))
