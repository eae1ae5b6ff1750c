"""location: files are walked, looked up and read alike in folders, archives and remote storage."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from packing import packed
from remotes import Proxy, client, put

from rn50feat.errors import SourceError, TooLargeError, VanishedError
from rn50feat.sources import contents
from rn50feat.sources.archive import Archive, Member
from rn50feat.sources.local import Local
from rn50feat.sources.location import Location, at, locate
from rn50feat.sources.presence import identity, readable, state
from rn50feat.sources.reference import Reference
from rn50feat.sources.remote import Remote
from rn50feat.sources.selection import Selection

FILES = {"a/1.jpg": b"one", "a/b/2.jpg": b"the second", "empty": b"", "z ö.jpg": os.urandom(3 << 20)}


class Place:
    """A place of one kind that holds files: their locations are `start` and a name."""

    def __init__(self, kind: str, folder: Path, proxy: Proxy | None) -> None:
        self._folder, self._proxy = folder, proxy
        self._archive = f"x.{kind}" if kind in ("tar", "zip") else ""
        self.root = f"s3://bucket/{self._archive}".rstrip("/") if proxy else str(folder / self._archive)
        self.start = f"{self.root}{'::' if self._archive else '/'}"

    def at(self, name: str) -> Location:
        return at(self.start + name)

    def write(self, files: dict[str, bytes]) -> None:
        """Put files there instead of those that were there before."""
        if self._archive:
            files = {self._archive: packed(self._folder / self._archive, files.items()).read_bytes()}
        for path in self._folder.rglob("*"):
            if path.is_file():
                path.unlink()
        if self._proxy:
            s3 = client(self._proxy.port)
            for item in s3.list_objects_v2(Bucket="bucket").get("Contents", ()):
                s3.delete_object(Bucket="bucket", Key=item["Key"])
            put(self._proxy, **files)
            return
        for name, data in files.items():
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(data)

    def references(self) -> list[Reference]:
        """Return the files as a run meets them: those of a walk, or the members of the archive that it meets."""
        found: list[Reference] = []
        for one in Selection(self.root).found():
            assert isinstance(one, (Reference, Archive))
            found += one.members() if isinstance(one, Archive) else [one]
        return found


S3 = [pytest.param(f"s3 {kind}".strip(), marks=pytest.mark.network) for kind in ("", "tar", "zip")]


@pytest.fixture(params=["folder", "tar", "zip", *S3])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    kind = request.param.rpartition(" ")[2]
    made = Place(kind, tmp_path, request.getfixturevalue("proxy") if "s3" in request.param else None)
    made.write(FILES)
    return made


def test_a_walk_gives_every_file_in_order_as_a_look_at_it_does(place: Place) -> None:
    found = place.references()
    assert [reference.location for reference in found] == [place.start + name for name in FILES]
    assert [reference.size for reference in found] == [len(data) for data in FILES.values()]
    assert found == [place.at(name).stat() for name in FILES]
    assert [reference.offset for reference in found] == [place.at(name).stat().offset for name in FILES]


def test_a_walk_of_one_file_gives_that_file(place: Place) -> None:
    (one,) = place.at("a/b/2.jpg").walk()
    assert one.stat() == place.at("a/b/2.jpg").stat()


def test_bytes_come_with_the_facts_of_that_moment(place: Place) -> None:
    for reference, data in zip(place.references(), FILES.values()):
        now, read = contents.read(reference)
        assert read == data
        assert (now.location, now.size, now.mtime_ns) == (reference.location, reference.size, reference.mtime_ns)
        assert now.digest == blake2b(data, digest_size=16).digest()
        assert contents.digest(reference) == now
        assert contents.read(Reference(reference.location, -1, -1)) == (now, data)  # by name alone
        assert contents.head(reference, 2) == data[:2]


def test_a_file_that_is_too_large_is_not_read(place: Place) -> None:
    with pytest.raises(TooLargeError):
        contents.read(place.at("z ö.jpg").stat(), most=100)


def test_a_file_that_is_not_there_says_so(place: Place) -> None:
    missing = place.at("none.jpg")
    assert not missing.exists()
    assert place.at("a/1.jpg").exists()
    with pytest.raises(VanishedError):
        missing.stat()
    with pytest.raises(VanishedError):
        contents.read(Reference(missing.path, -1, -1))
    with pytest.raises(SourceError):
        contents.head(Reference(missing.path, 1, 1))


def test_a_change_shows(place: Place) -> None:
    before = {reference.location: reference for reference in place.references()}
    place.write({"a/1.jpg": b"another", "a/b/2.jpg": FILES["a/b/2.jpg"]})
    now, data = contents.read(Reference(place.start + "a/1.jpg", -1, -1))
    assert (data, now.size) == (b"another", 7)
    assert state(before[place.start + "a/1.jpg"]) == "changed"
    assert state(before[place.start + "empty"]) == "missing"
    assert [state(reference) for reference in place.references()] == ["present", "present"]


def test_a_location_has_one_text_and_one_kind(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: dict[bool, Any] = {True: Member, False: Remote if place.root.startswith("s3") else Local}
    for name in FILES:
        found = place.at(name)
        assert isinstance(found, kinds["::" in place.start])
        assert (found.path, locate(found.path).path) == (place.start + name, place.start + name)
        assert found.needs_network == place.root.startswith("s3")


def test_nothing_is_asked_of_another_machine_unless_that_is_wanted(place: Place) -> None:
    known = place.at("a/1.jpg").stat()
    remote = place.root.startswith("s3")
    assert state(known, check=False) == ("unchecked" if remote else "present")
    assert readable(known.location, check=False) == ("" if remote else known.location)
    assert readable(known.location, check=True) == known.location


def test_files_have_an_identity_of_their_own(place: Place) -> None:
    found = {identity(place.start + name) for name in FILES}
    assert len(found) == len(FILES)
    assert None not in found
