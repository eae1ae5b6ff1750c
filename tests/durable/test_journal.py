"""journal: one that makes no sense undoes nothing."""

from __future__ import annotations

import gc
import hashlib
import struct
from pathlib import Path

import pytest
from stores import store as made

from rn50feat import FeatureStore
from rn50feat.durable import rollback
from rn50feat.durable.journal import JournaledFile
from rn50feat.durable.rollback import PAGE, journal_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of 40 rows, and another that it may refer to."""
    made(tmp_path / "other.h5", [(f"{i}.jpg", 1, i + 1) for i in range(40)])
    return made(tmp_path / "out.h5", [(f"{i}.jpg", 1, i + 1) for i in range(40)])


def journal(length: int, numbers: list[int], path: Path, count: int | None = None) -> bytes:
    """Return a journal with a checksum that is right, of pages that are those of `path`."""
    content = b"rn50feat journal 1\n" + struct.pack("<QQ", length, len(numbers) if count is None else count)
    with open(path, "rb") as file:
        for number in numbers:
            file.seek(min(number, 1 << 30) * PAGE)
            page = file.read(PAGE).ljust(PAGE, b"\0")
            content += struct.pack(f"<Q{PAGE}s{PAGE}s", number, page, page)
    return content + hashlib.blake2b(content, digest_size=16).digest()


@pytest.mark.parametrize(
    ("length", "numbers", "count"),
    [
        (None, [1, 2], 5),
        (None, [1, 2], 1),
        (None, [1, 2], 1 << 63),
        (None, [2, 1], None),
        (None, [1, 1], None),
        (None, [1 << 60], None),
        (1 << 63, [1], None),
        (1 << 40, [1], None),
        (0, [1], None),
    ],
)
def test_a_journal_that_makes_no_sense_undoes_nothing(
    path: Path, length: int | None, numbers: list[int], count: int | None
) -> None:
    before = path.read_bytes()
    journal_path(path).write_bytes(journal(len(before) if length is None else length, numbers, path, count))
    assert len(FeatureStore(path)) == 40
    assert path.read_bytes() == before
    assert not rollback.left(path)


def test_a_journal_of_holes_is_not_read_to_its_end(path: Path) -> None:
    for head in (b"", b"rn50feat journal 1\n" + struct.pack("<QQ", path.stat().st_size, 1 << 26)):
        with open(journal_path(path), "wb") as file:
            file.write(head)
            file.truncate(len(b"rn50feat journal 1\n") + 16 + (1 << 26) * (8 + 2 * PAGE) + 16)  # 550 GB
        assert len(FeatureStore(path)) == 40


def test_a_file_that_cannot_be_opened_leaves_nothing_to_close(tmp_path: Path) -> None:
    """Python 3.13 reports errors of a finaliser, which closes a file whose ``__init__`` has failed."""
    with pytest.raises(FileNotFoundError):
        JournaledFile(tmp_path / "none.h5")
    gc.collect()
