"""The command ``compact``."""

from __future__ import annotations

from pathlib import Path

import click

from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import json_option, option, store_argument
from rn50feat.cli.stores import open_store
from rn50feat.cli.terminal import say
from rn50feat.errors import count, size


@click.command("compact")
@store_argument
@option("--to", type=click.Path(path_type=Path), metavar="OUT.h5", help="Write a copy, and leave STORE as it is.")
@option("--overwrite", is_flag=True, help="Let --to replace a file.")
@json_option
@pass_ending
def command(ending: Ending, store: Path | None, to: Path | None, overwrite: bool, as_json: bool) -> None:
    """Write STORE anew, without the space of removed rows.

    STORE is as for search. With --to it is also the way to back up a store:
    the copy is consistent while a run is in progress, and has the same ids
    and history.
    """
    from rn50feat.store.compact import compact as run

    if overwrite and to is None:
        raise click.UsageError("--overwrite requires --to.")
    done = run(open_store(store, ending).path, to, overwrite=overwrite)
    ending.add(out=str(done.path), rows=done.rows, bytes_before=done.before, bytes_after=done.after)
    say(f"{done.path}: {count(done.rows, 'row')}, {size(done.before)} before, {size(done.after)} now")
