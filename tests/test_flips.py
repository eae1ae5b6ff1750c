"""A flipped byte anywhere in a store is noticed and can be repaired, or changes nothing.

RN50FEAT_FLIPS says how many trials to make, in place of 30.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flips import run

pytestmark = pytest.mark.slow


def test_no_flipped_byte_goes_unnoticed(tmp_path: Path) -> None:
    outcomes = run(tmp_path, int(os.environ.get("RN50FEAT_FLIPS", "30")))
    assert not [outcome for outcome in outcomes if outcome[0].startswith(("SILENT", "BUG")) or "WRONG" in outcome[1]]
