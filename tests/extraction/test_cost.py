"""cost: milliseconds of a core by stage, and the share of them that could not be saved."""

from __future__ import annotations

import pytest

from rn50feat.extraction.cost import cost


def test_stages_add_up_to_what_the_whole_takes() -> None:
    found = cost(cores=2, reading=5000, decoding=500, network=200, together=125, shrinking=1000, multiply=0.006)
    assert found.spent == pytest.approx({"read": 0.2, "decode": 2, "network": 10, "rest": 3.8})
    assert found.least == pytest.approx({"read": 0.2, "decode": 1, "network": 6, "rest": 0})
    assert found.reached == pytest.approx(7.2 / 16)


def test_the_rest_is_never_negative() -> None:
    found = cost(cores=2, reading=5000, decoding=500, network=200, together=0, shrinking=400, multiply=0.006)
    assert found.spent["rest"] == 0
    assert found.least["decode"] == found.spent["decode"]
