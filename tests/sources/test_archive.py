"""archives: members of tar and zip files behave as files do, and a damaged or hostile archive harms nothing."""

from __future__ import annotations

import io
import os
import random
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from conftest import Run, rows
from fake import FakeBackend, FakeStart
from packing import packed, packed_folder, tar, zip_of, zipped
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat import EngineOptions, FeatureStore
from rn50feat.engines.local import BUFFERS, LocalEngine
from rn50feat.engines.pool import DecoderPool
from rn50feat.errors import DamagedError, PruneError, QueryError, SourceError, VanishedError
from rn50feat.extraction.preview import preview
from rn50feat.images.provenance import Preprocessing
from rn50feat.searching.search import search_stored
from rn50feat.sources import archive as archives
from rn50feat.sources import contents
from rn50feat.sources.archive import Archive, join, split
from rn50feat.sources.local import Local
from rn50feat.sources.location import at, locate
from rn50feat.sources.reference import Reference
from rn50feat.sources.roots import roots
from rn50feat.sources.selection import Selection, Shard
from rn50feat.store.summary import Summary

KINDS = pytest.mark.parametrize("kind", ["tar", "zip"])


def shade(value: int) -> bytes:
    return encoded(Image.new("RGB", (30, 20), (value, 0, 0)), "PNG")


def opened(path: Path) -> Archive:
    file = Local(str(path))
    return Archive(file, file.stat())


def starts(sources: list[str | Path]) -> list[str]:
    return [root.path for root in roots(sources)]


def members(path: Path) -> dict[str, bytes]:
    """Return what `sources` finds in an archive, read one by one."""
    found = {}
    for reference in opened(path).members():
        read, data = contents.read(reference)
        assert read.size == reference.size == len(data)
        found[split(reference.location)[1]] = data
    return found


def extract(start: FakeStart, source: Path, **settings: object) -> Summary:
    return rn50feat.extract(source, source.parent / "out.h5", start=start, **{"weights": "random", **settings})


# Listing and reading


@KINDS
def test_members_come_in_their_order_whole(tmp_path: Path, kind: str) -> None:
    content = [("b/2", b"two" * 1000), ("a", b""), ("b/1", os.urandom(200_000)), ("ü 🦜\n", b"x")]
    assert list(members(packed(tmp_path / f"a.{kind}", content)).items()) == content


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_archives_of_all_formats(tmp_path: Path, format: int) -> None:
    content = [(f"{'folder/' * 20}{'long' * 12}", b"1"), (os.fsdecode(b"\xff\xfe.png"), b"2")]
    if format != tarfile.USTAR_FORMAT:
        content.append(("very" * 100, b"3"))
    assert list(members(tar(tmp_path / "a.tar", content, format)).items()) == content


DOS, NTFS, UNIX, MACOS, PKZIP_25 = 0x0014, 0x0B14, 0x0314, 0x1314, 0x0019
KÖLN = "Köln_花.jpg"


def unicode_path(raw: bytes, name: str, checksum: int | None = None) -> bytes:
    """Return Info-ZIP's field for the name in UTF-8 of a member with a `raw` one."""
    checksum = zlib.crc32(raw) if checksum is None else checksum
    field = b"\1" + checksum.to_bytes(4, "little") + name.encode()
    return struct.pack("<HHHHHH", 0x5455, 1, 0, 0, 0, 0)[:5] + struct.pack("<HH", 0x7075, len(field)) + field


@pytest.mark.parametrize(
    ("raw", "extra", "flags", "made_by", "name", "guessed"),
    [
        (KÖLN.encode(), b"", 0x800, DOS, KÖLN, ""),
        (KÖLN.encode(), b"", 0, UNIX, KÖLN, ""),  # macOS, and Info-ZIP before 3.0
        (KÖLN.encode(), b"", 0, MACOS, KÖLN, ""),
        (KÖLN.encode(), b"", 0, DOS, KÖLN, ""),
        ("Köln_?.jpg".encode("cp437"), unicode_path("Köln_?.jpg".encode("cp437"), KÖLN), 0, DOS, KÖLN, ""),
        (b"K\x94ln.jpg", unicode_path(b"", KÖLN, checksum=7), 0, DOS, "Köln.jpg", "CP437"),  # renamed since
        (b"K\x94ln.jpg", struct.pack("<HH", 0x7075, 900) + b"\1", 0, DOS, "Köln.jpg", "CP437"),  # cut off
        (b"K\x94ln.jpg", b"", 0, DOS, "Köln.jpg", "CP437"),
        (b"K\xf6ln.jpg", b"", 0, NTFS, "Köln.jpg", "CP1252"),
        (b"K\xf6ln.jpg", b"", 0, PKZIP_25, "Köln.jpg", "CP1252"),
        (b"K\xf6ln\x81.jpg", b"", 0, NTFS, "Köln\udc81.jpg", "CP1252"),
        (b"K\xf6ln.jpg", b"", 0, UNIX, "K\udcf6ln.jpg", "some are not UTF-8"),
        (b"K\xf6ln.jpg", b"", 0x800, DOS, "K\udcf6ln.jpg", "some are not UTF-8"),
        (b"plain.jpg", b"", 0, DOS, "plain.jpg", ""),
    ],
)
def test_names_in_a_zip_are_read_as_their_program_meant_them(
    tmp_path: Path, raw: bytes, extra: bytes, flags: int, made_by: int, name: str, guessed: str
) -> None:
    path = zip_of(tmp_path / "a.zip", [(raw, extra, flags, b"data")], made_by)
    assert members(path) == {name: b"data"}
    doubt = opened(path).listing().doubt
    assert guessed in doubt if guessed else doubt == ""


def test_one_name_that_cannot_be_utf8_settles_the_code_page_of_all(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", [(raw, b"", 0, b"x") for raw in (b"\xc3\xa4.jpg", b"\x94.jpg")])
    assert list(members(path)) == ["├ñ.jpg", "ö.jpg"]


def test_members_with_names_of_earlier_versions_are_still_found(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", [(KÖLN.encode(), b"", 0, b"data")], UNIX)
    for name in (KÖLN, KÖLN.encode().decode("cp437")):
        assert contents.read(at(f"{path}::{name}").stat())[1] == b"data"
    with pytest.raises(VanishedError):
        at(f"{path}::other.jpg").stat()


@pytest.mark.parametrize("kind", ["pax", "gnu", "gnu long", "pax binary"])
def test_tar_names_that_are_not_utf8_keep_their_bytes_and_are_told_of(tmp_path: Path, kind: str) -> None:
    name = "K\udcf6ln.jpg" if kind != "gnu long" else "K\udcf6ln" + "x" * 200
    made = tar(tmp_path / "a.tar", [(name, b"1")], tarfile.PAX_FORMAT if "pax" in kind else tarfile.GNU_FORMAT)
    if kind == "pax":  # as star and old versions of bsdtar write it: Latin-1, where the format wants UTF-8
        made.write_bytes(made.read_bytes().replace(b"hdrcharset=BINARY", b"hdrcharsex=BINARY"))
    assert members(made) == {name: b"1"}
    assert "some are not UTF-8: their bytes are kept" in opened(made).listing().doubt
    assert opened(tar(tmp_path / "b.tar", [(KÖLN, b"")])).listing().doubt == ""


def test_a_run_tells_of_names_that_it_had_to_guess(
    tmp_path: Path, start: FakeStart, caplog: pytest.LogCaptureFixture
) -> None:
    path = zip_of(tmp_path / "a.zip", [(b"K\x94ln.png", b"", 0, shade(9))])
    assert extract(start, path).new == 1
    assert list(rows(tmp_path / "out.h5")) == ["a.zip::Köln.png"]
    assert "a.zip does not name its code page: CP437 is assumed" in caplog.text
    caplog.clear()
    assert extract(start, path).unchanged == 1
    assert caplog.text == ""


class Pipe(io.BytesIO):
    """What cannot go back: checksums and sizes stand behind the bytes of a member."""

    def tell(self) -> int:
        raise OSError


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_archives_of_all_kinds(tmp_path: Path, method: int) -> None:
    content = {"plain": b"p" * 70_000, "é": os.urandom(100), "empty": b""}
    assert members(zipped(tmp_path / "a.zip", content.items(), method)) == content
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", method) as archive:
        for name, data in content.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=name == "plain") as member:
                member.write(data)
    (tmp_path / "b.zip").write_bytes(b"#!/bin/sh what unpacks it\n" + pipe.getvalue())
    assert members(tmp_path / "b.zip") == content


@pytest.mark.slow
def test_a_zip_of_more_members_than_16_bits_count(tmp_path: Path) -> None:
    content = [(f"{i}", b"") for i in range(70_000)]
    listing = opened(zipped(tmp_path / "a.zip", content, zipfile.ZIP_STORED)).listing()
    assert (list(listing.members), listing.fault) == ([name for name, _ in content], "")


@KINDS
def test_of_two_members_with_one_name_the_last_counts(tmp_path: Path, kind: str) -> None:
    with pytest.warns(UserWarning, match="Duplicate") if kind == "zip" else nullcontext():
        path = packed(tmp_path / f"a.{kind}", [("a", b"old"), ("b", b"b"), ("a", b"new")])
    assert list(members(path).items()) == [("b", b"b"), ("a", b"new")]


def test_links_folders_and_devices_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("folder", tarfile.DIRTYPE),
                           ("pipe", tarfile.FIFOTYPE), ("device", tarfile.CHRTYPE)):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("folder/", "")
    for name in ("a.tar", "a.zip"):
        assert members(tmp_path / name) == {}
        assert opened(tmp_path / name).listing().fault == ""


@KINDS
def test_a_member_is_found_by_name_alone(tmp_path: Path, kind: str) -> None:
    path = packed(tmp_path / f"a.{kind}", [("one", b"1"), ("../../x::y", b"22")])
    location = join(str(path), "../../x::y")
    assert at(location).stat().size == 2
    assert contents.read(Reference(location, -1, -1))[1] == b"22"
    assert locate(Path(location)).path == location
    with pytest.raises(VanishedError, match="has vanished from its archive"):
        contents.read(Reference(join(str(path), "three"), 1, 1))
    path.unlink()
    with pytest.raises(VanishedError):
        contents.read(Reference(location, -1, -1))
    assert not at(location).exists()


@KINDS
def test_a_member_is_never_read_where_it_was_in_an_archive_that_has_changed(tmp_path: Path, kind: str) -> None:
    path = packed(tmp_path / f"a.{kind}", [("a", b"aaaa"), ("b", b"bbbb")])
    _, old = opened(path).members()
    packed(path, [("b", b"BBBB"), ("c", b"cccc")])
    os.utime(path, ns=(1, 1))
    now, data = contents.read(old)
    assert (data, now.mtime_ns) == (b"BBBB", 1)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.xz"])
def test_an_archive_that_is_compressed_as_a_whole_is_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b...")
    with pytest.raises(SourceError, match=f"{name} is compressed as a whole.*uncompress it to a .tar"):
        starts([tmp_path / name])
    (tmp_path / name).rename(tmp_path / "b.tar")
    with pytest.raises(DamagedError, match="compressed as a whole"):
        opened(tmp_path / "b.tar").listing()


# Damaged and hostile archives


@KINDS
def test_no_cut_or_change_of_an_archive_gives_other_bytes_or_an_unknown_error(tmp_path: Path, kind: str) -> None:
    draw = random.Random(4)
    content = [(f"name{i}", draw.randbytes(700)) for i in range(6)]
    whole = packed(tmp_path / f"a.{kind}", content).read_bytes()
    path = tmp_path / f"b.{kind}"
    for trial in range(400):
        data = bytearray(whole if trial % 2 else whole[: draw.randrange(len(whole))])
        for _ in range(draw.choice([0, 1, 1, 4])):
            if data:
                data[draw.randrange(len(data))] = draw.choice([0, 0xFF, draw.randrange(256)])
        path.write_bytes(data)
        os.utime(path, ns=(trial, trial))
        try:
            for reference in opened(path).members():
                try:
                    read = contents.read(reference)[1]
                except SourceError:
                    continue
                name = split(reference.location)[1]
                assert kind == "tar" or read == dict(content).get(name, read), trial
        except SourceError:
            continue


def test_what_can_be_read_of_a_tar_is_read(tmp_path: Path) -> None:
    content = [(f"{i}.png", shade(i)) for i in range(4)]
    whole = tar(tmp_path / "a.tar", content).read_bytes()
    third = whole.index(b"2.png")
    for data, fault in (
        (whole[: third + 530], "is cut off or damaged at '2.png': it and what follows are not read"),
        (whole[: third + 100], "is damaged"),
        (whole[:third] + b"\xff" * 512 + whole[third + 512 :], f"is damaged at byte {third} of {len(whole)}"),
    ):
        (tmp_path / "b.tar").write_bytes(data)
        listing = opened(tmp_path / "b.tar").listing()
        assert list(listing.members) == ["0.png", "1.png"]
        assert listing.fault.startswith(fault)
    (tmp_path / "c.tar").write_bytes(whole[: third // 512 * 512])  # without the blocks that end it
    assert opened(tmp_path / "c.tar").listing().fault == ""


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "data",
    [
        header("a", -1024),
        header("a", 1 << 60) + b"x" * 512,
        header("a", 5) + b"x" * 512 + header("b", -1536),
        header("././@LongLink", 1 << 40, b"L") + b"x" * 2048,
        header("pax", 1 << 40, b"x") + b"x" * 2048,
        header("pax", -512, b"x") + b"x" * 2048,
        header("pax", 512, b"x") + b"999999999 path=x\n".ljust(512, b"\0") + header("b", 0),
        header("pax", 512, b"x") + b"27 GNU.sparse.map=1,zz,3,4\n".ljust(512, b"\0") + header("b", 0),
        header("sparse", 1 << 40, b"S") + b"x" * 512,
        header("pax", 0, b"x") * 5000,
    ],
)
def test_what_a_tar_declares_is_not_believed(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    tracemalloc.start()
    with suppress(DamagedError):
        members(tmp_path / "a.tar")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_zip_bomb_unpacks_no_further_than_it_declares(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", [("bomb", bytes(50_000_000)), ("b", b"b")])
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\1\2", 0, data.rindex(b"PK\1\2"))
    data[at + 24 : at + 28] = struct.pack("<L", 1000)  # of 50 million bytes
    path.write_bytes(data)
    bomb, _ = opened(path).members()
    tracemalloc.start()
    with pytest.raises(DamagedError, match="checksum does not match"):
        contents.read(bomb)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_members_that_share_their_bytes_are_left_out(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", [("a", b"a" * 100), ("b", b"b" * 100)], zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2") + 42 : data.rindex(b"PK\1\2") + 46] = struct.pack("<L", 10)
    path.write_bytes(data)
    listing = opened(path).listing()
    assert list(listing.members) == ["a"]
    assert "'b', which overlaps another member" in listing.fault


def test_what_cannot_be_unpacked_says_why(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", [("a", b"a" * 100), ("b", b"b" * 100)], zipfile.ZIP_LZMA)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\3\4", 10) + 6] |= 1
    path.write_bytes(data)
    first, second = opened(path).members()
    for reference, reason in ((first, "is packed by method 14"), (second, "is encrypted")):
        with pytest.raises(DamagedError, match=f"{reason}: pack it again"):
            contents.read(reference)


# In a run


@KINDS
def test_rows_of_members_are_those_of_their_files(pictures: Path, start: FakeStart, kind: str) -> None:
    extract(start, pictures)
    unpacked = rows(pictures.parent / "out.h5")
    os.remove(pictures.parent / "out.h5")
    archive = packed_folder(pictures.parent / f"a.{kind}", pictures)
    assert extract(start, archive).new == 5
    store = FeatureStore(pictures.parent / "out.h5")
    assert store.paths() == [path.replace("pictures/", f"a.{kind}::") for path in unpacked]
    assert all(
        (row == unpacked[path.replace(f"a.{kind}::", "pictures/")]).all() for path, row in rows(store.path).items()
    )
    assert store.column("mtime_ns").tolist() == [archive.stat().st_mtime_ns] * 5
    assert [reference.size for reference in store.references(0, 9)] == [
        path.stat().st_size for path in sorted(pictures.rglob("*.png"))
    ]


@KINDS
def test_a_member_is_a_source_and_the_whole_scope_of_a_run(tmp_path: Path, start: FakeStart, kind: str) -> None:
    path = packed(tmp_path / f"a.{kind}", [(f"sub/{i}.png", shade(i)) for i in range(4)])
    first, second = (Path(f"{path}::sub/{i}.png") for i in (0, 1))
    assert extract(start, path).new == 4
    packed(path, [(f"sub/{i}.png", shade(i + 9)) for i in range(2)])
    os.utime(path, ns=(1, 1))
    summary = rn50feat.extract([first], tmp_path / "out.h5", start=start, prune=True)
    assert (summary.changed, summary.removed, summary.found) == (1, 0, 1)
    assert [row[0] for row in rows(tmp_path / "out.h5").values()] == [9, 1, 2, 3]
    assert starts([first, second, first]) == [str(first), str(second)]
    assert starts([first, path]) == [str(path)]
    selections = [Selection(first, shard=Shard(number, 3)) for number in (1, 2, 3)]
    for selection in selections:
        assert selection.covers(str(first)) == bool(list(selection.references()))
        assert not selection.covers(str(second))
    with pytest.raises(SourceError, match=r"::none.png has vanished from its archive: name a member that is there"):
        starts([f"{path}::none.png"])


@KINDS
def test_decoding_processes_read_members_by_their_offsets(tmp_path: Path, kind: str) -> None:
    content = [(f"{i:02}.png", shade(i) if i % 4 else b"broken") for i in range(20)]
    archive = packed(tmp_path / f"a.{kind}", content)
    listed = list(opened(archive).members())
    pool = DecoderPool(Preprocessing(), slots=BUFFERS * 3, workers=2, max_pixels=10**7)
    with LocalEngine(FakeBackend(), pool, 3) as engine:
        batches = list(engine.embed([*listed, *(Reference(one.location, -1, -1) for one in listed)]))
    read = [reference for batch in batches for reference in batch.references]
    assert read == 2 * [contents.digest(one) for i, one in enumerate(listed) if i % 4]
    assert [row[0] for batch in batches for row in batch.features] == 2 * [i for i in range(20) if i % 4]
    assert {failure.cause for batch in batches for failure in batch.failures} == {"content"}


@KINDS
def test_an_archive_that_has_not_changed_is_not_opened(
    pictures: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (pictures / "label.txt").write_text("a landscape")
    (pictures / "broken.png").write_text("no picture")
    archive = packed_folder(pictures.parent / f"a.{kind}", pictures)
    summary = extract(start, archive)
    assert (summary.new, summary.failed, summary.ignored, summary.found) == (5, 1, 1, 6)
    archives._listing.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(Local, "parts", lambda *_: 1 / 0)
        for _ in range(2):
            summary = extract(start, archive, prune=True)
            assert (summary.unchanged, summary.failed_before, summary.ignored, summary.removed) == (5, 1, 1, 0)
        expected = preview([archive], archive.parent / "out.h5", prune=True)
        assert (expected.unchanged, expected.failed_before, expected.ignored, expected.compute) == (5, 1, 1, 0)
    assert len(start.engines) == 1
    assert extract(start, archive, retry_failed=True).failed == 1


@KINDS
def test_an_archive_that_grew_costs_what_is_new(tmp_path: Path, start: FakeStart, kind: str) -> None:
    content = [(f"{i}.png", shade(i)) for i in range(6)]
    archive = packed(tmp_path / f"a.{kind}", content[:4])
    extract(start, archive)
    packed(archive, content)
    os.utime(archive, (9, 9))
    summary = extract(start, archive)
    assert (summary.unchanged, summary.new) == (4, 2)
    assert start.engines[1].seen == [f"{archive}::{i}.png" for i in (4, 5)]
    assert extract(start, archive).unchanged == 6
    assert len(FeatureStore(tmp_path / "out.h5").archives()) == 1


@KINDS
def test_a_run_that_was_stopped_in_an_archive_goes_on_there(tmp_path: Path, start: FakeStart, kind: str) -> None:
    archive = packed(tmp_path / f"a.{kind}", [(f"{i}.png", shade(i)) for i in range(9)])
    stops = iter([None] * 8)
    summary = extract(
        start, archive, should_stop=lambda: next(stops, "SIGTERM"), options=EngineOptions(batch_size=2), commit_rows=1
    )
    assert 0 < summary.new < 9
    again = extract(start, archive)
    assert (again.unchanged, again.new) == (summary.new, 9 - summary.new)


@KINDS
def test_prune_looks_into_archives(tmp_path: Path, start: FakeStart, kind: str) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in (1, 2):
        packed(folder / f"{shard}.{kind}", [(f"{i}.png", shade(10 * shard + i)) for i in range(5)])
    extract(start, folder)
    packed(folder / f"1.{kind}", [(f"{i}.png", shade(10 + i)) for i in range(4)])
    os.utime(folder / f"1.{kind}", (7, 7))
    summary = extract(start, folder, prune=True)
    assert (summary.unchanged, summary.removed) == (9, 1)
    (folder / f"2.{kind}").rename(tmp_path / f"2.{kind}")
    with pytest.raises(PruneError, match="5 of the 9 rows"):
        extract(start, folder, prune=True)
    assert extract(start, folder, prune=True, force=True).removed == 5
    (tmp_path / f"2.{kind}").rename(folder / f"2.{kind}")
    assert extract(start, folder).new == 5  # what was noted of the archive does not stand for rows that are gone


def test_rows_of_a_damaged_archive_are_not_pruned(tmp_path: Path, start: FakeStart) -> None:
    archive = tar(tmp_path / "a.tar", [(f"{i}.png", shade(i)) for i in range(4)])
    extract(start, archive)
    archive.write_bytes(archive.read_bytes()[:2600])
    summary = extract(start, archive, prune=True, prune_limit=100)
    assert (summary.removed, summary.failed, len(FeatureStore(tmp_path / "out.h5"))) == (0, 1, 4)
    (failure,) = FeatureStore(tmp_path / "out.h5").failures()
    assert (failure.path, failure.reason[:24]) == ("a.tar", "is cut off or damaged at")
    assert extract(start, archive).failed_before == 1
    tar(archive, [(f"{i}.png", shade(i)) for i in range(4)])
    os.utime(archive, (5, 5))
    assert extract(start, archive).unchanged == 4
    assert FeatureStore(tmp_path / "out.h5").failures() == []


def test_an_archive_that_cannot_be_opened_is_tried_again(
    tmp_path: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tar(tmp_path / "a.tar", [("1.png", shade(1))])
    (tmp_path / "b.png").write_bytes(shade(2))
    true = os.open

    def refuse(path: object, *more: object) -> int:
        if str(path).endswith(".tar"):
            raise PermissionError(13, "Permission denied")
        return true(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        summary = rn50feat.extract(tmp_path, tmp_path / "out.h5", start=start, weights="random")
    assert (summary.new, summary.failed) == (1, 1)
    assert "a.tar cannot be read: Permission denied" in caplog.text
    summary = rn50feat.extract(tmp_path, tmp_path / "out.h5", start=start)
    assert (summary.new, summary.unchanged, summary.failed_before) == (1, 1, 0)
    assert FeatureStore(tmp_path / "out.h5").failures() == []


def test_a_file_that_is_no_archive_is_an_error_alone_and_a_failure_among_others(
    pictures: Path, start: FakeStart, caplog: pytest.LogCaptureFixture
) -> None:
    (pictures / "notes.zip").write_text("no archive")
    with pytest.raises(SourceError, match="notes.zip is not a zip archive, or is cut off"):
        rn50feat.extract(pictures / "notes.zip", pictures.parent / "out.h5", weights="random", start=start)
    assert not (pictures.parent / "out.h5").exists()
    assert extract(start, pictures).failed == 1
    assert "notes.zip is not a zip archive" in caplog.text
    assert extract(start, pictures).failed_before == 1


def test_names_in_archives_are_only_names(tmp_path: Path, start: FakeStart) -> None:
    names = ["/etc/x.png", "../../up.png", "./here.png", "a//b.png", "tab\t.png", "c::d.png", "inner.zip"]
    tar(tmp_path / "a.tar", [(name, shade(i)) for i, name in enumerate(names, 1)])
    assert extract(start, tmp_path / "a.tar").new == 7
    store = FeatureStore(tmp_path / "out.h5")
    assert store.paths() == [f"a.tar::{name}" for name in names]
    report = rn50feat.verify(store, sources=True)
    assert (report.findings, report.notes) == ([], ["7 files hashed: 0 gone, 0 changed since their rows were made"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "out.h5"]


def test_a_member_is_a_query_and_a_stored_path(tmp_path: Path, start: FakeStart) -> None:
    zipped(tmp_path / "a.zip", [(f"{i}.png", shade(40 * i)) for i in range(1, 5)])
    extract(start, tmp_path / "a.zip")
    store = tmp_path / "out.h5"
    (by_picture,) = rn50feat.search(f"{tmp_path}/a.zip::2.png", store, k=1, metric="l2", start=start)
    assert by_picture.hits[0].path == "a.zip::2.png"
    (others,) = rn50feat.search(f"{tmp_path}/a.zip::2.png", store, metric="l2", exclude_self=True, start=start)
    assert "a.zip::2.png" not in [hit.path for hit in others.hits]
    assert by_picture.hits[0].state == "present"
    os.utime(tmp_path / "a.zip", (3, 3))
    assert search_stored(["a.zip::2.png"], store, k=1)[0].hits[0].state == "changed"
    with pytest.raises(QueryError, match="a.zip::9.png has vanished from its archive: name an existing image"):
        rn50feat.search(f"{tmp_path}/a.zip::9.png", store, start=start)


def test_stores_from_before_archives_get_their_table(pictures: Path, start: FakeStart) -> None:
    import h5py

    extract(start, pictures)
    store = pictures.parent / "out.h5"
    with h5py.File(store, "r+") as file:
        del file["archives"], file["checksum"], file.attrs["checksums"]
    assert FeatureStore(store).archives() == []
    assert rn50feat.verify(store).findings == []
    packed_folder(pictures / "a.zip", pictures)
    assert extract(start, pictures).reused == 5
    (record,) = FeatureStore(store).archives()
    assert (record.path, record.pictures, record.others) == ("pictures/a.zip", 5, 0)
    assert rn50feat.verify(store).findings == []


def test_progress_counts_members(pictures: Path, start: FakeStart) -> None:
    packed_folder(pictures.parent / "a.tar", pictures)
    told: list[tuple[int, int | None]] = []
    for _ in range(2):
        extract(start, pictures.parent / "a.tar", on_progress=lambda p: told.append((p.done.files, p.total)))
        assert told[-1] in ((5, 5), (5, None))


def test_the_command_line_takes_archives(pictures: Path, start: FakeStart, rn50feat: Run) -> None:
    for shard in range(2):
        packed_folder(pictures.parent / f"s-{shard:03}.tar", pictures)
    extract(start, pictures.parent / "s-000.tar")
    packed_folder(pictures.parent / "s-001.tar", pictures)
    done = rn50feat("extract", "s-{000..001}.tar", "out.h5", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(rows(pictures.parent / "out.h5")) == 10
    done = rn50feat("search", "--stored", "s-001.tar::red.png", "-k", "2", "--csv")
    assert [line.split(",")[3] for line in done.stdout.splitlines()[1:]] == ["s-000.tar::red.png", "s-001.tar::red.png"]
