"""Report a run that wrote to a store, and set its exit code if it was stopped.

Takes a run's `Summary`; prints it on stderr and adds its facts to the `Ending`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rn50feat.cli import report
from rn50feat.cli.ending import Ending
from rn50feat.cli.relocate import relocation
from rn50feat.cli.stores import mark_random
from rn50feat.cli.terminal import STOPS, say
from rn50feat.errors import count, invocation, size

if TYPE_CHECKING:
    from rn50feat.store.summary import Summary

STOP_CODES = {number.name: 128 + number for number in STOPS}


def report_run(summary: Summary, out: Path, ending: Ending, *, quiet: bool) -> None:
    """Report what a run did to the store `out`; a run stopped by a signal ends with that signal's exit code."""
    if not quiet:
        _print(summary, out)
    ending.add(**summary.as_dict())
    if summary.stopped is not None:
        ending.stop(STOP_CODES.get(summary.stopped, 0))


def _print(summary: Summary, out: Path) -> None:
    say(f"{out}: {report.counts(summary.as_dict())}, in {summary.seconds:.1f} s")
    if summary.int8:
        say(f"int8: {summary.int8}")
    if summary.linked:
        say(report.linked_line(summary.linked))
    if (moved := summary.moved_from) is not None:
        what, command = count(moved.images, "image"), relocation(moved.old, moved.new, out)
        say(f"Note: {what} look moved from {moved.old} to {moved.new}: to keep their old rows, see {command}")
    if summary.stopped:
        rest = "" if summary.left is None else f", {count(summary.left, 'image')} left"
        say(f"stopped by {summary.stopped}{rest}: run again to continue")
    if summary.compacted:
        say(f"rewrote {out} without unused space: {size(summary.compacted)} freed")
    if summary.failed or summary.damaged:
        what = "could not be read" if summary.failed else "are damaged"
        say(f"to see which images {what} and why: {invocation('info', out, '--failures')}")
    if out.exists():
        from rn50feat.store.reader import FeatureStore

        mark_random(FeatureStore(out))
