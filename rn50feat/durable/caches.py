"""The files that runs keep for later ones: the compiled networks, and where downloads go.

In: the variables of the user's environment. Out: folders, and the networks in
theirs. A cache is never needed: where there is no folder for it, there is none.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

# A network takes 94 MB, and there is one for each precision, variant, set of weights and version of OpenVINO.
KEPT = 4
KEPT_SECONDS = 30 * 86400.0  # without use
_PATTERN = "openvino-*.blob"


def user_folder() -> Path | None:
    """Return the user's folder for caches; None for a user without a home, such as an unknown one in a container."""
    folder = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return None if folder.startswith("~") else Path(folder)


def weights_folder() -> Path | None:
    """Return torch.hub's own folder for weights (its `get_dir`, without importing torch); None without a home."""
    cache = user_folder()
    torch = os.environ.get("TORCH_HOME") or (cache and os.fspath(cache / "torch"))
    return None if torch is None else Path(os.path.expanduser(torch), "hub", "checkpoints")


def compiled_folder() -> Path | None:
    """Return the folder of compiled networks."""
    cache = user_folder()
    return cache and cache / "rn50feat"


def compiled_path(key: str) -> Path | None:
    """Return where the compiled network with a key lies, or would lie."""
    folder = compiled_folder()
    return folder and folder / _PATTERN.replace("*", key)


def compiled() -> list[tuple[Path, os.stat_result]]:
    """Return the compiled networks with what is known of their files, the one used last first."""
    found = []
    with suppress(OSError):
        for path in (compiled_folder() or Path(os.devnull)).glob(_PATTERN):
            with suppress(OSError):
                found.append((path, path.stat()))
    return sorted(found, key=lambda one: one[1].st_mtime, reverse=True)


def use(path: Path) -> None:
    """Note that a compiled network is used, and remove those that were not for a month, or that are too many."""
    with suppress(OSError):
        os.utime(path)
    for place, (other, status) in enumerate(compiled()):
        if other != path and (place >= KEPT or time.time() - status.st_mtime > KEPT_SECONDS):
            with suppress(OSError):  # a process that has it open keeps it
                other.unlink()
