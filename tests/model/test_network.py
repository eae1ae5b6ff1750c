"""weights, network and backend: the right vectors from the right files, and no others."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import rows
from networks import OPENVINO, backend
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

import rn50feat
from rn50feat import EngineOptions
from rn50feat.backends.contract import cpu_has_bf16
from rn50feat.errors import DeviceError, MissingWeightsError, WeightsError
from rn50feat.images.provenance import Preprocessing
from rn50feat.model import network, weights
from rn50feat.model.weights import Weights

State = dict[str, torch.Tensor]
FP32 = EngineOptions(device="cpu", precision="fp32")  # with what `auto` chooses


def plain_pipeline(module: torch.nn.Module, files: list[Path]) -> np.ndarray:
    """What everybody writes: PIL, Resize, CenterCrop, Normalize, and the network without fc."""
    plain = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    body = torch.nn.Sequential(*list(module.children())[:-1], torch.nn.Flatten())
    with torch.no_grad():
        return body(torch.stack([plain(Image.open(file).convert("RGB")) for file in files])).numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_rows_are_those_of_the_plain_pipeline(
    scenes: Path, resnet50: torch.nn.Module, weights: Path, tmp_path: Path
) -> None:
    rn50feat.extract(scenes, tmp_path / "out.h5", weights=str(weights), options=FP32)
    files = sorted(scenes.iterdir())
    stored = rows(tmp_path / "out.h5")
    assert list(stored) == [str(file) for file in files]
    expected = plain_pipeline(resnet50, files)
    assert cosines(np.stack(list(stored.values())), expected).min() > 0.99999
    # and a row is nobody else's: its own picture is the nearest of all
    nearest = np.linalg.norm(np.stack(list(stored.values()))[:, None] - expected[None], axis=2).argmin(axis=1)
    assert nearest.tolist() == list(range(len(files)))


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (7, 3), (64, 2)])
def test_rows_do_not_depend_on_batches_workers_or_interruptions(
    scenes: Path, weights: Path, tmp_path: Path, batch_size: int, workers: int
) -> None:
    rn50feat.extract(scenes, tmp_path / "whole.h5", weights=str(weights), options=FP32)
    options = replace(FP32, batch_size=batch_size, workers=workers)
    files = sorted(scenes.iterdir())
    for part in (files[:5], files):  # stopped after five pictures, and resumed
        rn50feat.extract(part, tmp_path / "parts.h5", weights=str(weights), options=options)
    whole, parts = rows(tmp_path / "whole.h5"), rows(tmp_path / "parts.h5")
    assert list(parts) == list(whole)
    for path, row in whole.items():
        assert np.linalg.norm(parts[path] - row) <= 1e-5 * np.linalg.norm(row)


@pytest.mark.slow
def test_orientations_give_one_vector_unless_they_are_left(tmp_path: Path) -> None:
    from scenes import scene, turned

    for orientation in range(1, 9):
        (tmp_path / f"{orientation}.jpg").write_bytes(turned(scene(5), orientation))
    pictures = sorted(tmp_path.glob("*.jpg"))
    for exif in (True, False):
        rn50feat.extract(pictures, tmp_path / f"{exif}.h5", weights="random", exif=exif, options=FP32)
    upright = np.stack(list(rows(tmp_path / "True.h5").values()))
    left = np.stack(list(rows(tmp_path / "False.h5").values()))
    centre = upright.mean(axis=0)
    spread = np.linalg.norm(left - centre, axis=1) / np.linalg.norm(upright - centre, axis=1).max()
    assert cosines(upright, upright[:1]).min() > 0.9999
    assert (spread[1:] > 5).all()  # random weights keep all pictures close: compare distances


def distance(module: torch.nn.Module, whole: torch.nn.Module) -> float:
    """Return the relative L2 between a network's features and those of a ResNet50 with its classifier."""
    pictures = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    body = torch.nn.Sequential(*list(whole.children())[:-1], torch.nn.Flatten())
    with torch.no_grad():
        expected = body(pictures)
        return float((module(pictures) - expected).norm() / expected.norm())


def save_zip(state: State, path: Path) -> None:
    torch.save(state, path)


def save_legacy(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_wrapped(state: State, path: Path) -> None:
    torch.save({"epoch": 90, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)


def save_bare(state: State, path: Path) -> None:
    kept = {n: v for n, v in state.items() if not n.startswith("fc.") and not n.endswith("num_batches_tracked")}
    torch.save(kept, path)


def save_safetensors(state: State, path: Path) -> None:
    save_file({name: value.contiguous() for name, value in state.items()}, path)


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_wrapped, save_bare, save_safetensors])
def test_every_form_of_weights_file_gives_the_same_network(
    resnet50: torch.nn.Module, tmp_path: Path, save: Callable[[State, Path], None]
) -> None:
    path = tmp_path / "weights"
    save(resnet50.state_dict(), path)
    loaded = network.load(weights.find(str(path)))
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert distance(loaded.module, resnet50) < 1e-5


def state_without(name: str) -> Callable[[State], State]:
    return lambda state: {other: value for other, value in state.items() if other != name}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda state: torchvision.models.resnet18().state_dict(), "layer1.0.conv1.weight has shape .64, 64, 3, 3."),
        (lambda state: torchvision.models.resnet101().state_dict(), "layer3.6.conv1.weight is unexpected"),
        (lambda state: torchvision.models.wide_resnet50_2().state_dict(), "layer1.0.conv1.weight has shape"),
        (state_without("layer2.1.bn3.running_var"), "layer2.1.bn3.running_var is missing"),
        (lambda state: {**state, "bn1.bias": torch.full((64,), torch.nan)}, "bn1.bias has NaN or infinite"),
        (lambda state: [1, 2], "holds list, not named tensors"),
        (lambda state: {"epoch": 3}, "holds no tensors"),
    ],
)
def test_a_file_that_is_no_resnet50_is_refused_by_its_first_wrong_tensor(
    resnet50: torch.nn.Module, tmp_path: Path, spoil: Callable[[State], object], reason: str
) -> None:
    path = tmp_path / "other.pth"
    torch.save(spoil(dict(resnet50.state_dict())), path)
    with pytest.raises(WeightsError, match=reason):
        network.load(weights.find(str(path)))


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("executed"),))


def test_nothing_in_a_weights_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Evil()}, "evil.pth")
    with pytest.raises(WeightsError, match=r"evil.pth holds more than tensors, .*: save model.state_dict\(\)$"):
        network.load(weights.find("evil.pth"))
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty: download it again$"),
        (b"just a text", "is not a weights file: use a ResNet50 state dict, .*weights$"),
        (b"root:x:0:0", "is not a weights file: use"),
        (b"\xff\xd8\xff\xe0" + bytes(range(256)), "is not a weights file: use a ResNet50 state dict, .*weights$"),
        (b"PK\3\4" + bytes(300), "is damaged or truncated: download it again$"),
        ((20).to_bytes(8, "little") + b'{"broken": ' + bytes(20), "damaged safetensors"),
        (bytes(257) + b"ustar" + bytes(250), "tar form of torch 0.1.*resnet50-0676ba61.pth instead"),
    ],
)
def test_a_damaged_file_is_told_from_weights(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        network.load(weights.find(str(tmp_path / "weights")))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_that_is_cut_off_is_told_as_that(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"conv1.weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WeightsError, match=r"cut.pth is damaged or truncated: download it again$"):
        network.load(weights.find(str(path)))


@pytest.mark.slow
def test_random_weights_are_those_of_a_seeded_torchvision() -> None:
    torch.manual_seed(5)
    expected = torchvision.models.resnet50().eval()
    five, other = network.load(weights.find("random:5")), network.load(weights.find("random"))
    assert distance(five.module, expected) < 1e-5 < distance(other.module, expected)
    assert five.sha256 == network.load(weights.find("random:5")).sha256 != other.sha256


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


@pytest.mark.slow
def test_bf16_rows_point_the_same_way_as_fp32_rows() -> None:
    crops = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8)
    exact, rough = backend("fp32").features(crops), backend("bf16").features(crops)
    assert exact.shape == (4, 2048)
    assert (exact.dtype, rough.dtype) == (np.float32, np.float32)
    assert cosines(exact, rough).min() > 0.999
    assert not np.array_equal(exact, rough)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "device", "reason"),
    [
        ("fp16", "cpu", "fp16 needs a CUDA device"),
        ("fp32", "cuda:99", "there is no device cuda:99" if torch.cuda.is_available() else "finds no CUDA device"),
        ("fp32", "tpu", "there is no device tpu"),
    ],
)
def test_devices_and_precisions_that_are_not_here(precision: str, device: str, reason: str) -> None:
    with pytest.raises(DeviceError, match=reason):
        backend(precision, device)


@pytest.mark.slow
def test_a_device_that_runs_out_of_memory_gets_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows and their order stay; what a GPU does is played by a network that refuses more than three pictures."""
    crops = np.random.default_rng(0).integers(0, 256, (11, 224, 224, 3), np.uint8)
    whole = backend("fp32")
    expected = whole.features(crops)
    sizes: list[int] = []
    forward = network.Normalized.forward

    def small(self: network.Normalized, crops: torch.Tensor) -> torch.Tensor:
        sizes.append(len(crops))
        if len(crops) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, crops)

    monkeypatch.setattr(network.Normalized, "forward", small)
    limit = 3
    np.testing.assert_allclose(whole.features(crops), expected, rtol=1e-4, atol=1e-5)
    assert sizes == [11, 5, 2, 4, 2, 2, 2, 2, 1]
    whole.features(crops[:4])
    assert sizes[-2:] == [2, 2]  # it does not try the large batch each time
    limit = 0
    with pytest.raises(DeviceError, match="too little memory for one image"):
        whole.features(crops)


@pytest.mark.slow
@OPENVINO
@pytest.mark.parametrize(("precision", "nearness"), [("fp32", 0.9999), ("bf16", 0.999)])
def test_openvino_gives_torchs_rows_whatever_the_batch(
    precision: str, nearness: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rn50feat.backends.openvino import OpenVinoBackend

    if precision == "bf16" and not cpu_has_bf16():
        pytest.skip("this CPU does not compute in bf16")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    crops = np.random.default_rng(0).integers(0, 256, (11, 224, 224, 3), np.uint8)
    chosen = weights.find("random")
    provenance, loads = weights.provenance(chosen), []

    def load() -> network.Network:
        loads.append(1)
        return network.load(chosen)

    first = OpenVinoBackend(provenance, load, precision=precision)
    rows = first.features(crops)
    assert cosines(rows, backend("fp32").features(crops)).min() > nearness
    assert rows.dtype == np.float32
    for count in (1, 4):
        parts = [first.features(crops[i : i + count]) for i in range(0, len(crops), count)]
        np.testing.assert_array_equal(np.concatenate(parts), rows)
    # Known by its hash, it comes from the cache; a damaged cache is made again.
    known = replace(provenance, weights_sha256=first.weights_sha256)
    cached = OpenVinoBackend(known, load, precision=precision)
    np.testing.assert_array_equal(cached.features(crops), rows)
    assert len(loads) == 1
    (blob,) = (tmp_path / "rn50feat").iterdir()
    blob.write_bytes(blob.read_bytes()[:1000])
    assert OpenVinoBackend(known, load, precision=precision).features(crops).shape == (11, 2048)
    assert len(loads) == 2
    OpenVinoBackend(
        replace(known, preprocessing=replace(known.preprocessing, std=(1.0, 1.0, 1.0))), load, precision="fp32"
    )
    assert len(loads) == 3  # another normalisation is another network


@pytest.mark.slow
@OPENVINO
def test_what_openvino_cannot_compute_in_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As for bf16 where ONEDNN_MAX_CPU_ISA forbids it."""
    import openvino

    from rn50feat.backends import openvino as module

    def refuse(*_: object) -> None:
        raise RuntimeError("Exception from core.cpp:117:\nprimitive descriptors list is empty for node: maxpool\n\n")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(openvino.Core, "compile_model", refuse)
    monkeypatch.setattr(module, "_convert", lambda *_: None)
    chosen = weights.find("random")
    for precision, remedy in (("bf16", "use --precision fp32, or --backend torch"), ("fp32", "use --backend torch")):
        with pytest.raises(DeviceError, match=rf"in {precision} on this CPU \(prim.*: maxpool\): {remedy}$"):
            module.OpenVinoBackend(weights.provenance(chosen), lambda: network.load(chosen), precision=precision)


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_bf16_is_not_chosen_where_onednn_is_told_to_do_without(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    has = cpu_has_bf16()
    for value, expected in (("AVX2", False), ("avx512_core_vnni", False), ("AVX512_CORE_AMX", has), ("ALL", has)):
        monkeypatch.setenv(variable, value)
        assert cpu_has_bf16() == expected


@pytest.mark.slow
@OPENVINO
def test_search_with_a_cached_network_imports_no_torch(scenes: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    program = (
        "import sys; from rn50feat.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(sorted({'torch', 'torchvision', 'openvino_telemetry.main'} & set(sys.modules)),"
        " file=sys.stderr)"
    )
    base = [sys.executable, "-c", program]
    extract = [*base, "extract", scenes, tmp_path / "out.h5", "--weights", "random", "--backend", "openvino"]
    subprocess.run(extract, env=environment, check=True, capture_output=True)
    query = [*base, "search", scenes / "scene00.jpg", tmp_path / "out.h5", "-k", "1", "--backend", "openvino"]
    done = subprocess.run(query, env=environment, check=True, capture_output=True, encoding="utf-8")
    assert done.stdout.endswith("\tscene00.jpg\n") or done.stdout.endswith(f"\t{scenes}/scene00.jpg\n")
    assert done.stderr.endswith("[]\n")


def test_backends_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    from rn50feat.engines import local

    assert not local._wants_openvino(EngineOptions(backend="torch"))
    assert not local._wants_openvino(EngineOptions(device="cuda"))
    monkeypatch.setattr(local, "_may_have_gpu", lambda: True)
    assert not local._wants_openvino(EngineOptions())
    with pytest.raises(DeviceError, match="not on cuda: use --backend torch"):
        local._wants_openvino(EngineOptions(backend="openvino", device="cuda"))
    monkeypatch.setattr(local, "find_spec", lambda name: None)
    assert not local._wants_openvino(EngineOptions(device="cpu"))
    with pytest.raises(DeviceError, match="pip install 'rn50feat.openvino.'"):
        local._wants_openvino(EngineOptions(backend="openvino"))


def test_scaled_decoding_stays_close_to_the_plain_pipeline(
    tmp_path: Path, resnet50: torch.nn.Module, weights: Path
) -> None:
    from scenes import encoded, scene

    for seed in range(4):
        size = [(2300, 1700), (1803, 2405), (4001, 1111), (1100, 1030)][seed]
        (tmp_path / f"{seed}.jpg").write_bytes(encoded(scene(seed, *size), quality=92))
    pictures = sorted(tmp_path.glob("*.jpg"))
    expected = plain_pipeline(resnet50, pictures)
    worst = {}
    for exact in (False, True):
        rn50feat.extract(pictures, tmp_path / f"{exact}.h5", weights=str(weights), exact_decode=exact, options=FP32)
        found = np.stack(list(rows(tmp_path / f"{exact}.h5").values()))
        worst[exact] = (np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max()
        assert cosines(found, expected).min() > (0.99999 if exact else 0.999)
    assert worst[True] < worst[False]
