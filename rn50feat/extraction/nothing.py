"""Say why a run has found no image, and so makes no store.

In: what it met instead. Out: the error to raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rn50feat.engines.contract import Failure
from rn50feat.errors import SourceError
from rn50feat.extraction.plan import Step


def nothing_found(store: Path, failures: Sequence[Failure], opened: Sequence[Step], excluded: int) -> SourceError:
    """Return the error for a run without an image, by the first of its `failures` or damaged archives.

    `failures` are files that no network would see: listed and not there, or
    packed. `opened` are the archives, `excluded` counts what patterns leave out.
    """
    for failure in failures:
        told = f"{failure.reference.location} {failure.reason}"
        if failure.cause == "content":
            return SourceError(told)
        return SourceError(
            f"{told}, and no other picture was found for {store}:"
            " name pictures that are there; names in a list are relative to the working folder"
        )
    for step in opened:
        if step.fault:
            return SourceError(f"{step.reference.location} {step.fault}")
    besides = f" besides what is excluded ({excluded}; --list-excluded shows it)" if excluded else ""
    return SourceError(f"there is no picture in the sources of {store}{besides}: name folders that hold some")
