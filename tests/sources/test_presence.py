"""presence: nobody is asked about files that a store names unless the user says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from click.testing import Result
from stores import store as made

from rn50feat import FeatureStore, duplicates
from rn50feat.errors import VanishedError
from rn50feat.pages.gallery import groups_page, search_page
from rn50feat.searching.search import search_stored
from rn50feat.sources.remote import Remote


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of 40 rows, and another that it may refer to."""
    made(tmp_path / "other.h5", [(f"{i}.jpg", 1, i + 1) for i in range(40)])
    return made(tmp_path / "out.h5", [(f"{i}.jpg", 1, i + 1) for i in range(40)])


def test_paths_of_a_store_send_no_requests(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(place: Remote, *_: object, **__: object) -> None:
        asked.append(place.path)
        raise VanishedError("has vanished")

    for request in ("stat", "open", "head", "parts"):
        monkeypatch.setattr(Remote, request, ask)
    with h5py.File(path, "r+") as file:
        del file["checksum"], file.attrs["checksums"]
        file["paths"][0], file["paths"][1] = "http://127.0.0.1:9/me.jpg", "http://127.0.0.1:9/x.zip::me.jpg"
    opened = FeatureStore(path)
    results = search_stored(["http://127.0.0.1:9/me.jpg"], path, k=40)
    assert {hit.state for hit in results[0].hits} == {"missing", "unchecked"}
    page = "".join(search_page(results, [""], opened, out=path.with_name("page.html"), k=40, metric="cosine"))
    assert page.count("is in remote storage: use --check to show it") == 3  # the query and two hits
    groups = duplicates(path, threshold=0.5)
    page = "".join(groups_page(groups, opened, out=path.with_name("page.html"), threshold=0.5))
    assert "is in remote storage" in page
    assert asked == []
    assert {hit.state for hit in search_stored(["3.jpg"], path, k=40, check=True)[0].hits} == {"missing"}
    assert "unchecked" not in {m.state for group in duplicates(path, threshold=0.5, check=True) for m in group.members}
    assert {url.partition("::")[0] for url in asked} == {"http://127.0.0.1:9/me.jpg", "http://127.0.0.1:9/x.zip"}


def test_the_command_asks_only_with_check(
    path: Path, here: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanished(place: Remote) -> None:
        raise VanishedError("has vanished")

    monkeypatch.setattr(Remote, "stat", vanished)
    with h5py.File(path, "r+") as file:
        del file["checksum"], file.attrs["checksums"]
        file["paths"][0] = "http://127.0.0.1:9/me.jpg"
    command = ["search", "--stored", "http://127.0.0.1:9/me.jpg", "out.h5", "-k", "1", "--csv"]
    for more, state in ([], "unchecked"), (["--check"], "missing"):
        assert state in here(*command, *more).stdout.splitlines()[1].split(",")
