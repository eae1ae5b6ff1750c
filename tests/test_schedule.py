"""The crontab line, units and log rotation in docs/nightly.md, run as cron and systemd would."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake import FakeStart
from readme import DOCS
from readme import blocks as blocks_of

import rn50feat
from rn50feat.cli.outcome import STOP_CODES
from rn50feat.errors import StoreLockedError

HERE = Path(__file__).parent


def blocks(language: str) -> list[str]:
    found = blocks_of(DOCS / "nightly.md", language)
    assert found
    return found


@pytest.fixture
def host(tmp_path: Path, pictures: Path, start: FakeStart) -> Path:
    """A machine below `tmp_path`, with the program, the photos and their store where the page has them."""
    (tmp_path / "data").mkdir()
    (tmp_path / "log").mkdir()
    pictures.rename(tmp_path / "data/photos")
    rn50feat.extract(tmp_path / "data/photos/sub", tmp_path / "data/photos.h5", weights="random", start=start)
    program = tmp_path / "rn50feat"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={HERE.parent} exec {sys.executable} {HERE}/slow.py 0 "$@"\n')
    program.chmod(0o755)
    return tmp_path


def placed(text: str, host: Path) -> str:
    """Return a text with the page's paths as they are on `host`."""
    text = text.replace("/usr/local/bin/rn50feat", f"{host}/rn50feat").replace("/var/log/rn50feat", f"{host}/log")
    return text.replace("/data/", f"{host}/data/")


def by_cron(crontab: str) -> subprocess.CompletedProcess[str]:
    """Run the one job of a crontab: by sh, with cron's environment, up to the first % that is not escaped."""
    (job,) = (line for line in crontab.splitlines() if line)
    command, *lines = re.split(r"(?<!\\)%", job.split(maxsplit=5)[5])
    return subprocess.run(
        ["/bin/sh", "-c", command.replace(r"\%", "%")], input="\n".join(lines), capture_output=True, encoding="utf-8",
        cwd="/", env={"HOME": "/", "LOGNAME": "photos", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


def service() -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(blocks("ini")[0])
    return unit


def by_systemd(host: Path) -> subprocess.CompletedProcess[str]:
    """Run ExecStart of the service: no shell, specifiers put in, a bare environment."""
    line = placed(service()["Service"]["ExecStart"], host)
    assert "%" not in line.replace("%%", ""), "a specifier"
    return subprocess.run(
        shlex.split(line.replace("%%", "%")), capture_output=True, encoding="utf-8",
        cwd="/", env={"HOME": "/", "PATH": "/usr/local/bin:/usr/bin:/bin"},
    )  # fmt: skip


def test_the_line_of_the_crontab_runs_and_logs(host: Path) -> None:
    (crontab,) = blocks("cron")
    done = by_cron(placed(crontab, host))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    logged = json.loads((host / "log/photos.jsonl").read_text().splitlines()[-1])
    assert (logged["new"], logged["unchanged"]) == (3, 2)
    (host / "data/photos/broken.png").write_text("no image")
    done = by_cron(placed(crontab, host))
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "more than 1 %" in done.stderr
    assert len((host / "log/photos.jsonl").read_text().splitlines()) >= 2


def test_an_unescaped_percent_sign_would_have_been_noticed(host: Path) -> None:
    (crontab,) = blocks("cron")
    by_cron(placed(crontab, host).replace(r"\%", "%"))
    assert not (host / "log/photos.jsonl").exists()


def test_the_service_runs(host: Path) -> None:
    assert by_systemd(host).returncode == 0
    assert len(rn50feat.FeatureStore(host / "data/photos.h5")) == 5
    (host / "data/photos/broken.png").write_text("no image")
    done = by_systemd(host)
    assert done.returncode == 4
    assert "more than 1 %" in done.stderr


def test_the_service_waits_for_its_disk_and_knows_which_ends_are_no_failure() -> None:
    unit = service()
    assert f"{unit['Unit']['RequiresMountsFor']} " in unit["Service"]["ExecStart"]
    assert unit["Service"]["User"] in blocks("logrotate")[0]
    ends = {int(code) for code in unit["Service"]["SuccessExitStatus"].split()}
    assert ends == {StoreLockedError.exit_code, STOP_CODES["SIGTERM"]}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze: apt-get install systemd")
def test_systemd_finds_no_fault_in_the_units(host: Path) -> None:
    for suffix, text in zip(("service", "timer"), blocks("ini")):
        (host / f"rn50feat.{suffix}").write_text(placed(text, host))
    names = [f"{host}/rn50feat.service", f"{host}/rn50feat.timer"]
    done = subprocess.run(["systemd-analyze", "verify", *names], capture_output=True, encoding="utf-8")
    told = [line for line in (done.stdout + done.stderr).splitlines() if "rn50feat" in line]
    assert (done.returncode, told) == (0, [])


@pytest.mark.skipif(shutil.which("logrotate") is None, reason="needs logrotate: apt-get install logrotate")
def test_logrotate_finds_no_fault_in_its_stanza(host: Path) -> None:
    user = subprocess.run(["id", "-un"], capture_output=True, encoding="utf-8").stdout.strip()
    group = subprocess.run(["id", "-gn"], capture_output=True, encoding="utf-8").stdout.strip()
    (stanza,) = blocks("logrotate")
    (host / "stanza").write_text(placed(stanza, host).replace("su photos photos", f"su {user} {group}"))
    (host / "stanza").chmod(0o644)
    (host / "log/photos.jsonl").write_text("{}\n")
    done = subprocess.run(
        ["logrotate", "--force", "--state", host / "state", host / "stanza"], capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (host / "log").iterdir()] == ["photos.jsonl.1"]
