"""Show a run's progress on a terminal or in the log of a cron job, and let signals stop it.

Takes the progress of a run, and signals. Shows a bar on a terminal and an
occasional plain line elsewhere, both on stderr, and returns the reason to stop.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rn50feat.cli import streams
from rn50feat.errors import OutputError, count
from rn50feat.escape import one_line

if TYPE_CHECKING:
    from rn50feat.store.summary import Progress

# Sent to stop a run by people, services, terminals that close, and batch systems some time before their limit.
STOPS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
_PERSONAL = frozenset((signal.SIGINT, signal.SIGTERM))
CLOCK_SECONDS = 0.5  # between two refreshes of a bar
PLAIN_SECONDS = 30.0  # between two lines of progress without a terminal


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Yield a callback that shows a run's progress: a bar on a terminal, an occasional plain line elsewhere."""
    if quiet:
        yield None
    elif attended():
        from tqdm import tqdm

        with tqdm(unit="img", dynamic_ncols=True, leave=False, smoothing=0.1) as bar, _clock(bar):

            def advance(progress: Progress) -> None:
                bar.total = progress.total
                bar.set_description_str(progress.phase, refresh=False)
                bar.update(progress.done.files - bar.n)

            yield advance
    else:
        yield _plain_progress()


@contextmanager
def _clock(bar: Any) -> Iterator[None]:
    """Keep a bar's clock running, whatever the program is busy with."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(CLOCK_SECONDS):
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def downloads() -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that shows (bytes done, bytes in all) of a possible download: a bar, or an occasional line."""
    bars: list[Any] = []
    last = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal last
        if attended():
            from tqdm import tqdm

            if not bars:
                bars.append(tqdm(desc="downloading the weights", unit="B", unit_scale=True, leave=False))
            bars[0].total = total or None
            bars[0].update(done - bars[0].n)
        elif time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            say(f"downloading the weights: {done / 1e6:.0f} of {f'{total / 1e6:.0f}' if total else '?'} MB")

    try:
        yield advance
    finally:
        for bar in bars:
            bar.close()


def _plain_progress() -> Callable[[Progress], None]:
    started = last = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_SECONDS:
            last = now
            if progress.phase:
                say(progress.phase)
                return
            rate = progress.done.computed / (now - started)
            files = "? files" if progress.total is None else count(progress.total, "file")
            say(f"{count(progress.done.found, 'image')} of {files}, {rate:.1f} images/s")

    return tell


@contextmanager
def stages(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that shows (stage, rows done, rows in all): a bar on a terminal, else an occasional line."""
    if quiet:
        yield lambda stage, done, total: None
    elif attended():
        from tqdm import tqdm

        with tqdm(unit="row", dynamic_ncols=True, leave=False) as bar:

            def advance(stage: str, done: int, total: int) -> None:
                bar.total = total or None
                bar.set_description(stage, refresh=False)
                bar.update(done - bar.n)
                bar.refresh()

            yield advance
    else:
        yield _plain_stages()


def _plain_stages() -> Callable[[str, int, int], None]:
    last = time.monotonic()

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            say(f"{stage}: {done} of {count(total, 'row')}" if total else stage)

    return tell


@contextmanager
def signals() -> Iterator[Callable[[], str | None]]:
    """Yield a function that names the first signal to stop, if any; a second SIGINT or SIGTERM ends the process.

    Only these two mean impatience: a closing terminal sends SIGHUP twice, systemd sends SIGHUP after SIGTERM, a batch
    system SIGTERM after its warning, and the kernel SIGXCPU every second.
    """
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        if number in _PERSONAL and not _PERSONAL.isdisjoint(caught):
            os._exit(128 + number)  # what was committed is safe, and the lock ends with the process
        caught.append(number)
        if len(caught) == 1:
            with suppress(OSError):
                os.write(2, b"\nstopping after the current batch; repeat to stop at once\n")

    # Signals that were ignored from the start stay ignored: nohup ignores SIGHUP.
    heeded = [number for number in STOPS if number in _PERSONAL or signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield lambda: signal.Signals(caught[0]).name if caught else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def attended() -> bool:
    """Check whether stderr is a terminal that can redraw a line: a dumb one, such as Emacs' shell, cannot."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def columns() -> int | None:
    """Return the width of the terminal on stdout, or None if there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def say(line: str) -> None:
    """Print one line to stderr, with line breaks in names escaped."""
    print(one_line(line), file=sys.stderr, flush=True)


def write(text: str) -> None:
    """Write results to stdout, with names byte for byte; raise `OutputError` if that fails."""
    try:
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise  # the reader, such as head, has seen enough: click ends the program silently
    except OSError as error:
        streams.abandon_output()
        raise OutputError(
            f"standard output cannot be written ({error.strerror}): free some space, or redirect it"
        ) from error
