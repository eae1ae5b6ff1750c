"""slim and checkpoint: the right tensors from both forms of checkpoints, and none from damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import content, number, write_v1, write_v2
from published import Tensors, leftovers, same, slim_variables, state

from rn50feat.errors import WeightsError
from rn50feat.model import weight_files
from rn50feat.model.weight_files import names

TENSORS = state(narrower=16)
FORMS: dict[str, Callable[..., Path]] = {
    "v1": write_v1,
    "v1, small blocks": lambda path, variables, **form: write_v1(path, variables, block_size=4096, **form),
    "v2": write_v2,
    "v2, three shards": lambda path, variables, **form: write_v2(path, variables, shards=3, **form),
    "v2, small blocks": lambda path, variables, **form: write_v2(path, variables, block_size=512, **form),
}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ResNet50 with a sixteenth of the channels, so that a file of it takes milliseconds."""
    monkeypatch.setattr(names, "WIDTH", 4)


@pytest.mark.parametrize("scope", ["resnet_v1_50", "tower/resnet_v1_50", ""])
@pytest.mark.parametrize("classifier", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_both_forms_give_the_same_tensors(
    narrow: None, tmp_path: Path, form: str, classifier: bool, scope: str
) -> None:
    tensors = {name: value for name, value in TENSORS.items() if classifier or not name.startswith("fc.")}
    path = FORMS[form](tmp_path / "x.ckpt", slim_variables(tensors, scope) | leftovers(scope or "resnet"))
    assert weight_files.recognise(path) == "checkpoint"
    translated = weight_files.read(path)
    assert translated.variant == "slim"
    same(translated.tensors, tensors)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["v1", "v2"])
def test_a_whole_checkpoint_of_full_size(tmp_path: Path, form: str) -> None:
    tensors = state()
    path = FORMS[form](tmp_path / "resnet_v1_50.ckpt", slim_variables(tensors) | leftovers())
    same(weight_files.read(path).tensors, tensors)


def without(name: str) -> Callable[[Tensors], object]:
    return lambda variables: variables.pop(f"resnet_v1_50/{name}")


def with_(name: str, value: np.ndarray) -> Callable[[Tensors], object]:
    return lambda variables: variables.update({f"resnet_v1_50/{name}": value})


@pytest.mark.parametrize("form", ["v1", "v2"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("conv1/weights"), "resnet_v1_50/conv1/weights is missing"),
        (
            without("block4/unit_3/bottleneck_v1/conv3/BatchNorm/moving_variance"),
            "conv3/BatchNorm/moving_variance is mi",
        ),
        (without("logits/biases"), "resnet_v1_50/logits/biases is missing"),
        (
            with_("block3/unit_7/bottleneck_v1/conv1/weights", np.ones(3, np.float32)),
            "unit_7/.*/weights is unexpected",
        ),
        (with_("block1/unit_1/bottleneck_v1/conv1/biases", np.ones(4, np.float32)), "conv1/biases is unexpected"),
        (with_("conv1/weights", np.ones((7, 7, 3, 5), np.float32)), r"has shape \(7, 7, 3, 5\), not \(7, 7, 3, 4\)"),
    ],
)
def test_missing_extra_and_misshapen_variables_are_named(
    narrow: None, tmp_path: Path, form: str, change: Callable[[Tensors], object], reason: str
) -> None:
    variables = slim_variables(TENSORS)
    change(variables)
    message = rf"x.ckpt.* is not slim's resnet_v1_50 .*{reason}.*: use a weights file of that network$"
    with pytest.raises(WeightsError, match=message):
        weight_files.read(FORMS[form](tmp_path / "x.ckpt", variables))


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_checkpoints_of_other_networks_are_refused(narrow: None, tmp_path: Path, form: str) -> None:
    write = FORMS[form]
    second = slim_variables(TENSORS, "resnet_v2_50")
    v2 = {name.replace("bottleneck_v1", "bottleneck_v2"): value for name, value in second.items()}
    with pytest.raises(WeightsError, match="resnet_v1_50/conv1/weights is missing"):
        weight_files.read(write(tmp_path / "x.ckpt", v2))
    two = slim_variables(TENSORS, "a") | slim_variables(TENSORS, "b")
    with pytest.raises(WeightsError, match="x.ckpt.* holds 2 networks, a/ and b/: use a checkpoint of one"):
        weight_files.read(write(tmp_path / "x.ckpt", two))


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_variables_that_are_no_float32_are_refused(narrow: None, tmp_path: Path, form: str) -> None:
    variables = slim_variables(TENSORS)
    variables["resnet_v1_50/conv1/weights"] = variables["resnet_v1_50/conv1/weights"].astype(np.float64)
    with pytest.raises(WeightsError, match="conv1/weights is not float32 but TensorFlow's type 2: save it whole"):
        weight_files.read(FORMS[form](tmp_path / "x.ckpt", variables))


def test_partitioned_variables_are_refused(narrow: None, tmp_path: Path) -> None:
    variables, name = slim_variables(TENSORS), "resnet_v1_50/logits/weights"
    half = content(1, b"") * 2 + content(1, number(2, 64)) + content(1, b"")  # 64 of the 128 input channels
    whole = content(1, b"") * 2 + content(1, number(2, 128)) + content(1, b"")
    for path in (
        write_v1(tmp_path / "x.ckpt", variables, extents={name: half}),
        write_v2(tmp_path / "y.ckpt", variables, sliced=name),
    ):
        with pytest.raises(WeightsError, match=f"{name} is partitioned: save it whole, as float32"):
            weight_files.read(path)
    same(weight_files.read(write_v1(tmp_path / "x.ckpt", variables, extents={name: whole})).tensors, TENSORS)


def damaged(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def test_every_checksum_is_checked(narrow: None, tmp_path: Path) -> None:
    variables = slim_variables(TENSORS)
    single = write_v1(tmp_path / "x.ckpt", variables)
    damaged(single, single.stat().st_size // 2)
    with pytest.raises(WeightsError, match=r"x.ckpt is a damaged checkpoint \(the block at byte \d+ has a wrong check"):
        weight_files.read(single)
    index = write_v2(tmp_path / "y.ckpt", variables)
    data = tmp_path / "y.ckpt.data-00000-of-00001"
    damaged(data, data.stat().st_size // 2)
    with pytest.raises(
        WeightsError, match=r"y.ckpt.data-00000-of-00001 is a damaged checkpoint \(resnet_v1_50/.* has a"
    ):
        weight_files.read(index)
    damaged(index, index.stat().st_size // 2)
    with pytest.raises(WeightsError, match=r"y.ckpt.index is a damaged checkpoint \(the block at byte 0 has a wrong"):
        weight_files.read(index)


def test_files_of_a_checkpoint_that_are_missing_or_cut_off_are_named(narrow: None, tmp_path: Path) -> None:
    index = write_v2(tmp_path / "x.ckpt", slim_variables(TENSORS), shards=2)
    last = tmp_path / "x.ckpt.data-00001-of-00002"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(
        WeightsError, match="00001-of-00002 is a damaged checkpoint .it ends in the middle of resnet_v1"
    ):
        weight_files.read(index)
    last.unlink()
    for ask in (weight_files.read, weight_files.files):
        with pytest.raises(
            WeightsError, match="x.ckpt.index needs x.ckpt.data-00001-of-00002, which is not next to it"
        ):
            ask(index)
    renamed = index.rename(tmp_path / "x")
    with pytest.raises(WeightsError, match="it is the index of 2 data files, but its name is not PREFIX.index"):
        weight_files.read(renamed)


def test_compressed_blocks_and_big_endian_values_are_refused(narrow: None, tmp_path: Path) -> None:
    variables = slim_variables(TENSORS)
    for write in (write_v1, write_v2):
        with pytest.raises(WeightsError, match="its blocks are compressed"):
            weight_files.read(write(tmp_path / "x.ckpt", variables, compression=1))
    with pytest.raises(WeightsError, match="its values are big-endian"):
        weight_files.read(write_v2(tmp_path / "x.ckpt", variables, big=True))
