"""location: what kind of place a text names, and its one name; test_contract has what all kinds do alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from rn50feat.sources import contents
from rn50feat.sources.location import absolute, at, folders, is_plain, locate


def test_one_folder_has_one_name_however_it_is_reached(tmp_path: Path) -> None:
    (tmp_path / "real/pictures").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "album").symlink_to("real/pictures")
    assert locate(tmp_path / "link/pictures").path == str(tmp_path / "real/pictures")
    assert locate(tmp_path / "album").path == str(tmp_path / "album")


def test_a_file_that_is_named_like_a_member_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.tar::b.png").write_bytes(b"file")
    assert contents.read(at(str(tmp_path / "a.tar::b.png")).stat())[1] == b"file"
    assert locate(tmp_path / "a.tar::b.png").path == str(tmp_path / "a.tar::b.png")


def test_a_stored_path_is_relative_to_its_store_unless_it_is_a_place_of_its_own() -> None:
    assert absolute("a/b.jpg", "/data/") == "/data/a/b.jpg"
    for path in ("/a/b.jpg", "s3://bucket/b.jpg", "https://example.org/x.zip::b.jpg"):
        assert absolute(path, "/data/") == path
    assert absolute("ftp://example.org/b.jpg", "/data/") == "/data/ftp://example.org/b.jpg"


@pytest.mark.parametrize("path", ["a/b.jpg", "/a", "../a", "a/x.tar::../b", "../a.tar::b", "s3://bucket/../b"])
def test_paths_that_a_run_writes_are_plain(path: str) -> None:
    assert is_plain(path)


@pytest.mark.parametrize("path", ["", "..", "../../a", "..//a", "a/../b", "a//b", "./a", "../../a.tar::b"])
def test_paths_that_lead_elsewhere_are_not_plain(path: str) -> None:
    assert not is_plain(path)


def test_the_folders_of_a_location_are_named_and_an_archive_is_one() -> None:
    assert folders("/a/b/c.jpg") == folders("/a//./b/c.jpg") == ("a", "b")
    assert folders("/c.jpg") == ()
    assert folders("/a/x.tar::c.jpg") == ("a", "x")
    assert folders("/a/x.ZIP::./b/c.jpg") == ("a", "x", "b")
    assert folders("/a::b/c::d.jpg") == ("a::b",)
    assert folders("s3://bucket/x.tar::b/c.jpg") == ("s3:", "bucket", "x", "b")
