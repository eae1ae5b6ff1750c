"""The command ``convert``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.network_options import network_options
from rn50feat.cli.options import argument, json_option, option
from rn50feat.cli.terminal import downloads, say


@click.command("convert", no_args_is_help=True)
@argument("weights", missing="name a file, imagenet-v1 or imagenet-v2")
@argument(
    "out",
    metavar="OUT.safetensors",
    type=click.Path(path_type=Path),
    missing="name the file to write",
)
@network_options
@option("--force", is_flag=True, help="Replace OUT.safetensors if it exists.")
@json_option
@pass_ending
def command(
    ending: Ending,
    weights: str,
    out: Path,
    variant: str | None,
    preprocess: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write WEIGHTS to one safetensors file that records its variant and preprocessing.

    WEIGHTS is a torch, Keras or TF-slim file, imagenet-v1 or imagenet-v2. With
    --weights OUT.safetensors and no other option, extract computes exactly the
    same features.
    """
    from rn50feat.model.convert import convert as run

    with downloads() as on_download:
        origin = run(weights, out, variant=variant, preprocess=preprocess, force=force, on_download=on_download)
    ending.add(out=str(out), provenance=json.loads(origin.to_json()))
    found = f", {origin.weights_layout}" if origin.weights_layout else ""
    say(f"{out}: {origin.network}, preprocessing {origin.preprocessing.name}, from {origin.weights_label}{found}")
