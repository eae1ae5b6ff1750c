"""Damaged images that still decode: a row, a note in the ledger, and no trace of it once they are whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from click.testing import Result
from fake import FakeStart, LocalFakeStart
from PIL import Image
from scenes import encoded, scene

import rn50feat
from rn50feat import FeatureStore
from rn50feat.errors import PreprocessingError, ProvenanceError
from rn50feat.extraction.verify import verify
from rn50feat.images.provenance import Preprocessing, Provenance
from rn50feat.pages.gallery import search_page
from rn50feat.searching.search import search_stored
from rn50feat.store import damage_notes
from rn50feat.store.summary import Summary

WHOLE = encoded(scene(1, 300, 260), quality=90)
DAMAGED = WHOLE[:-2]
REASON = "has no end marker"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "damaged.jpg").write_bytes(DAMAGED)
    for name in ("a", "b", "z"):
        (folder / f"{name}.png").write_bytes(encoded(Image.new("RGB", (30, 30), "red"), "PNG", dpi=(ord(name), 1)))
    return folder


def extract(pictures: Path, start: FakeStart | LocalFakeStart, out: str = "out.h5", **settings: Any) -> Summary:
    return rn50feat.extract(pictures, pictures.parent / out, **{"weights": "random", "start": start, **settings})


def damaged(pictures: Path, out: str = "out.h5") -> dict[str, str]:
    store = FeatureStore(pictures.parent / out)
    return {Path(one.path).name: one.reason for one in damage_notes.damaged(store)}


def test_a_damaged_image_gets_a_row_and_a_note_and_is_left_alone(pictures: Path, start: FakeStart) -> None:
    summary = extract(pictures, start)
    assert (summary.new, summary.damaged, summary.failed) == (4, 1, 0)
    assert summary.beyond((0, False), (0, False), pictures.parent / "out.h5") == []
    assert damaged(pictures) == {"damaged.jpg": REASON}
    assert FeatureStore(pictures.parent / "out.h5").failures() == []
    os.utime(pictures / "damaged.jpg", (1, 1))
    again = extract(pictures, start)
    assert (again.unchanged, again.damaged, len(start.engines)) == (4, 0, 1)
    assert damaged(pictures) == {"damaged.jpg": REASON}
    assert verify(FeatureStore(pictures.parent / "out.h5")).findings == []


def test_the_note_goes_when_the_image_is_whole_or_gone(pictures: Path, start: FakeStart) -> None:
    (pictures / "other.jpg").write_bytes(DAMAGED + b"\0")
    extract(pictures, start)
    assert set(damaged(pictures)) == {"damaged.jpg", "other.jpg"}
    (pictures / "damaged.jpg").write_bytes(WHOLE)
    assert extract(pictures, start).changed == 1
    assert damaged(pictures) == {"other.jpg": REASON}
    (pictures / "other.jpg").unlink()
    assert extract(pictures, start, prune=True, force=True).removed == 1
    assert damaged(pictures) == {}


def test_copies_and_moved_files_take_the_note_along(pictures: Path, start: FakeStart) -> None:
    extract(pictures, start)
    shutil.copy(pictures / "damaged.jpg", pictures / "copy.jpg")
    summary = extract(pictures, start)
    assert (summary.reused, summary.damaged) == (1, 1)
    (pictures / "damaged.jpg").rename(pictures / "moved.jpg")
    extract(pictures, start, prune=True, force=True)
    assert damaged(pictures) == {"copy.jpg": REASON, "moved.jpg": REASON}
    shutil.copy(pictures / "copy.jpg", pictures / "b.png")  # a known image is replaced by a damaged one
    extract(pictures, start)
    assert set(damaged(pictures)) == {"copy.jpg", "moved.jpg", "b.png"}


def test_skipped_they_are_failures(pictures: Path, start: FakeStart) -> None:
    summary = extract(pictures, start, damaged="skip")
    assert (summary.new, summary.damaged, summary.failed) == (3, 0, 1)
    (failure,) = FeatureStore(pictures.parent / "out.h5").failures()
    assert failure.reason == f"is damaged: {REASON}: --damaged keep gives it a row"
    assert damaged(pictures) == {}


def test_a_merge_brings_the_notes_along(pictures: Path, start: FakeStart) -> None:
    extract(pictures, start)
    rn50feat.merge([pictures.parent / "out.h5"], pictures.parent / "all.h5")
    assert damaged(pictures, "all.h5") == {"damaged.jpg": REASON}


def test_a_store_from_before_there_were_notes(pictures: Path, start: FakeStart) -> None:
    (pictures / "damaged.jpg").rename(pictures.parent / "later.jpg")
    extract(pictures, start)
    with h5py.File(pictures.parent / "out.h5", "r+") as file:
        del file["damaged"], file["checksum"], file.attrs["checksums"]
    assert damaged(pictures) == {}
    (pictures.parent / "later.jpg").rename(pictures / "damaged.jpg")
    extract(pictures, start)
    assert damaged(pictures) == {"damaged.jpg": REASON}


def test_decoding_processes_tell_of_damage(pictures: Path) -> None:
    assert extract(pictures, LocalFakeStart()).damaged == 1
    assert damaged(pictures) == {"damaged.jpg": REASON}


def test_commands_tell_of_damage(pictures: Path, start: FakeStart, here: Callable[..., Result]) -> None:
    extract(pictures, start)
    told = here("info", "out.h5", "--failures").stdout
    assert told == f"pictures/damaged.jpg\tis damaged, but has a row: {REASON}\t0\n"
    listed = json.loads(here("info", "out.h5", "--failures", "--json").stdout)
    assert listed["damaged_list"] == [{"path": "pictures/damaged.jpg", "reason": REASON}]
    assert (listed["failures"], listed["damaged"]) == (0, 1)
    assert "1 of the rows come from damaged images" in here("info", "out.h5").stdout
    lines = here("search", "--stored", "pictures/damaged.jpg", "out.h5", "-k", "4").stdout.splitlines()
    assert [line.split("\t")[4:] for line in lines] == [["damaged"], [], [], []]
    found = here("search", "--stored", "pictures/damaged.jpg", "out.h5", "-k", "1", "--csv").stdout
    assert found.splitlines()[0].endswith(",state,damage")
    assert found.splitlines()[1].endswith(f",present,{REASON}")
    results = search_stored(["pictures/damaged.jpg"], FeatureStore(pictures.parent / "out.h5"), k=1)
    store, query = FeatureStore(pictures.parent / "out.h5"), str(pictures / "damaged.jpg")
    page = "".join(search_page(results, [query], store, out=Path("page.html"), k=1, metric="cosine"))
    assert f"<b>damaged:</b> {REASON}" in page


def test_color_and_range_are_on_record_and_never_mixed(pictures: Path, start: FakeStart) -> None:
    extract(pictures, start, color="srgb", value_range="0:4095.0")
    store = FeatureStore(pictures.parent / "out.h5")
    assert store.provenance.preprocessing.profile == "converted to sRGB"
    assert store.provenance.preprocessing.value_range == "0:4095"
    assert extract(pictures, start, weights=None).unchanged == 4
    with pytest.raises(ProvenanceError, match="profile converted to sRGB, you asked for ignored"):
        extract(pictures, start, color="stored")
    with pytest.raises(ProvenanceError, match="value_range 0:4095, you asked for own"):
        extract(pictures, start, value_range="own")
    for wrong in ("5", "9:3", "0:inf", ""):
        with pytest.raises(PreprocessingError, match="use type, own or LOW:HIGH"):
            extract(pictures, start, "new.h5", value_range=wrong)


def test_records_of_old_and_new_versions_fit() -> None:
    plain = json.loads(Provenance("random:0").to_json())
    assert not {"profile", "value_range"} & plain["preprocessing"].keys()  # which older versions would refuse
    assert Provenance.from_json(json.dumps(plain)) == Provenance("random:0")
    other = Provenance("random:0", preprocessing=Preprocessing(profile="converted to sRGB", value_range="own"))
    assert Provenance.from_json(other.to_json()) == other
    unstated = Provenance.unstated_but_for("another program")
    assert Provenance.from_json(unstated.to_json()) == unstated
    assert "value_range" not in unstated.to_json()
