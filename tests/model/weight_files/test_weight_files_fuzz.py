"""Broken weight files, `FUZZ_FILES` of each kind: one is refused in one line, or gives tensors of the right shapes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import fuzzed
import pytest
from checkpoints import write_v1, write_v2
from mutations import mutated
from published import Tensors, same, slim_variables, state

from rn50feat.errors import WeightsError
from rn50feat.model import weight_files
from rn50feat.model.weight_files import names

pytestmark = pytest.mark.slow

FILES = int(os.environ.get("FUZZ_FILES", "80"))
TENSORS = state(narrower=64)
SHAPES = {name: value.shape for name, value in TENSORS.items()}


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "WIDTH", 1)


def outcome(path: Path) -> Tensors | None:
    """Return the tensors of a file, or None when it is refused, in one line."""
    try:
        return weight_files.read(path).tensors
    except WeightsError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return None


@pytest.mark.parametrize("kind", fuzzed.WRITERS)
def test_broken_files_of_keras(tmp_path: Path, kind: str) -> None:
    """In a process beside this one, as the program itself does: HDF5 may crash or hang over a broken file."""
    outcomes: list[str] = []
    while len(outcomes) < FILES:
        command = [sys.executable, "-W", "error", fuzzed.__file__, kind, str(len(outcomes)), str(FILES), str(tmp_path)]
        run = subprocess.run(command, capture_output=True, encoding="utf-8")
        assert run.returncode <= 0, run.stderr
        lines = run.stdout.split()
        outcomes += lines[1::2] + ["died"] * (len(lines) % 2)
    assert len(outcomes) == FILES
    assert outcomes.count("refused") > FILES / 10
    assert outcomes.count("died") < FILES / 20


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_broken_checkpoints_are_refused_or_right(tmp_path: Path, form: str) -> None:
    write, rng = {"v1": write_v1, "v2": write_v2}[form], random.Random(form)
    path = write(tmp_path / "x.ckpt", slim_variables(TENSORS), block_size=20_000)
    files = {file: file.read_bytes() for file in weight_files.files(path)}
    refused = 0
    for _ in range(FILES):
        spoiled = rng.choice(list(files))
        spoiled.write_bytes(mutated(files[spoiled], files[spoiled][500:], rng))
        tensors = outcome(path)
        spoiled.write_bytes(files[spoiled])
        if tensors is None:
            refused += 1
        else:  # every byte that matters has a checksum
            same(tensors, TENSORS)
    assert refused > FILES / 2


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_checkpoints_broken_before_their_checksums_were_made(tmp_path: Path, form: str) -> None:
    """A checksum tells of accidents, not of malice: what is inside is not trusted either."""
    write, rng = {"v1": write_v1, "v2": write_v2}[form], random.Random(form)

    def spoil(block: bytes) -> bytes:
        changed = bytearray(block)
        for _ in range(rng.choice([0, 0, 1, 3])):
            at = rng.randrange(len(block) - 60, len(block)) if rng.random() < 0.2 else rng.randrange(len(block))
            changed[max(at, 0)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        return bytes(changed)

    refused = 0
    for _ in range(FILES // 2):
        tensors = outcome(write(tmp_path / "x.ckpt", slim_variables(TENSORS), block_size=60_000, spoil=spoil))
        if tensors is None:
            refused += 1
        else:
            assert {name: value.shape for name, value in tensors.items()} == SHAPES
    assert refused > FILES / 10
