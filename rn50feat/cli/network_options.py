"""Declare the options for the network and its input that several commands share.

Takes what a user types, and returns values for the library's `Choices`.
"""

from __future__ import annotations

import click

from rn50feat.cli.options import all_of, option
from rn50feat.errors import PreprocessingError
from rn50feat.images import settings
from rn50feat.images.provenance import PREPROCESSINGS, PROFILES
from rn50feat.model.variants import VARIANTS


def preprocessing(text: str) -> str:
    """Check the text of a preprocessing."""
    try:
        settings.parse(text)
    except PreprocessingError as error:
        raise click.BadParameter(str(error)) from error
    return text


network_options = all_of(
    option(
        "--variant",
        type=click.Choice(list(VARIANTS)),
        help="The network that the weights belong to.  [default: detected from the weights]",
    ),
    option(
        "--preprocess",
        type=preprocessing,
        metavar="NAME|KEY=VALUE,...",
        help=f"How images become network input: {', '.join(PREPROCESSINGS)}, or what to change in the default, such as"
        " resize=235,crop=224,interpolation=bicubic,mean=0.5,std=0.5.  [default: the store's, else as recorded with"
        " the weights, else the variant's]",
    ),
)

color_options = all_of(
    option(
        "--color",
        type=click.Choice(list(PROFILES)),
        help="Use colours as stored, or convert embedded ICC profiles to sRGB.  [default: the store's, else stored]",
    ),
    option(
        "--range",
        "value_range",
        metavar="type|own|LOW:HIGH",
        help="Values that become black and white in images of more than 8 bits: the limits of the data type, the"
        " image's own minimum and maximum, or two numbers, such as 0:4095.  [default: the store's, else type]",
    ),
)
