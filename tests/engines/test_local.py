"""local: which backend it chooses."""

from __future__ import annotations

import pytest

from rn50feat import EngineOptions
from rn50feat.errors import DeviceError


def test_backends_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    from rn50feat.engines import local

    assert not local._wants_openvino(EngineOptions(backend="torch"))
    assert not local._wants_openvino(EngineOptions(device="cuda"))
    monkeypatch.setattr(local, "_may_have_gpu", lambda: True)
    assert not local._wants_openvino(EngineOptions())
    with pytest.raises(DeviceError, match="not on cuda: use --backend torch"):
        local._wants_openvino(EngineOptions(backend="openvino", device="cuda"))
    monkeypatch.setattr(local, "find_spec", lambda name: None)
    assert not local._wants_openvino(EngineOptions(device="cpu"))
    with pytest.raises(DeviceError, match="pip install 'rn50feat.openvino.'"):
        local._wants_openvino(EngineOptions(backend="openvino"))
