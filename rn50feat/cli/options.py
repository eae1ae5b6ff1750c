"""Declare options: their environment variables, their types, and the ones that commands share.

Takes what a user types, or sets in an ``RN50FEAT_`` variable, and returns
values for the library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from click.types import StringParamType

from rn50feat.cli.ending import ending_of
from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import SourceError
from rn50feat.pages.page import target
from rn50feat.sources.selection import Shard

Command = TypeVar("Command", bound=Callable[..., Any])


class IntegerRange(click.IntRange):
    """A range of integers; click itself calls it an "integer range", in help texts and errors."""

    name = "integer"


class NumberRange(click.FloatRange):
    """A range of numbers that rejects nan as well."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail("nan is not a number: give one.", param, ctx)
        return number


class _Argument(click.Argument):
    """An argument whose error says what to name if it is missing."""

    def __init__(self, declarations: Sequence[str], *, missing: str, **settings: Any) -> None:
        super().__init__(declarations, **settings)
        self._missing = missing

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter as error:
            raise click.UsageError(f"{error.format_message().rstrip('.')}: {self._missing}.", ctx) from error


class _Option(click.Option):
    """An option that can also be set with the variable RN50FEAT_<its long name>."""

    def __init__(self, declarations: Sequence[str], **settings: Any) -> None:
        long = next(name for name in declarations if name.startswith("--")).partition("/")[0]
        super().__init__(declarations, envvar="RN50FEAT_" + long[2:].replace("-", "_").upper(), **settings)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Name the variable, not the option, where the value comes from it."""
        if ctx and self.name and ctx.get_parameter_source(self.name) is ParameterSource.ENVIRONMENT:
            return str(self.envvar)
        return super().get_error_hint(ctx)


def duration(text: str) -> float:
    """Parse 90, 90s, 30m or 2h as seconds."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)):
        raise click.BadParameter(f"{text!r} is not a duration: use a form like 90s, 30m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def commit_interval(text: str) -> tuple[float, float]:
    """Parse 5000, 30s or 5000,30s as (images, seconds), infinite where not given."""
    images = seconds = math.inf
    parts = text.split(",")
    if len(parts) > len({part.isdecimal() for part in parts}):
        raise click.BadParameter(f"{text!r} sets one limit twice: use a form like 5000, 30s or 5000,30s")
    for part in parts:
        if part.isdecimal():
            images = max(1, int(part))
        else:
            seconds = duration(part)
    return images, seconds


def memory(text: str) -> int:
    """Parse 2G, 500M or a number as bytes."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s?([kMGT]?)B?", text)):
        raise click.BadParameter(f"{text!r} is not an amount of memory: use a form like 2G or 500M")
    return int(float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[match[2]])


class _Pattern(StringParamType):
    """A pattern; a variable holds several as lines, like a .gitignore file."""

    envvar_list_splitter = "\n"


PATTERN = _Pattern()


def box(text: str) -> tuple[int, int, int, int]:
    """Parse 10,20,300,200 as left, top, width and height."""
    if not (match := re.fullmatch(r"(\d+),(\d+),(\d+),(\d+)", text)):
        raise click.BadParameter(f"{text!r} is not a box: give left, top, width and height, such as 10,20,300,200")
    left, top, width, height = map(int, match.groups())
    return left, top, width, height


def failure_limit(text: str) -> tuple[float, bool]:
    """Parse 20 or 5% as (number, whether it is a percentage)."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)):
        raise click.BadParameter(f"{text!r} is neither a number nor a percentage: use a form like 20 or 5%")
    if match[2] and float(match[1]) > 100:
        raise click.BadParameter(f"{text} is too large: give at most 100%")
    return float(match[1]), bool(match[2])


def page_file(text: str) -> Path:
    """Parse the file name of an HTML page; raise `PageError` now, not after the work, if it cannot be written."""
    target(path := Path(text))
    return path


def shard_of(text: str) -> Shard:
    """Parse a shard such as 2/8."""
    try:
        return Shard.parse(text)
    except SourceError as error:
        raise click.BadParameter(str(error)) from error


def typed(name: str) -> bool:
    """Check whether the parameter `name` was given on the command line, not by a variable or a default."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def form_of(**given: bool) -> str | None:
    """Return the output format that was asked for, if any; the command line overrides variables."""
    asked = [name for name, wanted in given.items() if wanted]
    asked = [name for name in asked if typed("as_json" if name == "json" else name)] or asked
    ending_of(click.get_current_context()).as_json = "json" in asked
    if len(asked) > 1:
        raise click.UsageError(f"{' and '.join(f'--{name}' for name in asked)} cannot be combined: choose one.")
    return asked[0] if asked else None


def _note_json(context: click.Context, _: click.Parameter, value: bool) -> bool:
    if not context.resilient_parsing:
        ending_of(context).as_json = value
    return value


def _note_store(context: click.Context, _: click.Parameter, value: Path | None) -> Path | None:
    if not context.resilient_parsing and value is not None:
        ending_of(context).store = str(value)
    return value


def option(*declarations: str, **settings: Any) -> Callable[[Command], Command]:
    """Declare an option that can also be set with a variable; takes what `click.option` takes."""
    return click.option(*declarations, cls=_Option, **settings)


def argument(name: str, *, missing: str, **settings: Any) -> Callable[[Command], Command]:
    """Declare a required argument; `missing` tells the user what to name."""
    return click.argument(name, cls=_Argument, missing=missing, **settings)


def all_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Combine `options`, in this order, into one decorator."""

    def decorate(command: Command) -> Command:
        for one in reversed(options):
            command = one(command)
        return command

    return decorate


# Eager, so that an error in another option is reported as JSON too, with the store.
json_option = option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_note_json, help="Print one line of JSON on stdout."
)
quiet_option = option("--quiet", is_flag=True, help="Show no progress and no summary.")
csv_option = option("--csv", is_flag=True, help="Print CSV.")
out_argument = argument(
    "out",
    metavar="OUT.h5",
    type=click.Path(path_type=Path),
    is_eager=True,
    callback=_note_store,
    missing="name the store to write",
)
store_argument = click.argument(
    "store",
    metavar="[STORE]",
    required=False,
    type=click.Path(path_type=Path),
    is_eager=True,
    callback=_note_store,
)

html_option = option("--html", type=page_file, metavar="FILE", help="Also write FILE, an HTML page with the images.")

check_option = option(
    "--check",
    is_flag=True,
    help="Access images in remote storage: check them for changes, and show them on HTML pages.",
)

exact_option = option("--exact", is_flag=True, help="Find only byte-for-byte copies.")

verify_option = option(
    "--verify", is_flag=True, help="Compare pixels, and leave out images that are only similar (extra verify)."
)

moved_weights_option = option("--weights", help="The file with the store's weights, if it has moved.")

null_list_option = option("-0", "--null", is_flag=True, help="Names in LIST end with NULs, not newlines.")


def threshold_option(what: str) -> Callable[[Command], Command]:
    """Declare --threshold; `what` says of which cosine it is the lowest."""
    text = f"{what}  [default: 0.95; with random weights 0.9998]"
    return option("--threshold", type=NumberRange(0, 1, min_open=True), help=text)


def dtype_option(default: str) -> Callable[[Command], Command]:
    """Declare --dtype; `default` says which type a store gets without it."""
    text = f"Type of the stored features.  [default: {default}]"
    return option("--dtype", type=click.Choice(["float16", "float32"]), help=text)


# The fields of `EngineOptions`.
engine_options = all_of(
    option(
        "--backend",
        type=click.Choice(["auto", "torch", "openvino"]),
        default=EngineOptions.backend,
        show_default=True,
        help="Library that runs the network; auto is OpenVINO on a CPU if installed, else torch.",
    ),
    option(
        "--device",
        default=EngineOptions.device,
        show_default=True,
        help="Device that runs the network: auto, cpu, cuda or cuda:N.",
    ),
    option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
        default=EngineOptions.precision,
        show_default=True,
        help="Precision of the computation; auto is that of an int8 store, else fp16 on a GPU, bf16 on a CPU that has"
        " it, else fp32. int8 is for a new store on the CPU: faster, and its rows differ a little.",
    ),
    option(
        "--batch-size",
        type=IntegerRange(0, 4096),
        default=EngineOptions.batch_size,
        show_default=True,
        help="Images per batch; 0 means 16 or more on a CPU, and as many as fit on a GPU.",
    ),
    option(
        "--workers",
        type=IntegerRange(0, 1024),
        default=EngineOptions.workers,
        show_default=True,
        help="Number of decoding processes; 0 means one that suits the number of cores.",
    ),
    option(
        "--max-megapixels",
        type=IntegerRange(1, 100_000),
        default=EngineOptions.max_megapixels,
        show_default=True,
        help="Reject larger images without decoding them.",
    ),
)

# Where the engine runs, for `engine_at`.
place_options = all_of(
    option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where to compute: on this machine or on a Ray cluster.",
    ),
    option(
        "--ray-address",
        metavar="auto|local|HOST:PORT",
        default="auto",
        show_default=True,
        help="Ray cluster to use; auto is that of RAY_ADDRESS or this machine, local a new one for this run.",
    ),
)


def engine_at(engine: str, ray_address: str) -> dict[str, Any]:
    """Return the library's arguments for where the engine runs."""
    if engine == "ray":
        from rn50feat.engines import cluster, ray

        cluster.require_address(ray_address)  # also where there is nothing to compute
        return {"start": partial(ray.start, address=ray_address)}
    if typed("ray_address"):
        raise click.UsageError("--ray-address requires --engine ray.")
    return {}
