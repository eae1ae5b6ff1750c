"""weights: what they are named by, and published ones that are downloaded once and checked."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torchvision import transforms

from rn50feat.errors import MissingWeightsError, WeightsError
from rn50feat.images.provenance import Preprocessing
from rn50feat.model import network, weights
from rn50feat.model.weights import Weights


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A file server of the test's folder on the loopback interface."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=tmp_path)  # type: ignore[arg-type,misc]

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()


@pytest.fixture
def published(server: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Weights]:
    """Publish the seeded weights as imagenet-v2 on the loopback server."""
    from rn50feat.model import weights as module

    def publish(content: bytes = weights.read_bytes()) -> Weights:
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
        (tmp_path / f"resnet50-{digest}.pth").write_bytes(content)
        monkeypatch.setitem(
            module.PUBLISHED, "imagenet-v2", module.Published(f"{server}/resnet50-{digest}.pth", digest, 232)
        )
        return module.find("imagenet-v2")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return publish


def test_published_weights_are_downloaded_once_and_checked(published: Callable[..., Weights]) -> None:
    chosen = published()
    before = weights.provenance(chosen)
    assert (before.weights_sha256, before.preprocessing.resize) == ("", 232)
    with pytest.raises(MissingWeightsError):
        network.load(chosen)
    told: list[tuple[int, int]] = []
    weights.fetch(chosen, on_download=lambda done, total: told.append((done, total)))
    size = chosen.path.stat().st_size
    assert told == [(min(at + (1 << 16), size), size) for at in range(0, size, 1 << 16)]
    loaded = network.load(chosen)
    assert chosen.path == Path(torch.hub.get_dir(), "checkpoints", chosen.path.name)
    after = weights.provenance(chosen)
    assert after.weights_sha256 == loaded.sha256
    assert before.difference(after) is None


def test_a_file_known_by_its_hash_gets_its_own_preprocessing(published: Callable[..., Weights], tmp_path: Path) -> None:
    chosen = published()
    weights.fetch(chosen)
    copy = tmp_path / "copy.pth"
    copy.write_bytes(chosen.path.read_bytes())
    assert weights.provenance(weights.find(str(copy))).preprocessing.resize == 232


def test_a_download_of_other_content_is_refused(published: Callable[..., Weights]) -> None:
    chosen = published(b"something else")
    with pytest.raises(
        WeightsError,
        match="its SHA-256 begins with f41f3fa6.*download it yourself and put it at .*/resnet50",
    ):
        weights.fetch(chosen)
    assert list(chosen.path.parent.iterdir()) == []


def test_a_downloaded_file_that_was_damaged_later_is_refused(published: Callable[..., Weights]) -> None:
    chosen = published()
    weights.fetch(chosen)
    chosen.path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="is damaged.*delete it"):
        weights.provenance(chosen)


def test_without_a_network_connection_the_error_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    closed = weights.Published("http://127.0.0.1:9/resnet50-0676ba61.pth", "0676ba61", 256)
    monkeypatch.setitem(weights.PUBLISHED, "imagenet-v1", closed)
    with pytest.raises(
        WeightsError, match="127.0.0.1:9/resnet50-0676ba61.pth cannot be downloaded .*, or .* --weights random$"
    ):
        weights.fetch(weights.find("imagenet-v1"))


def test_published_weights_are_torchvisions() -> None:
    for name, enum in (("imagenet-v1", "IMAGENET1K_V1"), ("imagenet-v2", "IMAGENET1K_V2")):
        theirs = torchvision.models.ResNet50_Weights[enum]
        transform, ours = theirs.transforms(), weights.PUBLISHED[name]
        settings = Preprocessing(resize=ours.resize)
        assert (ours.url, ours.url.rpartition("-")[2]) == (theirs.url, f"{ours.sha256}.pth")
        assert (transform.resize_size, transform.crop_size) == ([settings.resize], [settings.crop])
        assert (tuple(transform.mean), tuple(transform.std)) == (settings.mean, settings.std)
        assert transform.interpolation == transforms.InterpolationMode.BILINEAR


@pytest.mark.parametrize("spec", ["imagenet-v3", "random:x", "no/such/file.pth"])
def test_weights_that_do_not_exist_are_named(spec: str) -> None:
    with pytest.raises(WeightsError, match=f"{spec}: no such file: use imagenet-v1, imagenet-v2, random"):
        weights.find(spec)


def test_a_folder_is_no_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"weights {tmp_path} is a folder: name a file in it"):
        weights.find(str(tmp_path))
