"""errors: numbers and sizes in words, and several errors at once."""

from __future__ import annotations

import pytest

from rn50feat import errors


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1 kB"), (2.5e9, "2.5 GB")]
)
def test_sizes(number: float, words: str) -> None:
    assert errors.size(number) == words


def test_several_errors_are_one_with_the_highest_exit_code() -> None:
    errors.raise_all([])
    one, other = errors.SourceError("a is gone"), errors.TooManyFailuresError("b failed")
    with pytest.raises(errors.SourceError) as single:
        errors.raise_all([one])
    assert single.value is one
    with pytest.raises(errors.SeveralErrors, match="^a is gone; b failed$") as both:
        errors.raise_all([one, other])
    assert both.value.exit_code == max(one.exit_code, other.exit_code) > 1
