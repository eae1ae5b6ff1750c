"""provenance: it survives JSON, and tells what differs."""

from __future__ import annotations

import pytest
from stores import PROVENANCE

from rn50feat.errors import ProvenanceError
from rn50feat.images.provenance import Provenance


def test_provenance_survives_json_and_tells_differences() -> None:
    assert Provenance.from_json(PROVENANCE.to_json()) == PROVENANCE
    assert PROVENANCE.difference(Provenance("random:0")) is None
    assert PROVENANCE.difference(Provenance("other name", "5e" * 32)) is None
    name, own, other = PROVENANCE.difference(Provenance("imagenet-v1", "06" * 32))
    assert (name, own, other) == ("weights", "random:0 (SHA-256 5e5e5e5e…)", "imagenet-v1 (SHA-256 06060606…)")
    with pytest.raises(ProvenanceError, match="upgrade rn50feat"):
        Provenance.from_json('{"weights": "x", "preprocessing": {"mean": [], "std": [], "zoom": 2}}')
