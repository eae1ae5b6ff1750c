"""The program: its commands, and what an error looks like.

In: the arguments of a command line. Out: what the command prints. An
`RN50FeatError` becomes one ``Error:`` line and its exit code; a bug keeps its
traceback.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from rn50feat import __version__, limits
from rn50feat.cli import (
    bench,
    convert,
    duplicates,
    export,
    extract,
    import_,
    index,
    info,
    merge,
    model,
    search,
    streams,
    verify,
)
from rn50feat.errors import RN50FeatError
from rn50feat.unseen import one_line


class _Failed(click.ClickException):
    """The ``Error:`` line of an `RN50FeatError`."""

    def __init__(self, error: RN50FeatError) -> None:
        super().__init__(one_line(str(error)))
        vars(self)["exit_code"] = error.exit_code


class _Program(click.Group):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        streams.settle()
        return super().__call__(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with limits.told():
                return super().invoke(ctx)
        except RN50FeatError as error:
            raise _Failed(error) from error


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every option can be set by a variable too: RN50FEAT_BATCH_SIZE for --batch-size, and so on.",
)
@click.version_option(__version__, prog_name="rn50feat")
def main() -> None:
    """ResNet50 features for folders of pictures, and similar pictures found by them."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.addLevelName(logging.WARNING, "Warning")


for module in (bench, convert, duplicates, export, extract, import_, index, info, merge, model, search, verify):
    main.add_command(module.command)
