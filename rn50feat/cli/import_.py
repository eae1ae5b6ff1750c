"""The command ``import``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import argument, color_options, json_option, network_options, option, out_argument
from rn50feat.cli.outcome import tell
from rn50feat.cli.terminal import progress, signals


@click.command("import", no_args_is_help=True)
@argument("features", type=click.Path(path_type=Path), missing="name a .npy or .parquet file")
@out_argument
@option(
    "--paths",
    type=click.Path(path_type=Path),
    metavar="LIST",
    help="The path of each row of a .npy file: lines, or a .npy.  [default: FEATURES with .paths.txt]",
)
@option("-0", "--null", is_flag=True, help="The names in LIST are ended by NULs, not by lines.")
@option("--column", help="What holds the features in a .parquet file.  [default: features]")
@option(
    "--root",
    type=click.Path(path_type=Path),
    default="",
    metavar="FOLDER",
    help="Where relative paths start.  [default: the current folder]",
)
@option("--weights", help="What made the features: imagenet-v1, imagenet-v2 or a file.")
@network_options
@option(
    "--exif/--no-exif",
    default=None,
    help="Pictures were turned upright as their EXIF says.  [default: as the preprocessing]",
)
@option(
    "--exact-decode/--scaled-decode",
    default=None,
    help="Large JPEGs were decoded whole, not at a smaller scale.  [default: as the preprocessing]",
)
@color_options
@option("--made-by", metavar="WORDS", help="What made the features, where rn50feat cannot: search by --stored alone.")
@option("--dtype", type=click.Choice(["float16", "float32"]), help="Of the stored features.  [default: as FEATURES]")
@option("--quiet", is_flag=True, help="Show no progress and no summary.")
@json_option
@pass_ending
def command(ending: Ending, features: Path, out: Path, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Take the rows of FEATURES, a .npy or .parquet file, into OUT.h5.

    They must be 2048 numbers each, and come with the paths of their pictures
    and a statement of what made them. A picture that OUT.h5 has already keeps
    its row.
    """
    from rn50feat.exchange.importing import import_features as run

    with progress(quiet) as on_progress, signals() as should_stop:
        summary = run(features, out, should_stop=should_stop, on_progress=on_progress, **settings)
    tell(summary, out, ending, quiet=quiet)
