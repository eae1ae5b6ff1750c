"""Relations are remembered for as long as they are true."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from scenes import encoded, scene

from rn50feat import EngineOptions
from rn50feat.searching import relations as module
from rn50feat.searching.alignment import Compared
from rn50feat.searching.relations import Relations, relations_file
from rn50feat.sources import contents
from rn50feat.sources.reference import UNKNOWN, Reference

EXPECTED = [Compared("resized", True), None]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[Reference]]:
    """An image, a smaller copy, and a file that is no image."""
    image = scene(1, 120, 90)
    data = [encoded(image, "PNG"), encoded(image.resize((60, 45)), "PNG"), b"no image"]
    for i, content in enumerate(data):
        (tmp_path / f"{i}.png").write_bytes(content)
    yield [contents.digest(Reference(f"{tmp_path}/{i}.png", 0, 0)) for i in range(3)]


def found(folder: Path, files: list[Reference]) -> list[Compared | None]:
    with closing(Relations(folder / "out.h5", check=False, options=EngineOptions(workers=1))) as relations:
        return list(relations.of(files[0], files[1:]))


def test_they_are_read_from_their_file_the_next_time(tmp_path: Path, files: list[Reference]) -> None:
    assert found(tmp_path, files) == EXPECTED
    for file in files:
        Path(file).unlink()
    assert found(tmp_path, files) == EXPECTED
    relations_file(tmp_path / "out.h5").unlink()
    assert found(tmp_path, files) == [None, None]


def test_they_are_written_on_the_way(
    tmp_path: Path, files: list[Reference], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "COMMIT_SECONDS", 0.0)
    place = relations_file(tmp_path / "out.h5")
    with closing(Relations(tmp_path / "out.h5", check=False, options=EngineOptions(workers=1))) as relations:
        assert next(relations.of(files[0], files[1:])) == EXPECTED[0]
        assert place.exists()
    place.unlink()
    place.mkdir()  # now it cannot be written
    found(tmp_path, files)
    assert caplog.text.count("relations are not kept") == 1


@pytest.mark.parametrize("damage", [b"", b"rn50feat relations 0\n", b"rn50feat relations 1\n", None])
def test_a_damaged_file_is_written_anew(tmp_path: Path, files: list[Reference], damage: bytes | None) -> None:
    place = relations_file(tmp_path / "out.h5")
    found(tmp_path, files)
    whole = place.read_bytes()
    place.write_bytes(whole[:-1] + b"\7" if damage is None else damage)
    assert found(tmp_path, files) == EXPECTED
    assert place.read_bytes() == whole


def test_a_file_that_has_changed_or_was_never_known_is_not_compared(tmp_path: Path, files: list[Reference]) -> None:
    Path(files[1]).write_bytes(encoded(scene(1, 120, 90), "BMP"))
    unknown = Reference(files[0].location, files[0].size, files[0].mtime_ns, UNKNOWN)
    assert found(tmp_path, [files[0], files[1], unknown]) == [None, None]


def test_where_they_cannot_be_written_is_said(
    tmp_path: Path, files: list[Reference], caplog: pytest.LogCaptureFixture
) -> None:
    relations_file(tmp_path / "out.h5").mkdir()
    assert found(tmp_path, files) == EXPECTED
    assert "relations are not kept for the next time" in caplog.text
