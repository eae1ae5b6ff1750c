"""The command ``export``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import argument, json_option, option
from rn50feat.cli.outcome import STOP_CODES
from rn50feat.cli.stores import mark_random, open_store
from rn50feat.cli.terminal import say, signals, stages
from rn50feat.errors import count


@click.command("export", no_args_is_help=True)
@argument("names", metavar="[STORE] OUT", nargs=-1, required=True, missing="name the file to write, features.npy say")
@option("--to", "database", type=click.Choice(["qdrant"]), help="OUT is the URL of this database, or a folder of it.")
@option("--collection", help="The database's collection.  [default: named as STORE]")
@option("--normalize", is_flag=True, help="Give every row the length 1.")
@option("-0", "--null", is_flag=True, help="End the paths beside a .npy file by NULs, not by lines.")
@option("--overwrite", is_flag=True, help="Replace OUT, or the points of another store.")
@option("--quiet", is_flag=True, help="Show no progress and no summary.")
@json_option
@pass_ending
def command(
    ending: Ending,
    names: tuple[str, ...],
    database: str | None,
    collection: str | None,
    normalize: bool,
    null: bool,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write the rows of STORE to OUT: a .npy, .csv or .parquet file, or a database.

    STORE is as for search. Beside OUT.npy, OUT.paths.txt lists the path of
    each row. A database gets what is new, loses what is gone, and keeps the
    rest; the key of a Qdrant server is in QDRANT_API_KEY.
    """
    from rn50feat.store.reader import SUFFIXES

    *stores, out = names
    if not stores and out.endswith(SUFFIXES):
        stores = [out]  # and OUT is missing, as the error says in a moment
    if len(stores) > 1 or any(not name.endswith(SUFFIXES) for name in stores):
        raise click.UsageError(f"Give a STORE that ends in {' or '.join(SUFFIXES)}, and one OUT.")
    if database is None and collection is not None:
        raise click.UsageError("--collection is about --to: give both, or neither.")
    if database is not None and null:
        raise click.UsageError("--null is about .npy files: a database has no list of paths.")
    if database is not None and normalize:
        raise click.UsageError("--normalize is about files: a database compares by cosine, whatever the length.")
    store = open_store(Path(stores[0]) if stores else None, ending)
    with stages(quiet) as on_stage, signals() as should_stop:

        def told(stage: str, done: int, total: int) -> None:
            on_stage(stage, done, total)
            if reason := should_stop():
                ending.add(stopped=reason)
                sys.exit(STOP_CODES[reason])  # what was written beside its place goes with the block

        if database is not None:
            from rn50feat.exchange.qdrant import shown, sync

            done = sync(store, out, collection=collection, overwrite=overwrite, on_stage=told)
            out = shown(out)
            ending.add(**dataclasses.asdict(done))
            result = f"{done.upserted} upserted, {done.deleted} deleted, {done.unchanged} unchanged"
        else:
            from rn50feat.exchange.export import export as run

            rows = run(store, out, normalize=normalize, null=null, overwrite=overwrite, on_stage=told)
            ending.add(rows=rows)
            result = f"{count(rows, 'row')} of 2048"
    ending.add(out=out)
    if not quiet:
        say(f"{out}: {result}")
        mark_random(store)
