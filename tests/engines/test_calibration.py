"""calibration: cosines, neighbours, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from networks import OPENVINO

from rn50feat import EngineOptions
from rn50feat.backends import contract
from rn50feat.engines import calibration, local
from rn50feat.errors import DeviceError
from rn50feat.model import weights


def test_cosines_are_of_what_differs_from_the_mean() -> None:
    exact = np.array([[11, 10], [9, 10], [10, 11], [10, 9]], np.float32)
    rows = exact.copy()
    rows[0] = [10, 11]
    np.testing.assert_allclose(calibration.centred_cosines(rows, exact), [0, 1, 1, 1], atol=1e-6)


def test_agreement_is_the_share_of_the_same_neighbours() -> None:
    angles = np.array([0, 0.1, 0.3, 0.6])
    exact = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert calibration.agreement(exact, exact, 1) == 1
    turned = exact[[0, 1, 3, 2]]
    assert calibration.agreement(turned, exact, 1) == 0.5


@OPENVINO
def test_too_few_images_and_what_int8_cannot_run_with_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "_flags", lambda: {"avx512_vnni"})
    chosen = weights.find("random")
    provenance = weights.provenance(chosen)
    with pytest.raises(
        DeviceError, match="32 readable images to measure ranges on, and found 0 in here: .* --calibrate"
    ):
        calibration.calibrate([], chosen, provenance, EngineOptions(), source="here")
    with pytest.raises(DeviceError, match="leave --backend torch out"):
        local.require_for_int8(EngineOptions(backend="torch"))
    with pytest.raises(DeviceError, match="ranges, which extract measures"):
        local.backend(chosen, provenance, EngineOptions(precision="int8"))
    with pytest.raises(DeviceError, match="int8 needs OpenVINO on the CPU"):
        EngineOptions(precision="int8", device="cuda")
