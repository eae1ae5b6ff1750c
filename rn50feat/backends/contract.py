"""Define what a backend is: crops in, features out.

In: crops, uint8 or float32 of shape (n, 224, 224, 3), as `images` makes them.
Out: features, float32 of shape (n, 2048). One module implements this for each
library that can run the network.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rn50feat.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Crops = NDArray[np.uint8] | NDArray[np.float32]

NAMES = ("auto", "torch", "openvino")
# Images that go through a CPU at once. With more, torch's feature maps are too large for the heap (32 MB), and the
# kernel allocates and clears memory for each: 42.2 images/s in bf16 for 16, against 39.7 for 32 and 41.0 for 8.
CPU_BATCH = 16


class Backend(Protocol):
    """The network on one device or several."""

    name: str
    device: str  # several are joined by commas
    precision: str  # fp32, bf16, fp16 or int8
    weights_sha256: str  # of the weights that it computes with
    batch_size: int  # images per call for which `features` is fast, unless the user chooses another number
    lanes: int  # threads that can usefully call `features` at once
    recomputed: int  # images so far whose rows came from another network, since int8 cannot represent them

    def features(self, crops: Crops) -> NDArray[np.float32]:
        """Compute the features, float32 (n, 2048), of crops of the preprocessing's dtype, (n, 224, 224, 3)."""


def cpu_has_bf16() -> bool:
    """Check whether the processor multiplies bfloat16 natively: it is 2.6 times as fast as fp32 then, else slower."""
    # oneDNN, which torch and OpenVINO compute with, can be limited to fewer instructions than the processor has.
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "ALL")).upper()
    allowed = any(name in most for name in ("ALL", "DEFAULT", "BF16", "FP16", "AMX", "AVX10"))
    return allowed and bool(_flags() & {"avx512_bf16", "amx_bf16"})


def require_int8() -> None:
    """Raise `DeviceError` unless the processor multiplies 8-bit numbers exactly: older ones clip their sums."""
    if not _flags() & {"avx512_vnni", "avx_vnni", "amx_int8"}:
        raise DeviceError("this CPU has no instructions for int8 (VNNI or AMX): use another machine, or leave int8 out")


def _flags() -> set[str]:
    """Read what instructions an x86 processor has; nothing on other machines."""
    try:
        return set(Path("/proc/cpuinfo").read_text().split()) if platform.machine() == "x86_64" else set()
    except OSError:
        return set()


def cpu_precision(name: str) -> str:
    """Resolve `name` (auto, fp32 or bf16) to a precision on this processor; raise `DeviceError` for fp16."""
    if name == "fp16":
        raise DeviceError("precision fp16 needs a CUDA device: use bf16 or fp32 on the CPU")
    return name if name != "auto" else "bf16" if cpu_has_bf16() else "fp32"
