"""Name the machine that a benchmark runs on."""

from __future__ import annotations

import platform
from pathlib import Path

_FLAGS = ("avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def processor() -> str:
    """Return the processor's model, and those of its instructions that networks are fast with."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    flags = [flag for flag in _FLAGS if flag in facts.get("flags", "").split()]
    name, model = (facts.get(key, "?").strip() for key in ("model name", "model"))
    return f"{name}, model {model}, {' '.join(flags)}"
