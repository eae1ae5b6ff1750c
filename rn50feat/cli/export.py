"""The command ``export``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import IntegerRange, argument, json_option, option, quiet_option
from rn50feat.cli.outcome import STOP_CODES
from rn50feat.cli.stores import mark_random, open_store
from rn50feat.cli.terminal import say, signals, stages
from rn50feat.errors import count


@click.command("export", no_args_is_help=True)
@argument("names", metavar="[STORE] OUT", nargs=-1, required=True, missing="name the file to write, as in features.npy")
@option("--to", "database", type=click.Choice(["qdrant"]), help="OUT is the URL of this database, or its folder.")
@option("--collection", help="Collection in the database.  [default: the name of STORE]")
@option("--normalize", is_flag=True, help="Scale every row to length 1.")
@option("-0", "--null", is_flag=True, help="End paths in OUT.paths.txt with NULs, not newlines.")
@option(
    "--neighbours",
    metavar="K",
    type=IntegerRange(1, 1000),
    help="Add the K most similar rows to each row of OUT.parquet.",
)
@option("--overwrite", is_flag=True, help="Replace OUT, or another store's points in the collection.")
@quiet_option
@json_option
@pass_ending
def command(
    ending: Ending,
    names: tuple[str, ...],
    database: str | None,
    collection: str | None,
    normalize: bool,
    null: bool,
    neighbours: int | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write the rows of STORE to OUT: a .npy, .csv or .parquet file, or a database.

    STORE is chosen as for search. Next to OUT.npy, OUT.paths.txt lists the path
    of each row. In a database, new rows are added, removed ones deleted, and
    the others left alone; QDRANT_API_KEY holds the key of a Qdrant server.
    """
    from rn50feat.store.reader import SUFFIXES

    *stores, out = names
    if not stores and out.endswith(SUFFIXES):
        stores = [out]  # so OUT is missing, as the error below says
    if len(stores) > 1 or any(not name.endswith(SUFFIXES) for name in stores):
        raise click.UsageError(f"Give a STORE that ends in {' or '.join(SUFFIXES)}, and one OUT.")
    if database is None and collection is not None:
        raise click.UsageError("--collection requires --to.")
    if database is not None and null:
        raise click.UsageError("--null cannot be combined with --to: a database has no list of paths.")
    if database is not None and normalize:
        raise click.UsageError("--normalize cannot be combined with --to: a database compares by cosine anyway.")
    if database is not None and neighbours is not None:
        raise click.UsageError("--neighbours cannot be combined with --to: it requires a .parquet file.")
    store = open_store(Path(stores[0]) if stores else None, ending)
    with stages(quiet) as on_stage, signals() as should_stop:

        def report(stage: str, done: int, total: int) -> None:
            on_stage(stage, done, total)
            if reason := should_stop():
                ending.add(stopped=reason)
                sys.exit(STOP_CODES[reason])  # leaving the block removes the unfinished file

        if database is not None:
            from rn50feat.exchange.qdrant import shown, sync

            done = sync(store, out, collection=collection, overwrite=overwrite, on_stage=report)
            out = shown(out)
            ending.add(**dataclasses.asdict(done))
            result = f"{done.upserted} upserted, {done.deleted} deleted, {done.unchanged} unchanged"
        else:
            from rn50feat.exchange.export import export as run

            options: dict[str, Any] = {"normalize": normalize, "null": null, "neighbours": neighbours}
            rows = run(store, out, **options, overwrite=overwrite, on_stage=report)
            ending.add(rows=rows)
            result = f"{count(rows, 'row')} of 2048"
    ending.add(out=out)
    if not quiet:
        say(f"{out}: {result}")
        mark_random(store)
