"""keras: the same tensors from every form that Keras has written, and none from a file that holds others."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
from keras_files import write_archive, write_by_class, write_by_layer
from published import LEAVES, Tensors, biases, folded, keras_layer, keras_layers, same, state

from rn50feat.errors import WeightsError
from rn50feat.model import weight_files
from rn50feat.model.weight_files import keras, names


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ResNet50 with a sixteenth of the channels, so that a file of it takes milliseconds."""
    monkeypatch.setattr(names, "WIDTH", 4)


TENSORS = state(narrower=16)
BIASES = biases(TENSORS)
FORMS: dict[str, Callable[[Path, dict[str, Tensors]], object]] = {
    "keras 2": lambda path, layers: write_by_layer(path, layers),
    "keras 2, built twice": lambda path, layers: write_by_layer(path, layers, leaf="{layer}_1/{part}:0"),
    "keras 2, whole": lambda path, layers: write_by_layer(path, layers, whole=True),
    "keras 3.0": lambda path, layers: write_by_layer(path, layers, leaf="{part}"),
    "keras 3.3": lambda path, layers: write_by_layer(path, layers, leaf="{layer}/{part}"),
    "keras 3.3, whole": lambda path, layers: write_by_layer(path, layers, leaf="{layer}/{part}", whole=True),
    "keras 1": lambda path, layers: write_by_layer(path, layers, leaf="{layer}_{old}_1:0"),
    "keras 1, first": lambda path, layers: write_by_layer(path, layers, leaf="{layer}_{old}:0"),
    "weights.h5": lambda path, layers: write_by_class(path, layers),
    ".keras": lambda path, layers: write_archive(path, layers),
    ".keras, packed anew": lambda path, layers: write_archive(path, layers, compression=zipfile.ZIP_DEFLATED),
}
NAMELESS: dict[str, Callable[[Path, dict[str, Tensors]], object]] = {
    "weights.h5, to 3.5": lambda path, layers: write_by_class(path, layers, names=False),
    "weights.h5, 2.13": lambda path, layers: write_by_class(
        path, layers, names=False, root="_layer_checkpoint_dependencies", step=2
    ),
    "weights.h5, 2.13, Windows": lambda path, layers: write_by_class(
        path, layers, names=False, root="_layer_checkpoint_dependencies", step=2, separator="\\"
    ),
    ".keras, to 3.5": lambda path, layers: write_archive(path, layers, names=False),
}


@pytest.mark.parametrize("classifier", [True, False])
@pytest.mark.parametrize("form", [*FORMS, *NAMELESS])
def test_every_form_gives_the_same_tensors(narrow: None, tmp_path: Path, form: str, classifier: bool) -> None:
    tensors = {name: value for name, value in TENSORS.items() if classifier or not name.startswith("fc.")}
    (FORMS | NAMELESS)[form](tmp_path / "file", keras_layers(tensors, BIASES))
    assert weight_files.recognise(tmp_path / "file") == "keras"
    translated = keras.read(tmp_path / "file")
    assert translated.variant == "keras"
    same(translated.tensors, folded(tensors, BIASES))


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith("keras")])
def test_old_names_are_another_variant(narrow: None, tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / "file", keras_layers(TENSORS, BIASES, old=True))
    translated = keras.read(tmp_path / "file")
    assert translated.variant == "keras-old"
    same(translated.tensors, folded(TENSORS, BIASES))


def test_half_and_double_precision_become_float32(narrow: None, tmp_path: Path) -> None:
    for dtype in ("<f2", ">f4", "<f8"):
        layers = {
            layer: {part: value.astype(dtype) for part, value in parts.items()}
            for layer, parts in keras_layers(TENSORS, BIASES).items()
        }
        write_by_layer(tmp_path / "file.h5", layers)
        rounded = {name: value.astype(dtype).astype(np.float32) for name, value in TENSORS.items()}
        same(
            keras.read(tmp_path / "file.h5").tensors,
            folded(rounded, {conv: bias.astype(dtype).astype(np.float32) for conv, bias in BIASES.items()}),
        )


def spoiled(path: Path, change: Callable[[dict[str, Tensors]], object]) -> Path:
    layers = keras_layers(TENSORS, BIASES)
    change(layers)
    return write_by_layer(path, layers)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda layers: layers.pop("conv1_conv"), "conv1_conv/kernel is missing"),
        (lambda layers: layers["conv5_block3_3_bn"].pop("moving_variance"), "conv5_block3_3_bn/moving_variance is mis"),
        (lambda layers: layers["conv2_block1_0_conv"].pop("bias"), "conv2_block1_0_conv/bias is missing"),
        (lambda layers: layers["predictions"].pop("bias"), "predictions/bias is missing"),
        (lambda layers: layers.update(dense={"kernel": np.ones((3, 2))}), "dense/dense/kernel:0 is unexpected"),
        (
            lambda layers: layers.update(conv4_block7_1_conv=layers["conv4_block6_1_conv"]),
            "conv4_block7_1_conv/conv4_block7_1_conv/bias:0 is unexpected",
        ),
        (
            lambda layers: layers["conv3_block1_1_conv"].update(kernel=np.ones((1, 1, 16, 9), np.float32)),
            r"conv3_block1_1_conv/kernel:0 has shape \(1, 1, 16, 9\), not \(1, 1, 16, 8\)",
        ),
        (
            lambda layers: layers["conv1_bn"].update(gamma=np.float32(1)),
            r"conv1_bn/gamma:0 has shape \(\), not \(4,\)",
        ),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_named(
    narrow: None, tmp_path: Path, change: Callable[[dict[str, Tensors]], object], reason: str
) -> None:
    path = spoiled(tmp_path / "file.h5", change)
    message = f"file.h5 is not the ResNet50 of keras.applications .*{reason}.*: use a weights file of that network$"
    with pytest.raises(WeightsError, match=message):
        keras.read(path)


def test_a_layer_less_or_more_is_noticed_without_names(narrow: None, tmp_path: Path) -> None:
    layers = keras_layers(TENSORS, BIASES)
    write_by_class(tmp_path / "more.h5", layers | {"conv6_block1_1_conv": layers["conv1_conv"]}, names=False)
    with pytest.raises(WeightsError, match=r"layers/conv2d_53/vars/\d is unexpected"):
        keras.read(tmp_path / "more.h5")
    del layers["conv5_block3_3_conv"]
    write_by_class(tmp_path / "less.h5", layers, names=False)
    with pytest.raises(WeightsError, match="conv5_block3_3_conv/kernel is missing"):
        keras.read(tmp_path / "less.h5")


def test_names_win_over_numbers(narrow: None, tmp_path: Path) -> None:
    """The shortcut and the third convolution of a first block have the same shape: only names tell them apart."""
    layers = keras_layers(TENSORS, BIASES)
    write_by_class(tmp_path / "x.weights.h5", layers)
    with h5py.File(tmp_path / "x.weights.h5", "r+") as file:
        for kind in ("conv2d", "batch_normalization"):
            shortcut, third = file[f"layers/{kind}_3"], file[f"layers/{kind}_4"]
            assert [group["vars"].attrs["name"][:14] for group in (shortcut, third)] == [
                "conv2_block1_0",
                "conv2_block1_3",
            ]
            file.move(f"layers/{kind}_3", "layers/kept")
            file.move(f"layers/{kind}_4", f"layers/{kind}_3")
            file.move("layers/kept", f"layers/{kind}_4")
    same(keras.read(tmp_path / "x.weights.h5").tensors, folded(TENSORS, BIASES))


def test_theano_kernels_are_refused(narrow: None, tmp_path: Path) -> None:
    write_by_layer(tmp_path / "file.h5", keras_layers(TENSORS, BIASES), backend="theano")
    with pytest.raises(WeightsError, match="file.h5 was written with Theano, whose kernels are mirrored: convert it"):
        keras.read(tmp_path / "file.h5")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "store.h5", "w") as file:
        file["features"] = np.ones((3, 2048))
    with pytest.raises(WeightsError, match=r"store.h5 has no layer of Keras.s ResNet50 \(such as conv1_conv\): use"):
        keras.read(tmp_path / "store.h5")


def external_link(file: h5py.File) -> None:
    file["conv1_conv"]["more"] = h5py.ExternalLink("/etc/hostname", "/")


def soft_link(file: h5py.File) -> None:
    file["elsewhere"] = h5py.SoftLink("/conv1_conv")


def external_storage(file: h5py.File) -> None:
    del file["conv1_bn/conv1_bn/gamma:0"]
    file.create_dataset("conv1_bn/conv1_bn/gamma:0", (4,), "f4", external=[("/etc/hostname", 0, 16)])


def virtual_dataset(file: h5py.File) -> None:
    del file["conv1_bn/conv1_bn/gamma:0"]
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (4,))
    file.create_virtual_dataset("conv1_bn/conv1_bn/gamma:0", layout)


def foreign_filter(file: h5py.File) -> None:
    file.create_dataset("new", (4,), "f4", chunks=(4,), compression="lzf")


def vast_chunk(file: h5py.File) -> None:
    file.create_dataset("new", (4,), "f4", maxshape=(None,), chunks=(1 << 25,))


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (external_link, "more is an external link"),
        (soft_link, "elsewhere is a soft link"),
        (external_storage, "conv1_bn/conv1_bn/gamma:0 is a dataset with external storage"),
        (virtual_dataset, "conv1_bn/conv1_bn/gamma:0 is a virtual dataset"),
        (foreign_filter, "new is a dataset with a filter that HDF5 itself does not have"),
        (vast_chunk, "new is a dataset in chunks of more than 64 MiB"),
    ],
)
def test_what_leads_out_of_a_file_is_refused(
    narrow: None, tmp_path: Path, spoil: Callable[[h5py.File], None], kind: str
) -> None:
    write_by_layer(tmp_path / "file.h5", keras_layers(TENSORS, BIASES))
    with h5py.File(tmp_path / "file.h5", "r+") as file:
        spoil(file)
    with pytest.raises(WeightsError, match=f"file.h5 is refused: {kind}: use a file that holds its own tensors"):
        keras.read(tmp_path / "file.h5")


def test_groups_that_hold_themselves_end(narrow: None, tmp_path: Path) -> None:
    write_by_layer(tmp_path / "file.h5", keras_layers(TENSORS, BIASES))
    with h5py.File(tmp_path / "file.h5", "r+") as file:
        for name in "abc":
            file[name] = file["/"]
    with pytest.raises(WeightsError, match="file.h5 is refused: a is a second name of something else"):
        keras.read(tmp_path / "file.h5")


def test_other_types_of_numbers_are_refused(narrow: None, tmp_path: Path) -> None:
    path = spoiled(tmp_path / "file.h5", lambda layers: layers["conv1_bn"].update(gamma=np.ones(4, np.int32)))
    with pytest.raises(WeightsError, match="conv1_bn/conv1_bn/gamma:0 holds int32, not float16, float32 or float64"):
        keras.read(path)


def test_a_giant_on_paper_costs_nothing(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "file.h5", "w") as file:  # a few hundred bytes that tell of 32 TB
        file.create_dataset("conv1_conv/conv1_conv/kernel:0", (1 << 20, 1 << 23), "f4", chunks=(1024, 1024))
    with pytest.raises(WeightsError, match=r"kernel:0 has shape \(1048576, 8388608\), not \(7, 7, 3, 64\)"):
        keras.read(tmp_path / "file.h5")


KERAS = """
import pathlib, sys
import h5py, keras, numpy
from keras.src.legacy.saving import legacy_h5_format
assert "tensorflow" not in sys.modules
folder = pathlib.Path(sys.argv[1])
model = keras.applications.ResNet50(weights=None)
rng = numpy.random.default_rng(5)
held = {}
for layer in model.layers:
    if layer.weights:
        layer.set_weights([rng.random(w.shape, numpy.float32) + numpy.float32(0.1) for w in layer.weights])
        held |= {f"{layer.name}|{w.name}": v for w, v in zip(layer.weights, layer.get_weights())}
numpy.savez(folder / "held.npz", **held)
model.save_weights(folder / "x.weights.h5")
with h5py.File(folder / "classic.h5", "w") as file:
    legacy_h5_format.save_weights_to_hdf5_group(file, model)
model.save(folder / "x.keras")
model.save(folder / "whole.h5")
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("keras") is None, reason="needs keras")
def test_the_files_that_keras_itself_writes(tmp_path: Path) -> None:
    """With the classifier; `test_variants` has those without."""
    # In a process of its own, on torch: its import takes its time, and warns of numpy's future.
    environment = {**os.environ, "KERAS_BACKEND": "torch", "KERAS_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", KERAS, str(tmp_path)], env=environment, check=True)
    with np.load(tmp_path / "held.npz") as arrays:
        expected = torchvision_of({name.replace("|", "/"): arrays[name] for name in arrays})
    for file in ("x.weights.h5", "classic.h5", "x.keras", "whole.h5"):
        translated = weight_files.read(tmp_path / file)
        assert translated.variant == "keras"
        same(translated.tensors, expected)


def torchvision_of(held: Tensors) -> Tensors:
    """Return what Keras' layers hold under torchvision's names, biases folded."""
    tensors, conv_biases = {}, {}
    for name in state():
        module, _, leaf = name.rpartition(".")
        layer = keras_layer(module)
        if module == "fc":
            tensors[name] = held[f"{layer}/kernel"].T if leaf == "weight" else held[f"{layer}/bias"]
        elif layer.endswith("_conv"):
            tensors[name] = held[f"{layer}/kernel"].transpose(3, 2, 0, 1)
            conv_biases[module] = held[f"{layer}/bias"]
        else:
            tensors[name] = held[f"{layer}/{LEAVES[leaf]}"]
    return folded(tensors, conv_biases)
