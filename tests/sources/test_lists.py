"""lists: names of all kinds come back whole, and what is no list says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rn50feat.errors import SourceError
from rn50feat.sources import lists

ODD = ["a b", os.fsdecode(b"\xff\xfe"), "🦜", " leading", "quote'\"", "\\x", "tab\t"]


def written(folder: Path, content: bytes) -> Path:
    (folder / "list.txt").write_bytes(content)
    return folder / "list.txt"


def test_lines_come_as_they_are(tmp_path: Path) -> None:
    content = b"\n".join(map(os.fsencode, ODD)) + b"\n\nwindows\r\nlast"
    assert list(lists.names(written(tmp_path, content))) == [*ODD, "windows", "last"]


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [("\ufeff", "utf-8"), ("\ufeff", "utf-16-le"), ("\ufeff", "utf-16-be"), ("", "utf-16"), ("", "utf-32")],
)
def test_a_byte_order_mark_says_how_a_list_is_coded(tmp_path: Path, mark: str, encoding: str, null: bool) -> None:
    names = ["Köln 🦜.jpg", "\ufeffa", *(f"花/{i}" for i in range(20_000))]
    content = "".join(name + ("\0" if null else "\r\n") for name in names)
    assert list(lists.names(written(tmp_path, (mark + content).encode(encoding)), null=null)) == names


def test_a_list_that_is_not_what_its_mark_says_is_refused(tmp_path: Path) -> None:
    content = "first\nsecond\n".encode("utf-16")
    for odd, reason in (
        (content[:-1], "begins as UTF-16, but is damaged"),
        (content[:2] + b"\x00\xd8a\0", "begins as UTF-16, but is damaged"),
        (content[2:], "looks like UTF-16 without a byte order mark: save it as UTF-8"),
        (content[3:], "looks like UTF-16 without a byte order mark: save it as UTF-8"),
    ):
        with pytest.raises(SourceError, match=reason):
            list(lists.names(written(tmp_path, odd)))


def test_line_ends_of_both_kinds_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert list(lists.names(written(tmp_path, b"a\r\nb\r\n"))) == ["a", "b"]
    assert not caplog.records
    assert list(lists.names(written(tmp_path, b"a\r\nb\n"))) == ["a", "b"]
    assert "ends only some of its lines in CR LF" in caplog.text


@pytest.mark.parametrize("content", [b"a\r\n\r\nb\r\n\r\n", b"\r\na\r\nb\r\n\r", b"a\r\n\nb\r\n"])
def test_empty_lines_are_no_names_whatever_ends_them(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert list(lists.names(written(tmp_path, content))) == ["a", "b"]
    assert not caplog.records


def test_nuls_end_names_with_line_breaks(tmp_path: Path) -> None:
    odd = [*ODD, "line\nbreak", "end\r"]
    content = b"".join(os.fsencode(name) + b"\0" for name in odd)
    assert list(lists.names(written(tmp_path, content), null=True)) == odd
    assert [name for name in odd if not lists.fits_a_line(name)] == ["line\nbreak", "end\r"]


@pytest.mark.parametrize("length", [lists.LONGEST - 1, lists.LONGEST, 3 * lists.LONGEST])
def test_names_may_lie_across_the_blocks_of_a_list(tmp_path: Path, length: int) -> None:
    name = "name of forty characters, give or take"
    count = length // len(name)
    assert list(lists.names(written(tmp_path, f"{name}\n".encode() * count))) == [name] * count


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\0b\0", "has NULs in its lines: use -0"),
        (b"x" * (lists.LONGEST + 1), "is not a list of names"),
        (b"x\n" + b"y" * 10 * lists.LONGEST, "is not a list of names"),
    ],
)
def test_what_is_no_list_says_so(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(SourceError, match=f"list.txt {reason}"):
        list(lists.names(written(tmp_path, content)))


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for name, reason in (("none.txt", "No such file"), ("", "Is a directory")):
        with pytest.raises(SourceError, match=f"{reason}.*: name a file that lists images"):
            list(lists.names(tmp_path / name))


def test_standard_input_gives_what_is_there_before_it_has_ended(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from rn50feat.sources import lists\n"
        "for name in lists.names(Path('-')): print(name, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for name in (b"first\n", b"second\n"):
            process.stdin.write(name)
            process.stdin.flush()
            assert process.stdout.readline() == name
        assert process.communicate(b"third")[0] == b"third\n"


def test_a_set_of_names_tells_the_new_ones() -> None:
    names = lists.Names()
    assert [names.add(name) for name in (*ODD, *ODD, "new")] == [True] * len(ODD) + [False] * len(ODD) + [True]
