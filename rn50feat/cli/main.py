"""The program: its commands, and how an error is printed.

Takes the command-line arguments and runs the command they name. An
`RN50FeatError` becomes one ``Error:`` line and its exit code; a bug keeps its
traceback.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from rn50feat import __version__
from rn50feat.cli import (
    bench,
    compact,
    compare,
    convert,
    duplicates,
    export,
    extract,
    import_,
    index,
    info,
    map_,
    merge,
    model,
    relocate,
    search,
    streams,
    verify,
)
from rn50feat.cli.ending import Ending, ending_of
from rn50feat.durable import limits, waiting
from rn50feat.errors import RN50FeatError, SeveralErrors
from rn50feat.escape import one_line


class _Failed(click.ClickException):
    """The ``Error:`` line of an `RN50FeatError`, or one line for each error in it."""

    def __init__(self, error: RN50FeatError) -> None:
        super().__init__(one_line(str(error)))
        vars(self)["exit_code"] = error.exit_code
        self._lines = [one_line(str(one)) for one in (error.errors if isinstance(error, SeveralErrors) else [error])]

    def show(self, file: Any = None) -> None:
        for line in self._lines:
            click.echo(f"Error: {line}", file=file, err=file is None)


class _Formatter(click.HelpFormatter):
    """Wraps help texts without breaking lines inside option names."""

    _HYPHEN = "\ue000"  # stands in for a hyphen while lines are wrapped, so that none is broken there

    def write_text(self, text: str) -> None:
        super().write_text(self._whole(text))

    def write_dl(self, rows: Iterable[tuple[str, str]], *more: Any, **settings: Any) -> None:
        super().write_dl([(name, self._whole(text)) for name, text in rows], *more, **settings)

    def getvalue(self) -> str:
        return super().getvalue().replace(self._HYPHEN, "-")

    def _whole(self, text: str) -> str:
        return re.sub(r"--[a-z-]+", lambda option: option[0].replace("-", self._HYPHEN), text)


class _Context(click.Context):
    formatter_class = _Formatter


class _Program(click.Group):
    context_class = _Context

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        streams.settle()
        try:
            return super().__call__(*args, **kwargs)
        except SystemExit as end:
            if waiting.unfinished():
                streams.leave(end.code)
            raise

    def main(self, args: Sequence[str] | None = None, *more: Any, **settings: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        ending = Ending(arguments)
        with ending.watched():
            super().main(arguments, *more, **{**settings, "standalone_mode": False, "obj": ending})

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        found = super().resolve_command(ctx, args)
        ending_of(ctx).command = found[0]
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, each with its whole summary: click itself truncates it to one line."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(1000)) for name, command in commands if command])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with limits.explained():
                os.getcwd()  # without a working folder, libraries end the process when they are imported
                return super().invoke(ctx)
        except RN50FeatError as error:
            ending_of(ctx).note(error)
            raise _Failed(error) from error


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every option can also be set in the environment: --batch-size as RN50FEAT_BATCH_SIZE, and so on.",
)
@click.version_option(__version__, prog_name="rn50feat")
def main() -> None:
    """Turn folders of images into ResNet50 features, and find similar images."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.addLevelName(logging.WARNING, "Warning")


for module in (
    bench,
    compact,
    compare,
    convert,
    duplicates,
    export,
    extract,
    import_,
    index,
    info,
    map_,
    merge,
    model,
    relocate,
    search,
    verify,
):
    module.command.context_class = _Context
    main.add_command(module.command)
