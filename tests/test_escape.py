"""escape: every name becomes one visible line."""

from __future__ import annotations

import pytest

from rn50feat.escape import as_text, one_line


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("plain ü 🦜.jpg", "plain ü 🦜.jpg"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        (r"a\nb", r"a\\nb"),
    ],
)
def test_what_cannot_be_seen_is_spelled_out(name: str, line: str) -> None:
    assert one_line(name) == as_text(name) == line


def test_bytes_that_are_not_utf8_stay_themselves_in_a_line_and_are_spelled_out_in_text() -> None:
    assert one_line("\udcff.jpg") == "\udcff.jpg"
    assert as_text("\udcff.jpg") == r"\xff.jpg"
