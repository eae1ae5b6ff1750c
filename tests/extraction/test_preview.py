"""preview: a dry run tells, and does nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import Run
from fake import FakeStart, extract


def test_dry_run_tells_and_does_nothing(rn50feat: Run, shades: Path, start: FakeStart) -> None:
    done = rn50feat("extract", "pictures", "out.h5", "--weights", "random", "--dry-run")
    assert done.stdout == (
        "at most 20 to compute, 0 unchanged, 0 failed before, 0 ignored, 0 to remove;"
        " about 264 kB, time unknown before a first run\n"
    )
    assert not (shades.parent / "out.h5").exists()
    extract(shades, start, dtype="float16")
    before = (shades.parent / "out.h5").read_bytes()
    assert len(before) == pytest.approx(264_000, rel=0.05)
    (shades / "bad.png").write_text("no picture")
    (shades / "00.png").unlink()
    done = rn50feat("extract", "pictures", "out.h5", "--prune", "--dry-run", "--json")
    expected = json.loads(done.stdout)
    assert (expected["compute"], expected["unchanged"], expected["remove"]) == (1, 19, 1)
    assert len(before) < expected["bytes"] < 1.01 * len(before)  # there is room in the chunk
    told = rn50feat("extract", "pictures", "out.h5", "--dry-run").stdout
    assert re.search(r"^at most 1 to compute, .*; about \d+ kB, in about \d+ s$", told)
    assert expected["seconds"] > 0
    assert (shades.parent / "out.h5").read_bytes() == before
    assert rn50feat("extract", "pictures", "out.h5", "--weights", "random:9", "--dry-run").returncode == 1
