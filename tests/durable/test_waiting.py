"""waiting: what is waited for is handed over whole."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from rn50feat.durable.waiting import Stopped, attend


class Network:
    pass


def test_nothing_is_kept_of_a_result_that_nobody_uses_any_more() -> None:
    before, made = set(threading.enumerate()), Network()
    known, held = weakref.ref(made), [made]
    del made
    result = attend(held.pop, lambda: None)
    (thread,) = set(threading.enumerate()) - before  # processes that are bound to it live on
    del result
    gc.collect()
    assert known() is None
    thread.join(10)
    assert not thread.is_alive()


def test_numbers_and_errors_come_back() -> None:
    assert attend(lambda: 5, lambda: None) == 5
    with pytest.raises(ZeroDivisionError):
        attend(lambda: 1 // 0, lambda: None)


def test_a_result_that_comes_too_late_is_disposed_of() -> None:
    go, gone = threading.Event(), threading.Event()
    with pytest.raises(Stopped):
        attend(lambda: go.wait(10), lambda: "enough", dispose=lambda result: gone.set())
    go.set()
    assert gone.wait(10)
