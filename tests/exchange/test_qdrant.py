"""qdrant: a collection follows its store, in the client's local mode."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Run
from qdrant_client import QdrantClient
from remotes import serving
from stores import store
from vectors import filled as made

from rn50feat import FeatureStore
from rn50feat.errors import ExchangeError
from rn50feat.exchange import qdrant
from rn50feat.exchange.qdrant import Sync, sync
from rn50feat.sources.reference import Reference
from rn50feat.store import snapshot
from rn50feat.store.writer import open_store


@pytest.fixture
def filled(tmp_path: Path) -> FeatureStore:
    """A store of five pictures; row i has 1 at i, and zeros."""
    path = store(tmp_path / "out.h5", [(f"{i}.jpg", 1, i + 1) for i in range(5)])
    with open_store(path) as writer:
        for row, reference in enumerate(FeatureStore(path).references(0, 5)):
            writer.replace(row, reference, np.eye(2048, dtype=np.float32)[row])
    return FeatureStore(path)


def look(folder: Path, see: Callable[[Any], Any], collection: str = "out") -> Any:
    client = QdrantClient(path=str(folder), force_disable_check_same_thread=True)
    try:
        return see(client)
    finally:
        client.close()


def points(client: Any) -> dict[int, Any]:
    return {p.id: p for p in client.scroll("out", limit=1000, with_vectors=True)[0]}


def test_a_collection_has_the_rows_under_their_ids(filled: FeatureStore, tmp_path: Path) -> None:
    assert sync(filled, str(tmp_path / "db")) == Sync(upserted=5, deleted=0, unchanged=0)
    found = look(tmp_path / "db", points)
    assert sorted(found) == filled.column("ids").tolist() == [5, 6, 7, 8, 9]
    assert found[7].payload == {
        "store": filled.id,
        "path": "2.jpg",
        "digest": f"{3:032x}",
        "mark": filled.history()[-1],
    }
    assert np.array_equal(found[7].vector, np.eye(2048)[2])
    nearest = look(
        tmp_path / "db", lambda client: client.query_points("out", query=np.eye(2048)[3].tolist(), limit=1).points
    )
    assert (nearest[0].id, nearest[0].score) == (8, pytest.approx(1))


def test_only_what_changed_is_sent_and_what_is_gone_is_deleted(
    filled: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant, "PAGE", 2)
    monkeypatch.setattr(qdrant, "REQUEST", 110_000)  # two points
    monkeypatch.setattr(snapshot, "BLOCK", 3)
    sync(filled, str(tmp_path / "db"))
    assert sync(filled, str(tmp_path / "db")) == Sync(upserted=0, deleted=0, unchanged=5)
    with open_store(filled.path) as writer:
        changed = Reference(str(tmp_path / "1.jpg"), 9, 2, b"\x07" * 16)
        writer.replace(1, changed, np.eye(2048, dtype=np.float32)[99])
        writer.remove(np.array([0, 3]))
    store(filled.path, [("new.jpg", 1, 7)])
    assert sync(filled, str(tmp_path / "db")) == Sync(upserted=2, deleted=3, unchanged=2)
    found = look(tmp_path / "db", points)
    assert {number: point.payload["path"] for number, point in found.items()} == dict(
        zip(filled.column("ids").tolist(), filled.paths())
    )


def test_a_point_follows_an_image_that_moved(filled: FeatureStore, tmp_path: Path) -> None:
    sync(filled, str(tmp_path / "db"))
    with open_store(filled.path) as writer:
        writer.rename(2, [str(tmp_path / "moved.jpg")], np.array([2]))
    assert sync(filled, str(tmp_path / "db")) == Sync(upserted=1, deleted=0, unchanged=4)
    assert look(tmp_path / "db", points)[7].payload["path"] == "moved.jpg"
    assert sync(filled, str(tmp_path / "db")) == Sync(upserted=0, deleted=0, unchanged=5)


def test_a_sync_that_was_killed_is_gone_on_with(
    filled: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "BLOCK", 2)

    def die(stage: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sync(filled, str(tmp_path / "db"), on_stage=die)
    assert sync(filled, str(tmp_path / "db")) == Sync(upserted=1, deleted=0, unchanged=4)


def test_points_of_another_store_are_kept_unless_they_are_to_go(filled: FeatureStore, tmp_path: Path) -> None:
    other = store(tmp_path / "other.h5", [("x.jpg", 1, 1), ("y.jpg", 1, 2)])
    sync(other, str(tmp_path / "db"), collection="out")
    with pytest.raises(ExchangeError, match="collection out has points of another store: name another with"):
        sync(filled, str(tmp_path / "db"))
    assert len(look(tmp_path / "db", points)) == 2
    assert sync(filled, str(tmp_path / "db"), overwrite=True) == Sync(upserted=5, deleted=0, unchanged=0)
    assert len(look(tmp_path / "db", points)) == 5
    assert sync(filled, str(tmp_path / "db"), collection="second").upserted == 5


def test_a_collection_of_other_vectors_is_refused(filled: FeatureStore, tmp_path: Path) -> None:
    from qdrant_client import models

    vectors = models.VectorParams(size=8, distance=models.Distance.DOT)
    look(tmp_path / "db", lambda client: client.create_collection("out", vectors_config=vectors))
    with pytest.raises(ExchangeError, match="collection out does not hold vectors of 2048"):
        sync(filled, str(tmp_path / "db"))


def test_a_server_that_is_not_there_is_told_in_one_line_without_the_password(
    rn50feat: Run, filled: FeatureStore
) -> None:
    done = rn50feat("export", "out.h5", "http://me:secret@127.0.0.1:9", "--to", "qdrant")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("Error: http://127.0.0.1:9: ")
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("place", "collection", "message"),
    [
        ("localhost:6333", None, "localhost:6333 looks like a server: give http://localhost:6333"),
        ("me:secret@host:6333/", None, "host:6333/ looks like a server: give http://host:6333/"),
        ("", None, "the location of Qdrant is empty: give a server's URL, or a folder"),
        ("out.h5", None, "out.h5 is a file: give a Qdrant server's URL, or a folder"),
        ("db", "a/b", "a/b cannot be a collection's name: use --collection with a name without any of "),
        ("db", "..", ".. cannot be a collection's name: "),
    ],
)
def test_what_is_no_place_or_name_is_refused_before_anything_is_made(
    filled: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, collection: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExchangeError, match=f"^{re.escape(message)}"):
        sync(filled, place, collection=collection)
    assert os.listdir() == ["out.h5"]


def test_a_folder_that_is_named_like_a_server_is_a_folder(
    filled: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("db:1")
    assert sync(filled, "db:1").upserted == 5


def test_of_a_web_server_that_is_no_qdrant_only_the_status_is_told(filled: FeatureStore) -> None:
    class Web(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404, "Nothing here", "a long page")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with serving(server), pytest.raises(ExchangeError, match=f"^{url}: 404 Nothing here: check Qdrant's URL"):
        sync(filled, url)


class Server(BaseHTTPRequestHandler):
    """A Qdrant server that has nothing and notes what it gets."""

    protocol_version = "HTTP/1.1"
    got: list[tuple[str, Any]]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.got.append((f"{self.command} {self.path}", json.loads(body) if body else None))
        kinds = {"exists": {"exists": False}, "count": {"count": 0}, "scroll": {"points": []}}
        done = {"operation_id": 1, "status": "completed"} if "wait" in self.path else True
        result = kinds.get(self.path.rpartition("/")[2].partition("?")[0], done)
        text = json.dumps({"result": result, "status": "ok", "time": 0}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_server_gets_exact_numbers_in_requests_of_a_few_megabytes(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(30 * 2048, dtype=np.uint16).view(np.float16).reshape(30, 2048).astype(dtype)
    rows[~np.isfinite(rows)] = 0
    filled = made(tmp_path / "out.h5", rows, dtype)
    monkeypatch.setattr(qdrant, "REQUEST", 600_000)
    monkeypatch.setattr(Server, "got", [], raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    with serving(server):
        assert sync(filled, f"http://127.0.0.1:{server.server_address[1]}").upserted == 30
    (created,) = (
        body for what, body in Server.got if what.startswith("PUT /collections/out?") or what.endswith("/out")
    )
    assert created["vectors"] == {"size": 2048, "distance": "Cosine", "on_disk": True}
    assert created["quantization_config"]["scalar"] == {"type": "int8", "quantile": 0.99, "always_ram": True}
    sent = [body["batch"] for what, body in Server.got if what == "PUT /collections/out/points?wait=true"]
    assert [len(batch["ids"]) for batch in sent] == [11, 12, 7]
    assert [number for batch in sent for number in batch["ids"]] == [*range(30)]
    assert np.array_equal(np.concatenate([np.float32(batch["vectors"]) for batch in sent]), rows.astype(np.float32))
    assert sent[2]["payloads"][-1]["path"] == "00029.jpg"


def test_the_command_line(rn50feat: Run, filled: FeatureStore, tmp_path: Path) -> None:
    done = rn50feat("export", "db", "--to", "qdrant")
    assert (done.returncode, done.stderr.splitlines()[0]) == (0, "db: 5 upserted, 0 deleted, 0 unchanged")
    for refused in ("-0", "--normalize"):
        assert rn50feat("export", "db", "--to", "qdrant", refused).returncode == 2
    client = QdrantClient(path=str(tmp_path / "db"), force_disable_check_same_thread=True)
    try:
        done = rn50feat("export", "db", "--to", "qdrant")
    finally:
        client.close()
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_the_extra_is_named_where_it_is_missing(
    filled: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ExchangeError, match=r"pip install 'rn50feat\[qdrant\]'"):
        sync(filled, str(tmp_path / "db"))


@pytest.mark.parametrize("marks", [True, False])
def test_points_of_another_history_are_replaced(
    filled: FeatureStore, tmp_path: Path, marks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    place = str(tmp_path / "db")
    if not marks:  # a backup that a version without marks wrote
        with h5py.File(filled.path, "r+", libver=("v108", "v108")) as file:
            del file["history"]
    backup = filled.path.read_bytes()
    sync(filled, place)
    store(filled.path, [("lost.jpg", 1, 7), ("lost too.jpg", 1, 8)])
    assert sync(filled, place) == Sync(upserted=2, deleted=0, unchanged=5)
    assert not caplog.records
    filled.path.write_bytes(backup)
    if marks:
        store(filled.path, [("new.jpg", 1, 9)])
    strangers = 2 if marks else 7  # what has no marks is taken for the store's own until it has some
    assert sync(filled, place) == Sync(upserted=1 if marks else 5, deleted=strangers, unchanged=7 - strangers)
    assert f"{strangers} points in out are from another history of" in caplog.text
    found = look(tmp_path / "db", points)
    paths = dict(zip(filled.column("ids").tolist(), filled.paths()))
    assert {number: point.payload["path"] for number, point in found.items()} == paths
    assert sync(filled, place) == Sync(upserted=0, deleted=0, unchanged=5 + marks)


def test_points_without_marks_stay_and_get_one(filled: FeatureStore, tmp_path: Path) -> None:
    place = str(tmp_path / "db")
    sync(filled, place)
    look(tmp_path / "db", lambda client: client.delete_payload("out", ["mark"], list(range(5, 10))))
    assert sync(filled, place) == Sync(upserted=0, deleted=0, unchanged=5)
    marks = {point.payload["mark"] for point in look(tmp_path / "db", points).values()}
    assert marks == {filled.history()[-1]}
