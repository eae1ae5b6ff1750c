"""The command ``merge``."""

from __future__ import annotations

from pathlib import Path

import click

from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import argument, dtype_option, json_option, out_argument, quiet_option
from rn50feat.cli.outcome import report_run
from rn50feat.cli.terminal import progress, signals


@click.command("merge", no_args_is_help=True)
@argument(
    "stores",
    metavar="STORE...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    missing="name the stores to merge, then OUT.h5",
)
@out_argument
@dtype_option("that of OUT.h5, else the widest of the stores")
@quiet_option
@json_option
@pass_ending
def command(ending: Ending, stores: tuple[Path, ...], out: Path, dtype: str | None, quiet: bool, as_json: bool) -> None:
    """Merge the rows of every STORE into OUT.h5.

    OUT.h5 is created, or added to. All stores must have the same provenance.
    An image in several stores gets one row, that of the newest file. Merging
    again costs only what is new; nothing is removed from OUT.h5.
    """
    from rn50feat.exchange.merge import left_out
    from rn50feat.exchange.merge import merge as run

    with progress(quiet) as on_progress, signals() as should_stop:
        summary = run(stores, out, dtype=dtype, should_stop=should_stop, on_progress=on_progress)
    ending.add(left_out=left_out(stores))
    report_run(summary, out, ending, quiet=quiet)
