"""A process that decodes JPEGs on a GPU for `gpu_decoder`.

In: requests of some files, as JSON over a socket. Out: the crops in the slots
of the shared buffer that the request names, and the facts of those files; null
for each file that is left to the cores: no plain JPEG, not readable, or
refused by the GPU. A process of its own, because a decoder that crashes, or
leaves the GPU in an error, takes its process along.
"""

from __future__ import annotations

import json
import mmap
import signal
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from rn50feat import images
from rn50feat.engines.worker import answer, from_request, leave_signals, silence_libraries
from rn50feat.errors import SourceError
from rn50feat.images import PlainJpeg
from rn50feat.places import sources
from rn50feat.places.sources import Reference
from rn50feat.provenance import Preprocessing

READERS = 4  # threads that read and hash files
PART = 32  # files that are in memory at once
BYTES = 64_000_000  # of one file
PIXELS = 64_000_000  # of one picture, or decoded at once: 192 MB of the GPU, and 768 MB to resize the largest


@dataclass(frozen=True)
class _Job:
    """A file that the GPU may decode, read already."""

    slot: int
    reference: Reference
    data: Tensor
    header: PlainJpeg


def main(*, channel: int, buffer: int, device: str, max_pixels: int, seconds: float, preprocessing: Any) -> None:
    """Serve requests until the other end of the socket `channel` closes; SIGALRM ends one that takes `seconds`."""
    leave_signals()
    connection = Connection(channel)
    settings = Preprocessing(**preprocessing)
    crops = np.frombuffer(mmap.mmap(buffer, 0), np.uint8).reshape(-1, settings.crop, settings.crop, 3)
    images.lift_pillow_limit()
    silence_libraries()
    warnings.simplefilter("ignore")  # torchvision 0.29 recommends another package for `decode_jpeg`
    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    torch.zeros(1, device=where)  # a GPU that cannot be used shows now
    connection.send_bytes(b"ready")
    with ThreadPoolExecutor(READERS) as readers:
        while True:
            try:
                request = json.loads(connection.recv_bytes())
            except (EOFError, ConnectionResetError):
                return
            done: dict[int, dict[str, Any]] = {}
            signal.setitimer(signal.ITIMER_REAL, seconds)
            for i in range(0, len(request), PART):
                jobs = readers.map(partial(_read, max_pixels), request[i : i + PART])
                done |= decode_all([job for job in jobs if job is not None], crops, settings, where)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(json.dumps([done.get(slot) for slot, *_ in request]).encode())


def _read(max_pixels: int, picture: Sequence[Any]) -> _Job | None:
    slot, reference = from_request(picture)
    if reference.size > BYTES:
        return None
    try:
        reference, data = sources.read(reference)
    except SourceError:
        return None
    header = images.plain_jpeg(data, max_pixels=min(max_pixels, PIXELS))
    if header is None:
        return None
    return _Job(slot, reference, torch.frombuffer(bytearray(data), dtype=torch.uint8), header)


def _decode(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decode with nvJPEG, or with libjpeg when the device is cpu; raise RuntimeError when it refuses one of them."""
    if device.type == "cuda":  # nvJPEG's hardware engine writes before earlier work has read (pytorch/vision 9606)
        torch.cuda.synchronize(device)
    decoded: list[Tensor] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return decoded


def decode_all(
    jobs: Sequence[_Job], crops: NDArray[np.uint8], settings: Preprocessing, device: torch.device
) -> dict[int, dict[str, Any]]:
    """Fill the slots of `jobs`; return the facts of the files that could be decoded, by slot."""
    answers: dict[int, dict[str, Any]] = {}
    part: list[_Job] = []
    pixels = 0
    for i, job in enumerate(jobs):
        part.append(job)
        pixels += job.header.width * job.header.height
        if i + 1 == len(jobs) or pixels > PIXELS:
            for done, crop in _decode_part(part, settings, device):
                crops[done.slot] = crop
                answers[done.slot] = answer(done.reference)
            part, pixels = [], 0
    return answers


def _decode_part(
    jobs: list[_Job], settings: Preprocessing, device: torch.device
) -> list[tuple[_Job, NDArray[np.uint8]]]:
    """Return the jobs that the device takes, with their crops; when it refuses a list, each half is tried."""
    try:
        pictures = _decode([job.data for job in jobs], device)
        # One copy back for all of them.
        crops = torch.stack([cropped(picture, job.header, settings) for picture, job in zip(pictures, jobs)])
        return list(zip(jobs, crops.cpu().numpy()))
    except torch.AcceleratorError:  # the GPU is of no use to this process any more: the next one goes on
        raise
    except RuntimeError:  # with no word on which picture it was
        half = len(jobs) // 2
        parts = (jobs[:half], jobs[half:]) if half else ()
        return [done for part in parts for done in _decode_part(part, settings, device)]


def cropped(picture: Tensor, header: PlainJpeg, settings: Preprocessing) -> Tensor:
    """Return the crop of a decoded picture, uint8 of shape (crop, crop, 3), as `images.decode` makes it.

    `picture` is uint8 of shape (3, height, width), as it lies in the file.
    """
    if settings.exif == "applied":
        picture = _upright(picture, header.orientation)
    width, height, left, top = images.geometry((picture.shape[2], picture.shape[1]), settings)
    resize = torch.nn.functional.interpolate
    resized = resize(picture[None].float(), (height, width), mode="bilinear", antialias=True)
    square = resized[0, :, top : top + settings.crop, left : left + settings.crop]
    return square.round_().to(torch.uint8).permute(1, 2, 0)


def _upright(picture: Tensor, orientation: int) -> Tensor:
    """Undo an EXIF orientation; from 5 on, it exchanges rows and columns first."""
    if orientation >= 5:
        picture = picture.transpose(1, 2)
    mirrored = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}
    return picture.flip(mirrored[orientation]) if orientation in mirrored else picture
