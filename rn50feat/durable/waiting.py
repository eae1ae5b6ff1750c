"""Wait for work that takes seconds or minutes, and stay responsive meanwhile.

Takes the work and a function that says when to stop; returns the result, or
raises `Stopped`. The work runs in a thread of its own, because neither an
import nor a call into C++ or the network handles signals before it ends; here
they are handled within a tenth of a second.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
SECONDS = 0.1  # between two checks whether to stop

_left: list[_Work[Any]] = []


class Stopped(Exception):
    """The work was left unfinished, for the reason in ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Work(threading.Thread, Generic[T]):
    """A thread that keeps the result of its work, or gives it to `dispose` if nobody waits any more.

    It stays alive as long as its result: the kernel ends processes that are
    bound to their parent, as Ray's are, with the thread that started them.
    """

    def __init__(self, work: Callable[[], T], dispose: Callable[[T], object]) -> None:
        super().__init__(name="waited for", daemon=True)
        self._work, self._dispose = work, dispose
        self._lock = threading.Lock()
        self.results: list[T] = []
        self.error: BaseException | None = None
        self.awaited = True
        self.done, self._released = threading.Event(), threading.Event()

    def run(self) -> None:
        self._finish()
        del self._work  # it may hold the weights
        self.done.set()
        if self.error is None and self.awaited:
            self._released.wait()

    def hand_over(self) -> T:
        """Return the result, and keep nothing of it: it may hold a network."""
        result = self.results.pop()
        try:
            weakref.finalize(result, self._released.set)
        except TypeError:  # a number, for example
            self._released.set()
        return result

    def _finish(self) -> None:
        try:
            result = self._work()
        except BaseException as error:
            self.error = error
            return
        with self._lock:
            self.results.append(result)
            if self.awaited:
                return
        self._dispose(result)

    def leave(self) -> None:
        """Stop waiting, and dispose of a result that has arrived by now."""
        with self._lock:
            self.awaited = False
        _left.append(self)
        self._released.set()
        for result in self.results:
            self._dispose(result)


def attend(
    work: Callable[[], T], stop: Callable[[], str | None], *, dispose: Callable[[T], object] = lambda result: None
) -> T:
    """Run `work` in a thread, and return or raise as it does; raise `Stopped` soon after `stop` returns a reason.

    Unfinished work then goes on in its thread, and `dispose` gets its result.
    """
    thread = _Work(work, dispose)
    thread.start()
    try:
        while not thread.done.wait(SECONDS):
            if reason := stop():
                raise Stopped(reason)
    except BaseException:
        thread.leave()
        raise
    if thread.error is not None:
        raise thread.error
    return thread.hand_over()


def unfinished() -> bool:
    """Check whether abandoned work still runs: its thread may be in C++, which Python cannot shut down cleanly."""
    return any(not thread.done.is_set() for thread in _left)
