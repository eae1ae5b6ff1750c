"""multiplication: a time for each precision."""

from __future__ import annotations

import pytest

from rn50feat.backends import multiplication


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_time_is_measured(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiplication, "SIDE", 256)
    assert 0 < multiplication.least_seconds(precision, budget=0.0) < float("inf")
