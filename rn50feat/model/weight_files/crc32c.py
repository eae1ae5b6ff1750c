"""Compute the checksums of TensorFlow's checkpoints, with google-crc32c.

In: bytes. Out: their CRC-32C, masked as LevelDB does.
"""

from __future__ import annotations

from rn50feat.errors import WeightsError


def masked(data: bytes | memoryview) -> int:
    """Compute the CRC-32C of `data` as checkpoints hold it: rotated, and with a constant added (LevelDB's crc32c.h).

    Raises `WeightsError` if google-crc32c is not installed.
    """
    try:
        import google_crc32c
    except ImportError as error:
        raise WeightsError("checkpoints of TensorFlow need google-crc32c: pip install 'rn50feat[slim]'") from error
    crc: int = google_crc32c.value(bytes(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
