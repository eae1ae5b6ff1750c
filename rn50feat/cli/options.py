"""How options are declared: their variables, their types, and those that commands share.

In: what a user types, or has in an ``RN50FEAT_`` variable. Out: values that the
library takes.
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
from rn50feat.images.provenance import PREPROCESSINGS, PROFILES
from rn50feat.model.variants import VARIANTS
from rn50feat.pages.page import target
from rn50feat.sources.selection import Shard

Command = TypeVar("Command", bound=Callable[..., Any])


class NumberRange(click.FloatRange):
    """A range of numbers: nan, which is in none, is refused too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail("nan is no number: give one.", param, ctx)
        return number


class _Argument(click.Argument):
    """An argument that says what to name where it is missing."""

    def __init__(self, declarations: Sequence[str], *, missing: str, **settings: Any) -> None:
        super().__init__(declarations, **settings)
        self._missing = missing

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter as error:
            raise click.UsageError(f"{error.format_message().rstrip('.')}: {self._missing}.", ctx) from error


class _Option(click.Option):
    """An option that the variable RN50FEAT_<its long name> sets too."""

    def __init__(self, declarations: Sequence[str], **settings: Any) -> None:
        long = next(name for name in declarations if name.startswith("--")).partition("/")[0]
        super().__init__(declarations, envvar="RN50FEAT_" + long[2:].replace("-", "_").upper(), **settings)


def duration(text: str) -> float:
    """Return seconds, from 90, 90s, 30m or 2h."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)):
        raise click.BadParameter(f"{text!r} is no duration: give 90s, 30m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def commit_interval(text: str) -> tuple[float, float]:
    """Return (pictures, seconds), from 5000, 30s or 5000,30s; what is not given is never reached."""
    pictures = seconds = math.inf
    parts = text.split(",")
    if len(parts) > len({part.isdecimal() for part in parts}):
        raise click.BadParameter(f"{text!r} says one thing twice: give 5000, 30s or 5000,30s")
    for part in parts:
        if part.isdecimal():
            pictures = max(1, int(part))
        else:
            seconds = duration(part)
    return pictures, seconds


def memory(text: str) -> int:
    """Return bytes, from 2G, 500M or a number."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s?([kMGT]?)B?", text)):
        raise click.BadParameter(f"{text!r} is no amount of memory: give 2G or 500M")
    return int(float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[match[2]])


class _Pattern(StringParamType):
    """A pattern; several in a variable are lines, as in a .gitignore file."""

    envvar_list_splitter = "\n"


PATTERN = _Pattern()


def failure_limit(text: str) -> tuple[float, bool]:
    """Return (number, whether it is a percentage), from 20 or 5%."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)):
        raise click.BadParameter(f"{text!r} is neither a number nor a percentage: give 20 or 5%")
    if match[2] and float(match[1]) > 100:
        raise click.BadParameter(f"{text} is more than all: give at most 100%")
    return float(match[1]), bool(match[2])


def page_file(text: str) -> Path:
    """Return the file of an HTML page; raise `PageError` at once where it could not be written in the end."""
    target(path := Path(text))
    return path


def shard_of(text: str) -> Shard:
    """Return the shard that a text like 2/8 names."""
    try:
        return Shard.parse(text)
    except SourceError as error:
        raise click.BadParameter(str(error)) from error


def typed(name: str) -> bool:
    """Tell whether the parameter `name` comes from the command line: not from a variable, and no default."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def form_of(**given: bool) -> str | None:
    """Return which of the forms of output is asked for; what is typed comes before variables."""
    asked = [name for name, wanted in given.items() if wanted]
    asked = [name for name in asked if typed("as_json" if name == "json" else name)] or asked
    ending_of(click.get_current_context()).as_json = asked == ["json"]
    if len(asked) > 1:
        raise click.UsageError(f"{' and '.join(f'--{name}' for name in asked)} are two forms: give one.")
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
    """Declare an option that a variable sets too; as `click.option`."""
    return click.option(*declarations, cls=_Option, **settings)


def argument(name: str, *, missing: str, **settings: Any) -> Callable[[Command], Command]:
    """Declare an argument that cannot be left out; `missing` says what to name."""
    return click.argument(name, cls=_Argument, missing=missing, **settings)


def _all_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that gives a command all of `options`, in this order."""

    def decorate(command: Command) -> Command:
        for one in reversed(options):
            command = one(command)
        return command

    return decorate


# Eager, so that an error in another option is told as JSON too, with the store.
json_option = option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_note_json, help="Print one line of JSON on stdout."
)
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

html_option = option(
    "--html", type=page_file, metavar="FILE", help="Write FILE, a page that shows the pictures, as well."
)

check_option = option(
    "--check", is_flag=True, help="Ask remote storage about images there: whether they are as they were, and for pages."
)

network_options = _all_of(
    option(
        "--variant",
        type=click.Choice(list(VARIANTS)),
        help="The network that the weights are for.  [default: as they tell]",
    ),
    option(
        "--preprocess",
        type=click.Choice(list(PREPROCESSINGS)),
        help="How pictures become the network's input.  [default: as the store, or as suits the variant]",
    ),
)

color_options = _all_of(
    option(
        "--color",
        type=click.Choice(list(PROFILES)),
        help="Take colours as they are stored, or convert embedded ICC profiles to sRGB.  [default: as the store,"
        " or stored]",
    ),
    option(
        "--range",
        "value_range",
        metavar="type|own|LOW:HIGH",
        help="What becomes black and white of more than 8 bits: the ends of the type, the image's own smallest and"
        " largest, or these numbers, 0:4095 for 12 bits.  [default: as the store, or type]",
    ),
)

# Those of `EngineOptions`.
engine_options = _all_of(
    option(
        "--backend",
        type=click.Choice(["auto", "torch", "openvino"]),
        default=EngineOptions.backend,
        show_default=True,
        help="What runs the network; auto is OpenVINO on the CPU where it is installed, else torch.",
    ),
    option("--device", default=EngineOptions.device, show_default=True, help="auto, cpu, cuda or cuda:N."),
    option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        default=EngineOptions.precision,
        show_default=True,
        help="What to compute in; auto is fp16 on a GPU, bf16 on a CPU that has it, else fp32.",
    ),
    option(
        "--batch-size",
        type=click.IntRange(0, 4096),
        default=EngineOptions.batch_size,
        show_default=True,
        help="Pictures that go through the network at once; 0 is 16 or more on the CPU, by free memory on a GPU.",
    ),
    option(
        "--workers",
        type=click.IntRange(0, 1024),
        default=EngineOptions.workers,
        show_default=True,
        help="Decoding processes; 0 chooses by the number of cores.",
    ),
    option(
        "--max-megapixels",
        type=click.IntRange(1, 100_000),
        default=EngineOptions.max_megapixels,
        show_default=True,
        help="Larger pictures fail before they are decoded.",
    ),
)

# Where the engine runs; for `engine_at`.
place_options = _all_of(
    option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where to compute: on this machine, or on the nodes of a Ray cluster.",
    ),
    option(
        "--ray-address",
        metavar="auto|local|HOST:PORT",
        default="auto",
        show_default=True,
        help="Which Ray cluster: auto is that of RAY_ADDRESS or of this machine, local a new one of this run.",
    ),
)


def engine_at(engine: str, ray_address: str) -> dict[str, Any]:
    """Return what the library is to be told of where the engine runs."""
    if engine == "ray":
        from rn50feat.engines import cluster, ray

        cluster.require_address(ray_address)  # also where there is nothing to compute
        return {"start": partial(ray.start, address=ray_address)}
    if typed("ray_address"):
        raise click.UsageError("--ray-address is about --engine ray: give both, or neither.")
    return {}
