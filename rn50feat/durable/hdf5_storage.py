"""Check that an HDF5 file contains all its data itself.

Takes groups and datasets of a file that may come from anywhere, and says what
is wrong with them. HDF5 follows links into other files, maps datasets onto
them, and loads filters as shared libraries: a file could make a program read,
and pass on, whatever its user may read.
"""

from __future__ import annotations

import math

import h5py

_LARGEST_CHUNK = 1 << 26  # bytes, of a dataset cut in chunks
_HARMLESS_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}


def link_fault(group: h5py.Group, name: str) -> str | None:
    """Say what a member of a group is if not a plain one; it is not opened."""
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.HardLink):
        return None
    return "an external link" if isinstance(link, h5py.ExternalLink) else "a soft link"


def storage_fault(dataset: h5py.Dataset) -> str | None:
    """Say what a dataset is if its values are elsewhere, or need code from elsewhere; they are not read."""
    creation = dataset.id.get_create_plist()
    kind = creation.get_layout()
    if kind == h5py.h5d.VIRTUAL:
        return "a virtual dataset"
    if creation.get_external_count():
        return "a dataset with external storage"
    if not {creation.get_filter(i)[0] for i in range(creation.get_nfilters())} <= _HARMLESS_FILTERS:
        return "a dataset with a filter that HDF5 itself does not have"
    if kind == h5py.h5d.CHUNKED and math.prod(creation.get_chunk()) * dataset.dtype.itemsize > _LARGEST_CHUNK:
        return "a dataset in chunks of more than 64 MiB"
    return None
