"""Pack archives for the tests: tar and zip, as programs write them."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
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


def zip_of(path: Path, members: Sequence[tuple[bytes, bytes, int, bytes]], made_by: int = 0x0014) -> Path:
    """Write a zip archive of members given as raw name, extra field, flags and content, by the system `made_by`."""
    local, central, count = b"", b"", len(members)
    for raw, extra, flags, data in members:
        head = (20, flags, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(raw), len(extra))
        more = (0, 0, 0, 0, len(local))
        central += struct.pack("<4sHHHHHHLLLHHHHHLL", b"PK\1\2", made_by, *head, *more) + raw + extra
        local += struct.pack("<4sHHHHHLLLHH", b"PK\3\4", *head) + raw + extra + data
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, count, count, len(central), len(local), 0)
    path.write_bytes(local + central + end)
    return path


def packed(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write the archive that the suffix of `path` names."""
    return tar(path, members) if path.suffix == ".tar" else zipped(path, members)


def packed_folder(path: Path, folder: Path) -> Path:
    """Pack all files below a folder in sorted order."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return packed(path, ((file.relative_to(folder).as_posix(), file.read_bytes()) for file in files))
