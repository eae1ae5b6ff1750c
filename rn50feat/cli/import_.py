"""The command ``import``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.network_options import color_options, network_options
from rn50feat.cli.options import (
    argument,
    dtype_option,
    json_option,
    null_list_option,
    option,
    out_argument,
    quiet_option,
)
from rn50feat.cli.outcome import report_run
from rn50feat.cli.terminal import progress, signals


@click.command("import", no_args_is_help=True)
@argument("features", type=click.Path(path_type=Path), missing="name a .npy or .parquet file")
@out_argument
@option(
    "--paths",
    type=click.Path(path_type=Path),
    metavar="LIST",
    help="The path of each row of a .npy file, as lines or another .npy.  [default: FEATURES with .paths.txt]",
)
@null_list_option
@option("--column", help="Column of a .parquet file that holds the features.  [default: features]")
@option(
    "--root",
    type=click.Path(path_type=Path),
    default="",
    metavar="FOLDER",
    help="Folder that relative paths start from.  [default: the current folder]",
)
@option("--weights", help="Weights that made the features: imagenet-v1, imagenet-v2 or a file.")
@network_options
@option(
    "--exif/--no-exif",
    default=None,
    help="Images were rotated as their EXIF data says, or not.  [default: the store's, else the preprocessing's]",
)
@option(
    "--exact-decode/--scaled-decode",
    default=None,
    help="Large JPEGs were decoded at full or at reduced scale.  [default: the store's, else the preprocessing's]",
)
@color_options
@option(
    "--made-by", metavar="WORDS", help="What made the features if not rn50feat's networks; limits search to --stored."
)
@dtype_option("the store's, else that of FEATURES")
@quiet_option
@json_option
@pass_ending
def command(ending: Ending, features: Path, out: Path, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Import the rows of FEATURES, a .npy or .parquet file, into OUT.h5.

    Rows have 2048 numbers. Give the paths of their images, and say what made
    them, unless the file does. Images that OUT.h5 already has keep their rows.
    """
    from rn50feat.exchange.importing import import_features as run

    with progress(quiet) as on_progress, signals() as should_stop:
        summary = run(features, out, should_stop=should_stop, on_progress=on_progress, **settings)
    report_run(summary, out, ending, quiet=quiet)
