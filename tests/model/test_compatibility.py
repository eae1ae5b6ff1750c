"""compatibility: a run takes its choices from the store, or differs from it and is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import hundred

from rn50feat import FeatureStore
from rn50feat.errors import ProvenanceError, StoreError
from rn50feat.model.compatibility import agree
from rn50feat.model.weights import Choices


def test_what_is_left_open_is_taken_from_the_store(tmp_path: Path) -> None:
    store = FeatureStore(hundred(tmp_path / "out.h5"))
    weights, provenance = agree(store, Choices(), "float32")
    assert (weights.name, provenance) == ("random:0", store.provenance)
    assert agree(None, Choices("random:7"), "float16")[1].weights == "random:7"


def test_what_differs_is_refused_with_the_remedy(tmp_path: Path) -> None:
    store = FeatureStore(hundred(tmp_path / "out.h5"))
    with pytest.raises(ProvenanceError, match="out.h5 .*random:0.*: use another"):
        agree(store, Choices("random:1"), None, remedy="use another")
    with pytest.raises(ProvenanceError, match="keras.*: use another file, or --overwrite"):
        agree(store, Choices(variant="keras"), None)
    with pytest.raises(StoreError, match="holds float32, you asked for float16: use another file"):
        agree(store, Choices(), "float16")
