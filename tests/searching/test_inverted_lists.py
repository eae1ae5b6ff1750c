"""inverted_lists: merged lists have the rows that stay, codes first; FAISS reads what is written."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from rn50feat.errors import IndexingError
from rn50feat.searching import inverted_lists
from rn50feat.searching.best import NO_ROWS
from rn50feat.searching.inverted_lists import Lists, append, empty_section, merge


def part(path: Path, *lists: list[int]) -> Lists:
    """Append lists with these ids, whose codes are two bytes each, to a file."""
    with open(path, "ab") as file:
        arrays = [np.array(ids, np.int64) for ids in lists]
        contents = [(np.repeat(ids.astype(np.uint8), 2).tobytes(), ids.tobytes()) for ids in arrays]
        return append(file.write, path, file.tell(), 2, contents)


@pytest.mark.parametrize("piece", [2, 4, 200])
def test_rows_are_merged_list_by_list(tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_lists, "_PIECE", piece)
    old, new = part(tmp_path / "x", [1, 5, 3], [], [9]), part(tmp_path / "x", [], [2, 4], [6])
    wanted = np.array([1, 2, 3, 4, 6, 8])
    old, lacking = old.keep(wanted)
    assert wanted[lacking].tolist() == [2, 4, 6, 8]
    file = io.BytesIO()
    merge(file.write, [old, new], wanted)
    assert np.frombuffer(file.getvalue(), "<u8", 4, offset=24).tolist() == [3, 2, 2, 1]  # the sizes of 3 lists
    assert file.getvalue().endswith(
        bytes([1, 1, 3, 3]) + np.array([1, 3]).tobytes()
        + bytes([2, 2, 4, 4]) + np.array([2, 4]).tobytes()
        + bytes([6, 6]) + np.array([6]).tobytes()
    )  # fmt: skip


def test_a_file_that_is_cut_meanwhile_is_an_error(tmp_path: Path) -> None:
    lists = part(tmp_path / "x", [1, 2, 3])
    (tmp_path / "x").write_bytes(b"short")
    with pytest.raises(IndexingError, match="x became shorter while it was read: run the command again"):
        merge(lambda piece: None, [lists], NO_ROWS)


def test_without_rows_the_section_is_that_of_faiss() -> None:
    import faiss

    index = faiss.index_factory(8, "IVF4,Flat")
    assert faiss.serialize_index(index).tobytes().endswith(empty_section(4, 32))
