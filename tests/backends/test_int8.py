"""int8: rows near those of the plain network, which computes what is beyond the ranges."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from networks import OPENVINO

from rn50feat.backends import check, contract
from rn50feat.errors import DeviceError
from rn50feat.images.quantization import Quantization
from rn50feat.model import network, weights


@pytest.mark.slow
@OPENVINO
def test_int8_is_near_the_plain_network_which_computes_what_is_beyond_the_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rn50feat.backends.int8 import Int8Backend, Maxima
    from rn50feat.backends.openvino import OpenVinoBackend

    try:
        contract.require_int8()
    except DeviceError:
        pytest.skip("this CPU does not compute in int8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = weights.find("random")
    provenance = weights.provenance(chosen)
    load = cache(lambda: network.load(chosen))
    crops = check.crops(provenance.preprocessing)
    plain = OpenVinoBackend(provenance, load, precision="auto").features(crops)

    ranges = Maxima(provenance, load).ranges(crops)
    assert len(ranges) == 69 and min(ranges) > 0
    wide = Quantization(tuple(4 * value for value in ranges))
    made = Int8Backend(replace(provenance, quantization=wide), load)
    rows = made.features(crops)
    assert made.precision == "int8" and made.recomputed == 0
    assert not np.array_equal(rows, plain) and check.error(rows, plain) < 0.5
    np.testing.assert_array_equal(made.features(crops[:3]), rows[:3])

    narrow = Quantization(tuple(value / 100 for value in ranges))
    clipped = Int8Backend(replace(provenance, quantization=narrow), load)
    assert 0 < (clipped.features(crops) == plain).all(axis=1).sum() == clipped.recomputed

    with pytest.raises(DeviceError, match="2 ranges for 69 maps"):
        Int8Backend(replace(provenance, quantization=Quantization((1.0, 2.0))), load)


def test_a_processor_without_instructions_for_int8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "_flags", lambda: {"avx2"})
    with pytest.raises(DeviceError, match="VNNI or AMX"):
        contract.require_int8()
