"""schedule: a commit comes after so many changes, or so much time."""

from __future__ import annotations

from rn50feat.store.schedule import Schedule


def test_a_schedule_counts_changes_and_seconds() -> None:
    now = [0.0]
    schedule = Schedule(10, 3, 20, lambda: now[0])
    assert [schedule.count(4, 0), schedule.count(4, 1), schedule.count(0, 1), schedule.count(0, 1)] == [
        False, False, True, True,
    ]  # fmt: skip
    schedule.restart()
    assert [schedule.count(0, 2), schedule.count(0, 1)] == [False, True]
    schedule.restart()
    now[0] = 20
    assert not schedule.count(1, 0)
    now[0] = 21
    assert schedule.count(0, 0)
    schedule.restart()
    assert not schedule.count(1, 0)
