"""cards: a name wraps where a reader expects it, and a link lasts as long as it can."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from PIL import Image
from scenes import encoded

from rn50feat.pages.cards import Cards, Field, file_fields, link, marked
from rn50feat.pages.thumbnails import Thumbnail


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("a/b-c_d.e.jpg", "a/b-|c_|d.|e[.jpg]"),
        ("no suffix", "no suffix"),
        (".hidden", ".|hidden"),
        ("a.averylongsuffix", "a.|averylongsuffix"),
        ("a&b/.x.PNG", "a&amp;b/.|x[.PNG]"),
    ],
)
def test_names_wrap_at_separators(path: str, wanted: str) -> None:
    shown = re.sub(r'<span class="suffix">(.*?)</span>', r"[\1]", marked(path)).replace("<wbr>", "|")
    assert re.sub("<.*?>", "", shown) == wanted


def test_links_are_relative_below_the_folder_of_the_page_and_the_one_above(tmp_path: Path) -> None:
    names = {"a folder/#1?.png": "a%20folder/%231%3F.png", "x:y.png": "x%3Ay.png", os.fsdecode(b"\xff.png"): "%FF.png"}
    for name, quoted in names.items():
        location = os.fspath(tmp_path / name)
        assert link(location, tmp_path / "page.html") == f"./{quoted}"
        assert link(location, tmp_path / "pages/page.html") == f"../{quoted}"
        assert link(location, tmp_path / "more/pages/page.html") == f"{tmp_path.as_uri()}/{quoted}"
    assert link("s3://bucket/x.png", tmp_path / "page.html") == ""


def test_a_file_has_its_size_dimensions_and_date(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (40, 30)), "PNG"))
    os.utime(path, (0, 86400 * 365))
    size = f"{path.stat().st_size} bytes"
    fields = [Field("size", size), Field("pixels", "40×30"), Field("date", "1971-01-01 00:00 UTC", large=True)]
    assert list(file_fields(str(path))) == fields
    assert list(file_fields(str(tmp_path / "none.png"))) == []
    path.write_bytes(b"text")
    assert next(iter(file_fields(str(path)))) == Field("size", "4 bytes")
    assert [field.name for field in file_fields(str(path))] == ["size", "date"]


def test_what_is_not_read_has_no_fields_but_what_is_known(tmp_path: Path) -> None:
    cards = Cards(iter([Thumbnail(b"", "is gone")] * 2), tmp_path / "page.html")
    assert "<dl" not in cards.card("hit 1", "a.png", "")
    card = cards.card("hit 1", "a.png", "", "<p>caption</p>", size=1234567)
    assert "<dt>size</dt> <dd>1.23 MB</dd>" in card
    assert 'id="image-2"' in card
    assert "The file is gone" in card
    assert "<a" not in card
