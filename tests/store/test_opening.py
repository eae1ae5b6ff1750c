""""""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from stores import store as made

from rn50feat import FeatureStore
from rn50feat.errors import ProvenanceError, StoreError
from rn50feat.store.writer import open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of 40 rows, and another that it may refer to."""
    made(tmp_path / "other.h5", [(f"{i}.jpg", 1, i + 1) for i in range(40)])
    return made(tmp_path / "out.h5", [(f"{i}.jpg", 1, i + 1) for i in range(40)])


def virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout((40, 2048), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "features", (40, 2048))
    file.create_virtual_dataset(name, layout)


ELSEWHERE: dict[str, Callable[[h5py.File, str], object]] = {
    "an external link": lambda file, name: file.__setitem__(name, h5py.ExternalLink("other.h5", name)),
    "a soft link": lambda file, name: file.__setitem__(name, h5py.SoftLink("/size")),
    "a virtual dataset": virtual,
    "a dataset with external storage": lambda file, name: file.create_dataset(
        name, (40, 2048), "f4", external=[("/etc/passwd", 0, 40 * 8192)]
    ),
    "a dataset in chunks of more than 64 MiB": lambda file, name: file.create_dataset(
        name, (0,), "i8", chunks=(1 << 24,), maxshape=(None,)
    ),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
@pytest.mark.parametrize("name", ["features", "paths", "ids", "failures/reason", "failures", "runs"])
def test_a_store_that_refers_to_other_files_is_refused(path: Path, kind: str, name: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        ELSEWHERE[kind](file, name)
    with pytest.raises(StoreError, match=f"out.h5 is damaged .*({kind}|is missing)"):
        open_store(path)
    with pytest.raises(StoreError, match=f"out.h5 is damaged .*({kind}|is missing)"):
        store = FeatureStore(path)
        store.block(0, 40), store.paths(), store.column("ids"), store.failures(), store.runs()


@pytest.mark.parametrize("rows", [10**7, 1 << 33])
def test_rows_that_the_file_has_no_room_for_are_not_read(path: Path, rows: int) -> None:
    with h5py.File(path, "r+") as file:
        for name in ("features", "paths", "ids", "size", "mtime_ns", "digest"):
            file[name].resize(rows, axis=0)
    with pytest.raises(StoreError, match="more than fit in the file"):
        FeatureStore(path).column("ids")


@pytest.mark.parametrize("value", [np.arange(3), 1.5, h5py.Empty("f")], ids=str)
@pytest.mark.parametrize("name", ["format", "schema", "store_id", "provenance"])
def test_attributes_of_other_types_are_an_error(path: Path, name: str, value: object) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    with pytest.raises(StoreError):
        FeatureStore(path)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": 3},
        {"weights": None},
        {"preprocessing": []},
        {"preprocessing": {"mean": ["a", "b", "c"]}},
        {"preprocessing": {"mean": None}},
        {"preprocessing": {"white": "x"}},
        {"preprocessing": {"crop": 10**9}},
        {"preprocessing": {"resize": -1}},
        "[" * 100_000,
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_provenance_of_other_types_is_an_error(path: Path, change: object) -> None:
    with h5py.File(path, "r+") as file:
        record = json.loads(file.attrs["provenance"])
        if isinstance(change, dict):
            inner = change.get("preprocessing")
            record |= {**change, "preprocessing": {**record["preprocessing"], **inner}} if inner else change
        file.attrs["provenance"] = json.dumps(record) if isinstance(change, dict) else change
        del file.attrs["checksums"]
    with pytest.raises(ProvenanceError, match="cannot read the provenance record"):
        FeatureStore(path)
