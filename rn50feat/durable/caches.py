"""Find what runs keep for later ones: compiled networks and downloaded weights.

Takes the user's environment variables and returns folders, and the compiled
networks in theirs. A cache is optional: without a folder for it, there is none.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

# A network takes 94 MB, and there are up to two for each precision, variant, set of weights and version of OpenVINO.
KEPT = 6
KEPT_SECONDS = 30 * 86400.0  # since its last use
_PATTERN = "openvino-*.blob"


def user_folder() -> Path | None:
    """Find the user's cache folder; None for a user without a home, such as an unknown one in a container."""
    folder = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return None if folder.startswith("~") else Path(folder)


def weights_folder() -> Path | None:
    """Find torch.hub's own folder for weights (its `get_dir`, without importing torch); None without a home."""
    cache = user_folder()
    torch = os.environ.get("TORCH_HOME") or (cache and os.fspath(cache / "torch"))
    return None if torch is None else Path(os.path.expanduser(torch), "hub", "checkpoints")


def compiled_folder() -> Path | None:
    """Find the folder of compiled networks; None without a home."""
    cache = user_folder()
    return cache and cache / "rn50feat"


def compiled_path(key: str) -> Path | None:
    """Name the file of the compiled network with a key, whether it exists or not; None without a home."""
    folder = compiled_folder()
    return folder and folder / _PATTERN.replace("*", key)


def compiled() -> list[tuple[Path, os.stat_result]]:
    """List the compiled networks and the status of their files, the most recently used first."""
    found = []
    with suppress(OSError):
        for path in (compiled_folder() or Path(os.devnull)).glob(_PATTERN):
            with suppress(OSError):
                found.append((path, path.stat()))
    return sorted(found, key=lambda one: one[1].st_mtime, reverse=True)


def use(path: Path) -> None:
    """Mark a compiled network as used; remove those not used for a month, and all but the last `KEPT`."""
    with suppress(OSError):
        os.utime(path)
    for place, (other, status) in enumerate(compiled()):
        if other != path and (place >= KEPT or time.time() - status.st_mtime > KEPT_SECONDS):
            with suppress(OSError):  # a process that has it open keeps it
                other.unlink()
