"""quantizing: a store in int8 from its first run on, or never."""

from __future__ import annotations

from pathlib import Path

import pytest
from networks import OPENVINO
from scenes import encoded, scene

from rn50feat import EngineOptions, FeatureStore, extract, search
from rn50feat.backends import contract
from rn50feat.errors import DeviceError, ProvenanceError
from rn50feat.extraction.verify import verify

INT8 = EngineOptions(precision="int8")


@pytest.mark.slow
@OPENVINO
def test_a_store_is_made_in_int8_which_later_runs_and_searches_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        contract.require_int8()
    except DeviceError:
        pytest.skip("this CPU does not compute in int8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images, out = tmp_path / "images", tmp_path / "out.h5"
    images.mkdir()
    for seed in range(33):
        (images / f"{seed:02}.png").write_bytes(encoded(scene(seed, 64, 48), "PNG"))
    with pytest.raises(DeviceError, match="not close enough to fp32 .* --int8-bound 1:"):
        extract(images, out, weights="random", options=INT8, int8_bound=1.0)
    assert not out.exists()

    done = extract(images, out, weights="random", options=INT8, int8_bound=-1.0)
    assert done.new == 33 and done.int8 is not None and done.int8.startswith("16 images also in fp32")
    made = FeatureStore(out).provenance
    assert made.quantization is not None and made.quantization.calibrated == 17
    (images / "new.png").write_bytes(encoded(scene(99, 64, 48), "PNG"))
    again = extract(images, out)
    assert (again.new, again.unchanged, again.int8) == (1, 33, None)
    assert FeatureStore(out).provenance == made
    assert {run["precision"] for run in FeatureStore(out).runs()} == {"int8"}
    (found,) = search([images / "07.png"], out, k=1)
    assert Path(found.hits[0].path).name == "07.png" and found.hits[0].score > 0.999
    assert not verify(out, recompute=4).findings
    with pytest.raises(ProvenanceError, match="holds features that are int8 .* you asked for bf16"):
        extract(images, out, options=EngineOptions(precision="bf16"))
