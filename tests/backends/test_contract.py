"""contract: what the CPU can compute in."""

from __future__ import annotations

import pytest

from rn50feat.backends.contract import cpu_has_bf16


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_bf16_is_not_chosen_where_onednn_is_told_to_do_without(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    has = cpu_has_bf16()
    for value, expected in (("AVX2", False), ("avx512_core_vnni", False), ("AVX512_CORE_AMX", has), ("ALL", has)):
        monkeypatch.setenv(variable, value)
        assert cpu_has_bf16() == expected
