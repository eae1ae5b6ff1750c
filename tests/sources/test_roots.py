"""roots: where the walks of a run start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from packing import tar

from rn50feat.errors import SourceError
from rn50feat.sources.roots import roots


def starts(sources: list[str | Path]) -> list[str]:
    return [root.path for root in roots(sources)]


def test_sources_inside_others_are_dropped(tmp_path: Path) -> None:
    for name in ("a", "ab"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/1").touch()
    assert starts([tmp_path / "a", tmp_path / "ab", tmp_path / "a/1", tmp_path / "a"]) == [
        str(tmp_path / "a"),
        str(tmp_path / "ab"),
    ]


def test_two_dots_after_a_link_lead_to_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "there/deep").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "here/link").symlink_to(tmp_path / "there/deep")
    for folder in ("here", "there"):
        (tmp_path / folder / "x").mkdir()
    assert starts([tmp_path / "here/link/../x"]) == [str(tmp_path / "there/x")]
    assert starts([tmp_path / "here/link/.."]) == [str(tmp_path / "there")]


@pytest.mark.parametrize("name", ["missing", "pipe"])
def test_a_source_that_cannot_be_used_is_named(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match=f"{name}.*: name "):
        starts([tmp_path / name])


def test_ranges_of_names_are_written_out_as_in_a_shell(tmp_path: Path) -> None:
    for i in (8, 9, 10, 11):
        tar(tmp_path / f"s-{i:03}.tar", [])
        tar(tmp_path / f"t{i}.tar", [])
    names = [os.path.basename(root) for root in starts([tmp_path / "s-{008..011}.tar"])]
    assert names == ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]
    assert len(starts([tmp_path / "t{8..11}.tar"])) == 4
    falling = [os.path.basename(root) for root in starts([tmp_path / "s-{011..008}.tar"])]
    assert falling == names[::-1]
    with pytest.raises(SourceError, match=r"s-012.tar: No such file"):
        starts([tmp_path / "s-{008..012}.tar"])
    for wide in ("{0..9999999}", "{9999999..0}"):
        with pytest.raises(SourceError, match="stands for more than 1000000 sources"):
            starts([f"s3://bucket/{wide}.tar"])
    (tmp_path / "x{1..2}.tar").touch()
    assert starts([tmp_path / "x{1..2}.tar"]) == [str(tmp_path / "x{1..2}.tar")]
