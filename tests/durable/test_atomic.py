"""atomic: files are written as wholes, and what a killed program left is removed by the next."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rn50feat.durable import atomic
from rn50feat.errors import ExchangeError

KILLED = """
import os, signal, sys
from pathlib import Path
from rn50feat.durable.atomic import written
with written([Path("page.html")]) as (file,):
    file.write(b"half")
    file.flush()
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def half(tmp_path: Path) -> subprocess.Popen[bytes]:
    """A program that is in the middle of writing page.html."""
    process = subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path, stdin=-1, stdout=-1)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_what_a_killed_program_left_is_removed_by_the_next(tmp_path: Path, half: subprocess.Popen[bytes]) -> None:
    (left,) = tmp_path.iterdir()
    (tmp_path / ".page.html.notes.part").touch()
    with atomic.written([tmp_path / "page.html"]) as (file,):
        assert left.exists()  # it is still being written
        file.write(b"whole")
    assert left.exists()
    half.send_signal(signal.SIGKILL)
    half.communicate()
    with atomic.written([tmp_path / "page.html"]) as (file,):
        file.write(b"new")
    assert sorted(os.listdir(tmp_path)) == [".page.html.notes.part", "page.html"]
    assert (tmp_path / "page.html").read_bytes() == b"new"


def test_two_at_once_are_both_written(tmp_path: Path, half: subprocess.Popen[bytes]) -> None:
    with atomic.written([tmp_path / "page.html"]) as (file,):
        file.write(b"whole")
    half.communicate(b"")
    assert half.returncode == 0
    assert os.listdir(tmp_path) == ["page.html"]
    assert (tmp_path / "page.html").read_bytes() == b"half"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO])
def test_a_disk_that_takes_no_change_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic.DISK, "rename", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ExchangeError, match=rf"page.html cannot be written \({os.strerror(code)}\)"):
        with atomic.written([tmp_path / "page.html"]) as (file,):
            file.write(b"whole")
