"""Pack archives for the tests: tar and zip, as programs write them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path


def tar(path: Path, members: Iterable[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    """Write a tar archive."""
    with tarfile.open(path, "w", format=format, encoding="utf-8", errors="surrogateescape") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def zipped(path: Path, members: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write a zip archive."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def packed(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write the archive that the suffix of `path` names."""
    return tar(path, members) if path.suffix == ".tar" else zipped(path, members)


def packed_folder(path: Path, folder: Path) -> Path:
    """Pack all files below a folder in sorted order."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return packed(path, ((file.relative_to(folder).as_posix(), file.read_bytes()) for file in files))
