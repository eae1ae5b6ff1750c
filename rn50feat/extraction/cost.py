"""Compare what an image costs with the least that this machine could need.

In: the rates of the stages. Out: a `Cost`, in milliseconds of a core.
"""

from __future__ import annotations

from dataclasses import dataclass

STAGES = ("read", "decode", "network", "rest")


@dataclass(frozen=True)
class Cost:
    """Milliseconds of a core per image, by stage, and the least of each; ``reached`` is the ratio of their sums.

    ``read`` includes the digest, ``decode`` the resize. The least of decoding
    is a JPEG's Huffman pass and one resize, that of the network multiplying
    matrices as large as fits; reading counts as it is, and ``rest`` as nothing.
    """

    spent: dict[str, float]
    least: dict[str, float]
    reached: float


def cost(
    *, cores: int, reading: float, decoding: float, network: float, together: float, shrinking: float, multiply: float
) -> Cost:
    """Compute the cost from rates in images/s.

    `reading`, `decoding` and `shrinking` (the least work of decoding) are those of one core; `network` and `together`
    keep all `cores` busy. `multiply` is the least time of the network in seconds of a core.
    """
    spent = {"read": 1 / reading, "decode": 1 / decoding, "network": cores / network}
    spent["rest"] = max(0.0, (cores / together if together else 0.0) - sum(spent.values()))
    least = {"read": 1 / reading, "decode": min(1 / shrinking, spent["decode"])}
    least |= {"network": min(multiply, spent["network"]), "rest": 0.0}
    return Cost(
        {stage: 1000 * spent[stage] for stage in STAGES},
        {stage: 1000 * least[stage] for stage in STAGES},
        sum(least.values()) / sum(spent.values()),
    )
