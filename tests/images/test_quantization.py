"""quantization: it is part of a provenance, which older versions can read without it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from stores import PROVENANCE

from rn50feat.errors import ProvenanceError
from rn50feat.images.provenance import Provenance
from rn50feat.images.quantization import Quantization

INT8 = replace(PROVENANCE, quantization=Quantization((1.5, 2.25), "a folder", 50, 50, 0.99, 0.999, 0.98))


def test_a_quantization_survives_json_and_is_left_out_where_there_is_none() -> None:
    assert Provenance.from_json(INT8.to_json()) == INT8
    assert "quantization" not in json.loads(PROVENANCE.to_json())
    for wrong in ({"ranges": "x"}, {"ranges": [1.0], "zoom": 2}, {}):
        with pytest.raises(ProvenanceError, match="upgrade rn50feat"):
            Provenance.from_json(json.dumps({**json.loads(INT8.to_json()), "quantization": wrong}))


def test_rows_with_other_ranges_never_mix_while_other_measurements_do() -> None:
    assert INT8.quantization is not None
    other = replace(INT8, quantization=replace(INT8.quantization, ranges=(1.5, 2.5)))
    measured = replace(INT8, quantization=replace(INT8.quantization, worst=0.5, calibration="elsewhere"))
    assert INT8.difference(measured) is None
    for different in (other, PROVENANCE):
        difference = INT8.difference(different)
        assert difference is not None and difference[0] == "quantization"
