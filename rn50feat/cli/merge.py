"""The command ``merge``."""

from __future__ import annotations

from pathlib import Path

import click

from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import argument, json_option, option, out_argument
from rn50feat.cli.outcome import tell
from rn50feat.cli.terminal import progress, signals


@click.command("merge", no_args_is_help=True)
@argument(
    "stores",
    metavar="STORE...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    missing="name the stores to merge, and OUT.h5 after them",
)
@out_argument
@option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    help="Of the features in OUT.h5.  [default: as OUT.h5, or the widest of the stores]",
)
@option("--quiet", is_flag=True, help="Show no progress and no summary.")
@json_option
@pass_ending
def command(ending: Ending, stores: tuple[Path, ...], out: Path, dtype: str | None, quiet: bool, as_json: bool) -> None:
    """Bring the rows of every STORE into OUT.h5, which is made or added to.

    All must have one provenance. A picture that several stores have gets one
    row: that of the newest file. Merging again costs what is new; nothing is
    removed from OUT.h5.
    """
    from rn50feat.exchange.merge import merge as run

    with progress(quiet) as on_progress, signals() as should_stop:
        summary = run(stores, out, dtype=dtype, should_stop=should_stop, on_progress=on_progress)
    tell(summary, out, ending, quiet=quiet)
