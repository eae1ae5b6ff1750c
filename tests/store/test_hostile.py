"""Stores, journals and indexes that may come from anywhere: one line of error, no hang, and no other file is read."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import Result
from fake import FakeStart
from stores import store as made

from rn50feat import FeatureStore, duplicates, extract, index
from rn50feat.durable import rollback
from rn50feat.durable.rollback import PAGE, journal_path
from rn50feat.errors import IndexingError, ProvenanceError, StoreError
from rn50feat.pages.gallery import groups_page, search_page
from rn50feat.searching.index_file import facts_path, faiss_path
from rn50feat.searching.search import search_stored
from rn50feat.sources import remote
from rn50feat.store.writer import open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of 40 rows, and another that it may refer to."""
    made(tmp_path / "other.h5", [(f"{i}.jpg", 1, i + 1) for i in range(40)])
    return made(tmp_path / "out.h5", [(f"{i}.jpg", 1, i + 1) for i in range(40)])


def virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout((40, 2048), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "features", (40, 2048))
    file.create_virtual_dataset(name, layout)


ELSEWHERE: dict[str, Callable[[h5py.File, str], object]] = {
    "an external link": lambda file, name: file.__setitem__(name, h5py.ExternalLink("other.h5", name)),
    "a soft link": lambda file, name: file.__setitem__(name, h5py.SoftLink("/size")),
    "a virtual dataset": virtual,
    "a dataset with external storage": lambda file, name: file.create_dataset(
        name, (40, 2048), "f4", external=[("/etc/passwd", 0, 40 * 8192)]
    ),
    "a dataset in chunks of more than 64 MiB": lambda file, name: file.create_dataset(
        name, (0,), "i8", chunks=(1 << 24,), maxshape=(None,)
    ),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
@pytest.mark.parametrize("name", ["features", "paths", "ids", "failures/reason", "failures", "runs"])
def test_a_store_that_refers_to_other_files_is_refused(path: Path, kind: str, name: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        ELSEWHERE[kind](file, name)
    with pytest.raises(StoreError, match=f"out.h5 is damaged .*({kind}|is missing)"):
        open_store(path)
    with pytest.raises(StoreError, match=f"out.h5 is damaged .*({kind}|is missing)"):
        store = FeatureStore(path)
        store.block(0, 40), store.paths(), store.column("ids"), store.failures(), store.runs()


@pytest.mark.parametrize("rows", [10**7, 1 << 33])
def test_rows_that_the_file_has_no_room_for_are_not_read(path: Path, rows: int) -> None:
    with h5py.File(path, "r+") as file:
        for name in ("features", "paths", "ids", "size", "mtime_ns", "digest"):
            file[name].resize(rows, axis=0)
    with pytest.raises(StoreError, match="more than fit in the file"):
        FeatureStore(path).column("ids")


@pytest.mark.parametrize("value", [np.arange(3), 1.5, h5py.Empty("f")], ids=str)
@pytest.mark.parametrize("name", ["format", "schema", "store_id", "provenance"])
def test_attributes_of_other_types_are_an_error(path: Path, name: str, value: object) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    with pytest.raises(StoreError):
        FeatureStore(path)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": 3},
        {"weights": None},
        {"preprocessing": []},
        {"preprocessing": {"mean": ["a", "b", "c"]}},
        {"preprocessing": {"mean": None}},
        {"preprocessing": {"white": "x"}},
        {"preprocessing": {"crop": 10**9}},
        {"preprocessing": {"resize": -1}},
        "[" * 100_000,
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_provenance_of_other_types_is_an_error(path: Path, change: object) -> None:
    with h5py.File(path, "r+") as file:
        record = json.loads(file.attrs["provenance"])
        if isinstance(change, dict):
            inner = change.get("preprocessing")
            record |= {**change, "preprocessing": {**record["preprocessing"], **inner}} if inner else change
        file.attrs["provenance"] = json.dumps(record) if isinstance(change, dict) else change
    with pytest.raises(ProvenanceError, match="cannot read the provenance record"):
        FeatureStore(path)


# Journals


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


# Indexes


INDEXES: dict[str, Callable[[Path, Path], object]] = {
    "deep": lambda faiss, facts: facts.write_text("[" * 200_000),
    "holes": lambda faiss, facts: os.truncate(facts, 1 << 40),
    "fifo of facts": lambda faiss, facts: (facts.unlink(), os.mkfifo(facts)),
    "folder of facts": lambda faiss, facts: (facts.unlink(), facts.mkdir()),
    "fifo": lambda faiss, facts: (faiss.unlink(), os.mkfifo(faiss)),
    "folder": lambda faiss, facts: (faiss.unlink(), faiss.mkdir()),
    "lists": lambda faiss, facts: facts.write_text(
        '{"format": "rn50feat index", "schema": 1, "index": [], "before": 7}'
    ),
    **{
        f"{name} {value}": lambda faiss, facts, name=name, value=value: facts.write_text(
            json.dumps({**(record := json.loads(facts.read_text())), "index": {**record["index"], name: value}})
        )
        for name in ("next_id", "size", "metric", "recall", "store_id", "nprobe")
        for value in ("x", [1])
    },
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_that_is_none_is_told_in_one_line(path: Path, kind: str) -> None:
    index(path)
    INDEXES[kind](faiss_path(path), facts_path(path))
    for action in (lambda: search_stored(["3.jpg"], path), lambda: duplicates(path), lambda: index(path)):
        with pytest.raises(IndexingError):
            action()
    search_stored(["3.jpg"], path, exact=True)


# Paths


def test_paths_of_a_store_send_no_requests(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def item(url: str) -> None:
        asked.append(url)
        raise remote.VanishedError("has vanished")

    monkeypatch.setattr(remote, "item", item)
    monkeypatch.setattr(remote, "read", lambda url, *_: item(url))
    with h5py.File(path, "r+") as file:
        file["paths"][0], file["paths"][1] = "http://127.0.0.1:9/me.jpg", "http://127.0.0.1:9/x.zip::me.jpg"
    opened = FeatureStore(path)
    results = search_stored(["http://127.0.0.1:9/me.jpg"], path, k=40)
    assert {hit.state for hit in results[0].hits} == {"missing", "unchecked"}
    page = "".join(search_page(results, [""], opened, k=40, metric="cosine"))
    assert page.count("is in remote storage: use --check to show it") == 3  # the query and two hits
    groups = duplicates(path, threshold=0.5)
    assert "is in remote storage" in "".join(groups_page(groups, opened, threshold=0.5))
    assert asked == []
    assert {hit.state for hit in search_stored(["3.jpg"], path, k=40, check=True)[0].hits} == {"missing"}
    assert "unchecked" not in {m.state for group in duplicates(path, threshold=0.5, check=True) for m in group.members}
    assert {url.partition("::")[0] for url in asked} == {"http://127.0.0.1:9/me.jpg", "http://127.0.0.1:9/x.zip"}


def test_the_command_asks_only_with_check(
    path: Path, here: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def item(url: str) -> None:
        raise remote.VanishedError("has vanished")

    monkeypatch.setattr(remote, "item", item)
    with h5py.File(path, "r+") as file:
        file["paths"][0] = "http://127.0.0.1:9/me.jpg"
    command = ["search", "--stored", "http://127.0.0.1:9/me.jpg", "out.h5", "-k", "1", "--csv"]
    for more, state in ([], "unchecked"), (["--check"], "missing"):
        assert state in here(*command, *more).stdout.splitlines()[1].split(",")


# What happens to folders and processes meanwhile


@pytest.mark.parametrize("kind", ["folder", "file", "replaced"])
def test_a_store_that_is_moved_during_a_run_is_told_as_that(
    pictures: Path, tmp_path: Path, start: FakeStart, kind: str
) -> None:
    folder = tmp_path / "stores"
    folder.mkdir()
    store = folder / "out.h5"
    extract(pictures / "red.png", store, weights="random", start=start)
    saved = store.read_bytes()

    def move(progress: object) -> None:
        if kind == "folder" and folder.exists():
            folder.rename(tmp_path / "moved")
        elif kind == "file" and store.exists():
            store.rename(folder / "moved.h5")
        elif kind == "replaced":
            (folder / "copy").write_bytes(saved)
            (folder / "copy").rename(store)

    with pytest.raises(StoreError) as caught:
        extract(pictures, store, start=start, commit_rows=1, on_progress=move)
    assert "renamed, replaced or removed" in str(caught.value)
    assert "run again" in str(caught.value)
    left = {"folder": tmp_path / "moved/out.h5", "file": folder / "moved.h5", "replaced": store}[kind]
    assert len(FeatureStore(left)) == 1


def test_decoding_processes_of_a_killed_run_end_without_a_word(pictures: Path) -> None:
    program = (
        "import time\n"
        "from rn50feat.engines.pool import DecoderPool\n"
        "from rn50feat.images.provenance import Preprocessing\n"
        "from rn50feat.sources.sources import Reference\n"
        "pool = DecoderPool(Preprocessing(), slots=8, workers=2, max_pixels=10**7)\n"
        f"pool.decode(0, [Reference({str(pictures / 'red.png')!r}, -1, -1)])[0].result()\n"
        "print(*(worker._process.pid for worker in pool._alive), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        workers = [int(number) for number in process.stdout.readline().split()]
        assert len(workers) == 2
        process.send_signal(signal.SIGKILL)
        _, told = process.communicate()  # ends when the workers do, which have its standard error, too
    assert told == b""
    end = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{worker}/exe") for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.01)
