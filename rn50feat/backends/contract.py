"""What runs the network: crops in, features out.

In: crops, uint8 or float32 of shape (n, 224, 224, 3), as `images` makes them.
Out: features, float32 of shape (n, 2048). One module for each library that
can do it.
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
# Pictures that go through a CPU at once. With more, torch's maps are too large for the heap (32 MB), and the kernel
# hands out and clears the memory of each anew: 42.2 against 39.7 images/s in bf16 for 16 and 32, 41.0 for 8.
CPU_BATCH = 16


class Backend(Protocol):
    """A network on a device, or on several."""

    name: str
    device: str  # several are joined by commas
    precision: str  # fp32, bf16 or fp16
    weights_sha256: str  # of the weights that it computes with
    batch_size: int  # pictures for which `features` is fast, where the user does not choose
    lanes: int  # threads that may call `features` at once, and gain by it

    def features(self, crops: Crops) -> NDArray[np.float32]:
        """Return features, float32 of shape (n, 2048), of crops of the preprocessing's dtype, (n, 224, 224, 3)."""


def cpu_has_bf16() -> bool:
    """Tell whether the processor multiplies bfloat16 natively: 2.6 times as fast as fp32 here, else slower."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    # oneDNN, which computes in torch and in OpenVINO, may be told to use less than there is.
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "ALL")).upper()
    allowed = any(name in most for name in ("ALL", "DEFAULT", "BF16", "FP16", "AMX", "AVX10"))
    return allowed and bool(flags & {"avx512_bf16", "amx_bf16"}) and platform.machine() == "x86_64"


def cpu_precision(name: str) -> str:
    """Return the precision that `name`, auto, fp32 or bf16, means on this processor; `DeviceError` for fp16."""
    if name == "fp16":
        raise DeviceError("precision fp16 needs a CUDA device: use bf16 or fp32 on the CPU")
    return name if name != "auto" else "bf16" if cpu_has_bf16() else "fp32"
