"""limits: what a process may take of a container and of its ulimits."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rn50feat.durable import limits

Group = Callable[..., None]


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    """Put this process into the control groups that `lines` name, with files in them."""

    def put(*lines: str, **files: str) -> None:
        (tmp_path / "cgroup").write_text("".join(f"{line}\n" for line in lines))
        for name, text in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.setattr(limits, "GROUPS", tmp_path / "fs")
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    return put


@pytest.mark.parametrize(
    ("lines", "files", "cores"),
    [
        ([], {}, 64),
        (["0::/"], {"cpu.max": "max 100000\n"}, 64),
        (["0::/"], {"cpu.max": "50000 100000\n"}, 1),
        (["0::/"], {"cpu.max": "250000 100000\n"}, 3),
        (["0::/"], {"cpu.max": "9900000 100000\n"}, 64),
        (["0::/a/b"], {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2),
        (["0::/docker/ab12"], {"cpu.max": "200000 100000\n"}, 2),  # the path is the host's
        (["0::/../../x"], {"cpu.max": "200000 100000\n"}, 2),
        (["0::/", "3:cpu,cpuacct:/u"], {"cpu/u/cpu.cfs_quota_us": "-1", "cpu/u/cpu.cfs_period_us": "100000"}, 64),
        (["3:cpu,cpuacct:/u"], {"cpu/u/cpu.cfs_quota_us": "400000", "cpu/u/cpu.cfs_period_us": "100000"}, 4),
        (
            ["3:cpu,cpuacct:/docker/ab12"],
            {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            4,
        ),
        (["0::/"], {"cpu.max": "odd"}, 64),
    ],
)
def test_cores_are_those_of_the_quota(group: Group, lines: list[str], files: dict[str, str], cores: int) -> None:
    group(*lines, **files)
    assert limits.cores() == cores


def test_memory_is_what_the_machine_and_all_groups_leave(group: Group, tmp_path: Path) -> None:
    group("0::/a/b")
    assert limits.memory() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert limits.memory() == 8000 * 1024
    group("0::/a/b", **{"a/b/memory.max": "max", "a/b/memory.current": "0"})
    assert limits.memory() == 8000 * 1024
    group("0::/a/b", **{"a/memory.max": "5000000", "a/memory.current": "4000000"})
    assert limits.memory() == 1000000
    group("0::/a/b", **{"a/memory.stat": "anon 7\ninactive_file 500000\n"})
    assert limits.memory() == 1500000
    group("5:memory:/c", **{"memory/c/memory.limit_in_bytes": "700", "memory/c/memory.usage_in_bytes": "900"})
    assert limits.memory() == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "open files"),
        (OSError("Unable to open file (errno = 24, error message = 'Too many open files')"), "open files"),
        (OSError(errno.EFBIG, "File too large"), "the size of a file"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "processes and threads"),
        (RuntimeError("can't start new thread"), "processes and threads"),
        (MemoryError(), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (RuntimeError("std::bad_alloc"), "memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "memory"),
    ],
)
def test_errors_of_limits_name_the_limit(error: Exception, words: str) -> None:
    with (
        pytest.raises(limits.LimitError, match=f"(the limit on|no more) {words}.*: (raise it|use fewer)"),
        limits.explained(),
    ):
        raise error


def test_other_errors_stay_as_they_are() -> None:
    for error in (OSError(errno.EIO, "Input/output error"), RuntimeError("odd"), ValueError("std::bad_alloc")):
        with pytest.raises(type(error), match=str(error.args[-1])), limits.explained():
            raise error


def limited(limit: str, program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python program in `folder` under a ``ulimit``."""
    return subprocess.run(
        ["bash", "-c", f'ulimit {limit}; exec "$0" -c "$1"', sys.executable, program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


EXTRACT = """
import fake, rn50feat
try:
    summary = rn50feat.extract("pictures", "out.h5", weights="random", start=fake.LocalFakeStart())
    print(summary.new, "new", summary.failed, "failed")
except rn50feat.RN50FeatError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce these limits")
@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("-v 3000000", "5 new 0 failed"),
        ("-f 8", "the limit on the size of a file (ulimit -f 8) is too low: raise it"),
        ("-n 8", "the limit on open files (ulimit -n 8) is too low: raise it, or use fewer --workers"),
    ],
)
def test_a_run_stays_within_its_limits_or_names_the_one_it_meets(pictures: Path, limit: str, words: str) -> None:
    done = limited(limit, EXTRACT, pictures.parent)
    assert (done.stdout, done.stderr) == (f"{words}\n", "")


def test_a_working_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    # Without the working folder among the folders of modules, as in the installed program.
    program = "import os, sys; sys.path.remove(''); os.mkdir('w'); os.chdir('w'); os.rmdir('../w')"
    program += "; from rn50feat.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "bench"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "Error: the working folder is gone: change to one that exists\n"
