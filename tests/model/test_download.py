"""Published weights come in time or not at all, and keep nobody from the store meanwhile."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake import FakeStart
from tqdm import tqdm

import rn50feat
from rn50feat.cli import terminal
from rn50feat.durable import lock, waiting
from rn50feat.errors import WeightsError
from rn50feat.extraction import preview
from rn50feat.model import download, weights
from rn50feat.sources.selection import Selection
from rn50feat.store.summary import Progress, Summary

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()[:8]


class Server:
    """A web server of one file, which says only as much as `answer` has, and then nothing more."""

    def __init__(self) -> None:
        self.answer = b""
        self.ends = True  # the connection, after the answer
        self.met = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/weights.pth"
        threading.Thread(target=self._serve, daemon=True).start()

    def whole(self, content: bytes = CONTENT, length: int | None = None) -> None:
        size = len(content) if length is None else length
        self.answer = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + content

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(connection)
            connection.recv(1 << 16)
            self.met.set()
            connection.sendall(self.answer)
            if self.ends:
                connection.close()

    def close(self) -> None:
        for connection in self._open:
            connection.close()
        self._socket.close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    one = Server()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setitem(weights.PUBLISHED, "imagenet-v1", weights.Published(one.url, SHA256, 256))
    yield one
    one.close()


class WeighedStart(FakeStart):
    """A `StartEngine` that needs the weights, as the real ones do."""

    def __call__(self, chosen, provenance, options):  # type: ignore[no-untyped-def]
        chosen.require()
        engine = super().__call__(chosen, provenance, options)
        engine.weights_sha256 = weights.hash_file(chosen.path)
        return engine


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"])
def test_a_server_that_says_nothing_more_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(download, "PATIENCE", 0.3)
    server.answer, server.ends = answer, False
    chosen = weights.find("imagenet-v1")
    with pytest.raises(
        WeightsError, match=r"weights.pth cannot be downloaded \(no data for 0 s\): download it yourself"
    ):
        weights.fetch(chosen)
    assert chosen.missing


def test_a_download_that_is_cut_off_leaves_nothing(server: Server) -> None:
    server.whole(CONTENT[:100_000], len(CONTENT))
    chosen = weights.find("imagenet-v1")
    with pytest.raises(WeightsError, match=r"\(the server sent only 100,000 of 256,000 bytes\)"):
        weights.fetch(chosen)
    assert list(chosen.path.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(
        WeightsError, match=r"cannot be written \(Not a directory\): set TORCH_HOME to a writable folder"
    ):
        weights.fetch(weights.find("imagenet-v1"))


def test_a_run_downloads_without_the_lock_and_tells_how_far_it_is(
    server: Server, pictures: Path, tmp_path: Path
) -> None:
    store, phases = tmp_path / "out.h5", []
    server.whole()

    def watch(progress: Progress) -> None:
        if progress.phase.startswith("downloading"):
            with lock.run_lock(store):  # nobody else has it
                phases.append(progress.phase)

    assert preview.preview(pictures, store).download == "imagenet-v1"
    assert rn50feat.extract(pictures, store, start=WeighedStart(), on_progress=watch).new == 5
    assert phases[-1] == "downloading imagenet-v1, 0 of 0 MB"
    assert len(phases) == 4
    assert preview.preview(pictures, store, retry_failed=True).download is None


@pytest.mark.parametrize("reason", ["SIGTERM", "time budget"])
def test_a_run_is_stopped_while_a_server_does_not_answer(
    server: Server, pictures: Path, tmp_path: Path, reason: str
) -> None:
    server.ends, store = False, tmp_path / "out.h5"
    budget, asked = (0.3, None) if reason == "time budget" else (None, reason)
    summary = rn50feat.extract(
        pictures,
        store,
        start=WeighedStart(),
        time_budget=budget,
        should_stop=lambda: asked if server.met.is_set() else None,
    )
    assert (summary.stopped, summary.found) == (reason, 0)
    assert list(tmp_path.glob("out.h5*")) == []


def test_nothing_is_downloaded_where_there_is_nothing_to_compute(
    server: Server, pictures: Path, tmp_path: Path
) -> None:
    server.whole()
    rn50feat.extract(pictures, tmp_path / "out.h5", start=WeighedStart())
    weights.find("imagenet-v1").path.unlink()
    (pictures / "red.png").rename(pictures / "moved.png")
    server.answer = b""
    summary = rn50feat.extract(pictures, tmp_path / "out.h5", start=WeighedStart())
    assert (summary.reused, summary.unchanged, summary.new) == (1, 4, 0)


def test_a_list_that_can_be_read_but_once_is_not_lost(
    server: Server, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.whole()
    names = io.TextIOWrapper(io.BytesIO(f"{pictures}/red.png\n{pictures}/white.png\n".encode()))
    monkeypatch.setattr("sys.stdin", names)
    assert rn50feat.extract(Selection((), listing="-"), tmp_path / "out.h5", start=WeighedStart()).new == 2


def test_work_that_nobody_waits_for_is_disposed_of() -> None:
    begun, go_on, gone = threading.Event(), threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        go_on.wait()
        return "result"

    with pytest.raises(waiting.Stopped, match="SIGINT"):
        waiting.attend(work, lambda: "SIGINT" if begun.is_set() else None, dispose=lambda result: gone.set())
    assert waiting.unfinished()
    go_on.set()
    gone.wait()
    with pytest.raises(ZeroDivisionError):
        waiting.attend(lambda: 1 / 0, lambda: None)  # type: ignore[arg-type,return-value]


def test_the_bar_names_the_phase_and_its_clock_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    ticked = threading.Event()
    monkeypatch.setattr(terminal, "attended", lambda: True)
    monkeypatch.setattr(terminal, "CLOCK_SECONDS", 0.01)
    told: list[str] = []

    def refresh(bar: tqdm, *_: object, **__: object) -> None:  # type: ignore[type-arg]
        told.append(bar.desc)
        ticked.set()

    monkeypatch.setattr(tqdm, "refresh", refresh)
    with terminal.progress(quiet=False) as on_progress:
        on_progress(Progress(Summary(), None, "preparing the network"))
        ticked.clear()
        ticked.wait()
        on_progress(Progress(Summary(new=3), 9))
    assert "preparing the network" in told
