"""formats.crc32c: the checksums of RFC 3720, and of another implementation."""

from __future__ import annotations

import google_crc32c
import numpy as np
import pytest

from rn50feat.model.weight_files import crc32c


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # RFC 3720, B.4, and the usual check value
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_published_values(data: bytes, expected: int) -> None:
    assert crc32c.value(data) == expected


def test_every_length_and_alignment() -> None:
    data = np.random.default_rng(0).bytes(5000)
    for length in [*range(70), 1023, 1024, 1025, 4095, 4999, 5000]:
        assert crc32c.value(memoryview(data)[5000 - length :]) == google_crc32c.value(data[5000 - length :])


def test_the_mask_is_that_of_leveldb() -> None:
    # crc32c_test.cc of LevelDB: masking changes a checksum, and is no involution
    assert crc32c.masked(b"foo") == ((0xCFC4AE1D >> 15 | 0xCFC4AE1D << 17) + 0xA282EAD8) % 2**32
