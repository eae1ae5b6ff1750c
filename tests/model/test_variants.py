"""variants: each network of the note gives the features of the library that published it, and is never mixed up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import checkpoints
import keras_files
import numpy as np
import published
import pytest
import reference
import simplejpeg
import torch
from conftest import Run, rows
from networks import FP32, OPENVINO, trained
from PIL import Image
from scenes import encoded, scene

import rn50feat
from rn50feat import FeatureStore
from rn50feat.errors import ProvenanceError, WeightsError
from rn50feat.images.provenance import PREPROCESSINGS, Preprocessing, Provenance
from rn50feat.model import network, tensors, variants, weights
from rn50feat.model.variants import VARIANTS
from rn50feat.model.weights import Choices

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures, half of them JPEGs, of many sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    sizes = [(300, 420), (640, 333), (224, 224), (256, 256), (257, 391), (901, 260), (100, 75), (500, 375)]
    for seed, size in enumerate(sizes):
        kind = ("JPEG", "PNG")[seed % 2]
        (folder / f"{seed}.{kind.lower()}").write_bytes(encoded(scene(seed, *size), kind))
    return folder


def away(store: Path, expected: np.ndarray) -> float:
    """Return the largest relative L2 of a row from what it should be."""
    found = np.stack(list(rows(store).values()))
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


# Keras itself, on its torch backend: what it makes of the pictures, and files of its weights.
KERAS = """
import sys
from pathlib import Path
import keras, numpy as np
from keras.applications import resnet50
sys.path.insert(0, sys.argv[3])
import keras_files

folder, pictures = Path(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir())
model = resnet50.ResNet50(include_top=False, pooling="avg", weights=None)
rng = np.random.default_rng(6)
for layer in model.layers:
    held = layer.get_weights()
    if len(held) == 4:  # a batch norm: gamma, beta, mean, variance
        n = len(held[0])
        layer.set_weights(
            [rng.uniform(0.5, 1.5, n), rng.normal(0, 0.1, n), rng.normal(0, 0.3, n), rng.uniform(0.5, 2, n)]
        )
    elif held:
        shape = held[0].shape
        layer.set_weights([rng.normal(0, (2 / np.prod(shape[:3])) ** 0.5, shape), rng.normal(0, 0.3, len(held[1]))])
model.save_weights(folder / "keras.weights.h5")
model.save(folder / "keras.keras")
parts = {2: ("kernel", "bias"), 4: ("gamma", "beta", "moving_mean", "moving_variance")}
layers = {l.name: dict(zip(parts[len(l.get_weights())], l.get_weights())) for l in model.layers if l.get_weights()}
keras_files.write_by_layer(folder / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", layers)
loaded = [keras.utils.load_img(picture, target_size=(224, 224)) for picture in pictures]
batch = resnet50.preprocess_input(np.stack([keras.utils.img_to_array(image) for image in loaded]))
np.save(folder / "expected.npy", model.predict(batch, verbose=0))
"""


@pytest.fixture(scope="module")
def keras(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one set of random weights in three files of Keras, and its features of the pictures."""
    folder = tmp_path_factory.mktemp("keras")
    # In a process of its own, so that Keras' warnings are its own affair.
    environment = {**os.environ, "KERAS_BACKEND": "torch", "KERAS_HOME": str(folder), "PYTHONWARNINGS": "ignore"}
    program = [sys.executable, "-c", KERAS, folder, pictures, Path(__file__).parent.parent]
    subprocess.run(program, env=environment, check=True)
    return folder


CLASSIC = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"


def test_features_are_those_of_keras(keras: Path, pictures: Path, tmp_path: Path, rn50feat: Run) -> None:
    choices = ("--weights", keras / CLASSIC, "--precision", "fp32", "--backend", "torch", "--quiet")
    done = rn50feat("extract", pictures, "out.h5", *choices)
    assert (done.returncode, done.stderr) == (0, "")
    assert away(tmp_path / "out.h5", np.load(keras / "expected.npy")) < 1e-5
    assert FeatureStore(tmp_path / "out.h5").provenance.network == "keras resnet50"
    told = rn50feat("info").stdout
    assert "keras resnet50, layer avgpool" in told
    assert "squashed to 224x224 (nearest)" in told
    assert "EXIF orientation ignored, transparency dropped, BGR" in told


@pytest.mark.parametrize("name", ["keras.weights.h5", "keras.keras"])
def test_every_file_of_keras_gives_the_same_features(keras: Path, pictures: Path, tmp_path: Path, name: str) -> None:
    rn50feat.extract(pictures, tmp_path / "out.h5", weights=str(keras / name), options=FP32)
    assert away(tmp_path / "out.h5", np.load(keras / "expected.npy")) < 1e-5


def slim_input(path: Path) -> np.ndarray:
    """Return what slim's network sees of a file: JPEGs decoded as TensorFlow does."""
    data = path.read_bytes()
    jpeg = path.suffix == ".jpeg"
    pixels = simplejpeg.decode_jpeg(data, fastdct=True) if jpeg else np.asarray(Image.open(path).convert("RGB"))
    return reference.vgg_preprocessing(pixels)


@pytest.fixture(scope="module")
def slim(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one set of random weights in both forms of checkpoint, and their features of the pictures."""
    folder = tmp_path_factory.mktemp("slim")
    variables = published.slim_variables(trained(4)[0])
    checkpoints.write_v1(folder / "one.ckpt", variables)
    checkpoints.write_v2(folder / "two.ckpt", variables)
    batch = np.stack([slim_input(path) for path in sorted(pictures.iterdir())]).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        np.save(folder / "expected.npy", reference.slim(torch.from_numpy(batch.copy()), variables).numpy())
    return folder


@pytest.mark.parametrize(
    ("name", "backend"),
    [("one.ckpt", "torch"), ("two.ckpt", "torch"), pytest.param("two.ckpt", "openvino", marks=OPENVINO)],
)
def test_features_are_those_of_slim(
    slim: Path, pictures: Path, tmp_path: Path, name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = replace(FP32, backend=backend)
    rn50feat.extract(pictures, tmp_path / "out.h5", weights=str(slim / name), options=options)
    assert away(tmp_path / "out.h5", np.load(slim / "expected.npy")) < 1e-5
    provenance = FeatureStore(tmp_path / "out.h5").provenance
    assert (provenance.network, provenance.preprocessing) == ("slim resnet_v1_50", PREPROCESSINGS["slim"])
    if name == "two.ckpt":  # all parts of it count
        whole = provenance.weights_sha256
        part = slim / "two.ckpt.data-00000-of-00001"
        assert weights.hash_file(slim / "two.ckpt.index") == whole != weights.hash_file(part)


def test_pillow_decodes_jpegs_to_other_features_and_the_store_tells_them_apart(
    slim: Path, pictures: Path, tmp_path: Path
) -> None:
    store = tmp_path / "out.h5"
    chosen = str(slim / "one.ckpt")
    rn50feat.extract(pictures, store, weights=chosen, preprocess="slim-pillow", options=FP32)
    found, expected = np.stack(list(rows(store).values())), np.load(slim / "expected.npy")
    distances = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert distances[::2].min() > 1e-3  # the JPEGs
    assert distances[1::2].max() < 1e-5  # the PNGs
    with pytest.raises(ProvenanceError, match="preprocessing slim-pillow, you asked for slim"):
        rn50feat.extract(pictures, store, weights=chosen, preprocess="slim", options=FP32)
    assert rn50feat.extract(pictures, store, weights=chosen, options=FP32).unchanged == 8


@pytest.mark.parametrize(("name", "padding"), [("keras-old", 1), ("keras-old-pad0", 0)])
def test_both_older_generations_of_keras(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, padding: int
) -> None:
    held, biases = trained(5)
    layers = published.keras_layers(held, biases, old=True)
    path = keras_files.write_by_layer(tmp_path / "old.h5", layers)
    chosen = weights.find(str(path))
    assert weights.provenance(chosen).network == "keras-old resnet50"
    assert caplog.messages == [
        "old.h5 may also be for keras-old-pad0; assuming keras-old: choose another with --variant"
    ]
    provenance = weights.provenance(chosen, Choices(variant=name))
    assert (provenance.network, provenance.preprocessing) == (f"{name} resnet50", PREPROCESSINGS["keras"])
    batch = torch.rand((2, 3, 224, 224), generator=torch.Generator().manual_seed(0)) * 255 - 110
    with torch.inference_mode():
        found = network.load(chosen, VARIANTS[name]).module(batch)
        expected = reference.keras_old(batch, layers, pool_padding=padding)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_both_placements_of_slims_strides_are_one_function() -> None:
    moved = replace(VARIANTS["slim"], halving="1x1 of the first block")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own, other = (network.build(variant).eval() for variant in (VARIANTS["slim"], moved))
    other.load_state_dict(own.state_dict())
    batch = torch.rand((1, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert float((own(batch) - other(batch)).norm() / own(batch).norm()) < 1e-6


@pytest.mark.parametrize(("name", "fitting"), [("keras.keras", "keras"), (CLASSIC, "keras")])
@pytest.mark.parametrize("asked", ["torchvision", "slim", "keras-old"])
def test_weights_are_not_used_as_another_variants(
    keras: Path, tmp_path: Path, name: str, fitting: str, asked: str
) -> None:
    with pytest.raises(WeightsError, match=f"{name} are for the variant {fitting}, not {asked}: leave --var"):
        rn50feat.extract(keras, tmp_path / "out.h5", weights=str(keras / name), variant=asked)
    with pytest.raises(WeightsError, match=f"for the variant {fitting}, not {asked}"):
        network.load(weights.find(str(keras / name)), VARIANTS[asked])
    assert not (tmp_path / "out.h5").exists()


def test_published_weights_are_torchvisions_alone() -> None:
    with pytest.raises(WeightsError, match="imagenet-v1 are for the variant torchvision, not keras"):
        weights.settle(Choices("imagenet-v1", "keras"), None)
    with pytest.raises(WeightsError, match="there is no variant resnet18: use one of torchvision, keras"):
        weights.settle(Choices("random", "resnet18"), None)


def test_a_store_of_one_variant_takes_no_features_of_another(
    keras: Path, pictures: Path, start: object, tmp_path: Path
) -> None:
    store = tmp_path / "out.h5"
    rn50feat.extract(pictures, store, weights="random", start=start)
    with pytest.raises(
        ProvenanceError, match="network torchvision resnet50, you asked for keras resnet50: use another"
    ):
        rn50feat.extract(pictures, store, weights=str(keras / CLASSIC), start=start)
    with pytest.raises(ProvenanceError, match="network torchvision resnet50, you asked for keras-old-pad0 resnet50"):
        rn50feat.extract(pictures, store, weights="random", variant="keras-old-pad0", start=start)
    with pytest.raises(ProvenanceError, match="preprocessing torchvision, you asked for keras"):
        rn50feat.extract(pictures, store, preprocess="keras", start=start)


def test_tensors_without_a_mark_are_torchvisions_unless_the_user_says_otherwise(
    keras: Path, pictures: Path, tmp_path: Path
) -> None:
    """A state dict cannot tell its strides: said in the README, recorded, and the right word gives the right rows."""
    bare = tmp_path / "bare.pth"
    torch.save(tensors.read(keras / CLASSIC).tensors, bare)
    assert weights.provenance(weights.find(str(bare))).network == "torchvision resnet50"
    rn50feat.extract(pictures, tmp_path / "out.h5", weights=str(bare), variant="keras", options=FP32)
    assert away(tmp_path / "out.h5", np.load(keras / "expected.npy")) < 1e-5
    # From then on the store knows.
    assert rn50feat.extract(pictures, tmp_path / "out.h5", weights=str(bare), options=FP32).unchanged == 8
    with pytest.raises(ProvenanceError, match="network keras resnet50, you asked for torchvision resnet50"):
        rn50feat.extract(pictures, tmp_path / "out.h5", weights=str(bare), variant="torchvision", options=FP32)


def test_a_record_of_before_means_what_it_meant() -> None:
    """Stores of schema 1 had no name of a preprocessing, and no white."""
    record = {"weights": "imagenet-v1", "weights_sha256": "0676ba61", "network": "torchvision resnet50"}
    picture = asdict(Preprocessing())
    del picture["name"], picture["white"]
    old = Provenance.from_json(json.dumps({**record, "layer": "avgpool", "preprocessing": picture}))
    assert old == Provenance("imagenet-v1", "0676ba61")
    assert variants.recorded(old.network) is variants.TORCHVISION
    with pytest.raises(ProvenanceError, match="does not know the network resnet18: upgrade"):
        variants.recorded("resnet18")
    later = {**asdict(Preprocessing()), "name": "clip"}
    with pytest.raises(ProvenanceError, match="there is no preprocessing clip: .*: upgrade"):
        Provenance.from_json(json.dumps({**record, "layer": "avgpool", "preprocessing": later}))
