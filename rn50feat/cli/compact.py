"""The command ``compact``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import json_option, option, store_argument
from rn50feat.cli.stores import open_store
from rn50feat.cli.terminal import say
from rn50feat.errors import DamagedStoreError, count, size
from rn50feat.escape import one_line

if TYPE_CHECKING:
    from rn50feat.store.compact import Compacted


@click.command("compact")
@store_argument
@option("--to", type=click.Path(path_type=Path), metavar="OUT.h5", help="Write a copy, and leave STORE unchanged.")
@option("--overwrite", is_flag=True, help="Replace OUT.h5 if it is a store.")
@json_option
@pass_ending
def command(ending: Ending, store: Path | None, to: Path | None, overwrite: bool, as_json: bool) -> None:
    """Rewrite STORE without the space left by removed rows.

    STORE is chosen as for search. Use --to to back up a store: the copy is
    consistent even during a run, and keeps ids and history. Of a damaged store,
    --to saves what can be read, says what is lost, and exits with 1.
    """
    from rn50feat.store.compact import compact as run

    if overwrite and to is None:
        raise click.UsageError("--overwrite requires --to.")
    done = run(open_store(store, ending).path, to, overwrite=overwrite)
    ending.add(out=str(done.path), rows=done.rows, bytes_before=done.before, bytes_after=done.after)
    say(f"{done.path}: {count(done.rows, 'row')}, {size(done.before)} before, {size(done.after)} now")
    if done.lost:
        ending.add(lost_rows=done.lost_rows, lost=done.lost)
        raise DamagedStoreError(
            f"{done.path} lacks what could not be read ({count(done.lost_rows, 'row')}; {_named(done)}): run rn50feat"
            f" extract SOURCE... {done.path}, which computes rows again from their images"
        )


def _named(done: Compacted) -> str:
    """Name what a copy lacks, within a line."""
    words = ", ".join(map(one_line, done.lost))
    return words + (", …" if done.lost_rows > len(done.lost) else "")
