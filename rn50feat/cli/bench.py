"""The command ``bench``."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from rn50feat.cli import report
from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import IntegerRange, engine_options, json_option, option
from rn50feat.cli.terminal import write
from rn50feat.engines.contract import EngineOptions


@click.command("bench")
@click.argument("folder", default=".", type=click.Path())
@option("--count", type=IntegerRange(1), default=256, show_default=True, help="Number of images to measure on.")
@engine_options
@json_option
@pass_ending
def command(ending: Ending, folder: str, count: int, as_json: bool, **engine: Any) -> None:
    """Measure how fast each stage of a run is on the images of FOLDER.

    FOLDER is the current folder by default. Takes about half a minute, writes
    nothing, and reports the bottleneck and what would help.
    """
    from rn50feat.extraction.bench import bench as run

    result = run(folder, count=count, options=EngineOptions(**engine))
    ending.add(**dataclasses.asdict(result))
    if not as_json:
        write(report.benchmark_lines(result))
