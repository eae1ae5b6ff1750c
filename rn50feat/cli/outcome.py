"""What is told of a run that wrote to a store, and with which code it ends when it was stopped.

In: the `Summary` of a run. Out: its words on stderr, its facts in the `Ending`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rn50feat.cli import report
from rn50feat.cli.ending import Ending
from rn50feat.cli.stores import mark_random
from rn50feat.cli.terminal import STOPS, say
from rn50feat.errors import count

if TYPE_CHECKING:
    from rn50feat.extraction.summary import Summary

STOP_CODES = {number.name: 128 + number for number in STOPS}


def tell(summary: Summary, out: Path, ending: Ending, *, quiet: bool) -> None:
    """Tell what a run did to the store `out`; the command ends with the code of the signal that stopped it, if any."""
    if not quiet:
        _tell_in_words(summary, out)
    ending.add(**summary.as_dict())
    if summary.stopped is not None:
        ending.stop(STOP_CODES.get(summary.stopped, 0))


def _tell_in_words(summary: Summary, out: Path) -> None:
    say(f"{out}: {report.counts(summary.as_dict())}, in {summary.seconds:.1f} s")
    if summary.linked:
        say(report.linked_line(summary.linked))
    if summary.stopped:
        rest = "" if summary.left is None else f", {count(summary.left, 'picture')} left"
        say(f"stopped by {summary.stopped}{rest}: run again to go on")
    if summary.failed or summary.damaged:
        what = "what could not be read" if summary.failed else "which images are damaged"
        say(f"rn50feat info {out} --failures tells {what}, and why")
    if out.exists():
        from rn50feat.store.reader import FeatureStore

        mark_random(FeatureStore(out))
