"""The package index gets a description that it can show, and a source distribution whose tests pass."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that setuptools fills with the package's metadata and the names of what it packs."""
    folder = tmp_path_factory.mktemp("info")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "rn50feat.egg-info"


@pytest.fixture(scope="module")
def metadata(info: Path) -> Message:
    return Parser().parsestr((info / "PKG-INFO").read_text(encoding="utf-8"))


def test_the_description_stands_without_the_repository(metadata: Message) -> None:
    text = str(metadata.get_payload())
    assert text.startswith("# rn50feat\n")
    assert "[What a vector is]" not in text and "What a vector is (`docs/what-a-vector-is.md`)" in text
    assert re.findall(r"\]\((?!https?:).*?\)", text) == []


def test_the_metadata_name_authors_and_pythons(metadata: Message) -> None:
    assert metadata["Author"] == "rn50feat developers"
    assert metadata["Requires-Python"] == ">=3.10"
    pythons = [value for value in metadata.get_all("Classifier", []) if "Python :: 3." in value]
    assert f"Programming Language :: Python :: 3.{sys.version_info[1]}" in pythons


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="compares with the repository")
def test_the_source_distribution_holds_the_whole_repository(info: Path) -> None:
    packed = set((info / "SOURCES.txt").read_text(encoding="utf-8").splitlines())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert set(tracked.stdout.splitlines()) - packed == set()
