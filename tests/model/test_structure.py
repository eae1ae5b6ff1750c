"""structure: the network as it is, counted and told."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import keras_files
import published
import pytest
import torch
from click.testing import Result

from rn50feat.model import network
from rn50feat.model.structure import structure
from rn50feat.model.variants import VARIANTS

BODY, WITH_FC = 23_508_032, 25_557_032  # parameters, as published


@pytest.mark.parametrize(
    ("name", "billions"), [("torchvision", 4.09), ("keras", 3.86), ("keras-old", 3.86), ("slim", 3.48)]
)
def test_totals_are_those_that_are_published(name: str, billions: float) -> None:
    found = structure(VARIANTS[name])
    assert (found.parameters, found.parameters_with_fc) == (BODY, WITH_FC)
    assert round(found.multiply_adds_with_fc / 1e9, 2) == round(found.multiply_adds / 1e9, 2) == billions
    assert found.features == 2048


def test_parameters_are_those_of_the_module() -> None:
    with torch.device("meta"):
        module = network.build(VARIANTS["torchvision"])
    found = structure(VARIANTS["torchvision"])
    assert found.parameters_with_fc == sum(value.numel() for value in module.parameters())
    layers = [found.stem, *(layer for block in found.blocks for layer in block.layers)]
    named = {name for name, part in module.named_modules() if isinstance(part, torch.nn.Conv2d)}
    assert {layer.name for layer in layers} == named


def test_every_1x1_has_its_roles_and_each_stage_its_shortcuts() -> None:
    found = structure(VARIANTS["keras"])
    assert Counter(block.stage for block in found.blocks) == {"conv2_x": 3, "conv3_x": 4, "conv4_x": 6, "conv5_x": 3}
    assert [block.number for block in found.blocks if block.shortcut == "projection"] == [1, 1, 1, 1]
    layers = [layer for block in found.blocks for layer in block.layers]
    assert all(bool(layer.roles) == (layer.kernel == 1) for layer in layers)
    assert Counter(role for layer in layers for role in layer.roles) == {
        "reduce": 16,
        "restore": 16,
        "match": 4,
        "downsample": 6,  # the first 1x1 and the shortcut of conv3_1, conv4_1 and conv5_1
    }
    first = found.blocks[3]
    assert [
        (layer.kernel, layer.stride, layer.channels_in, layer.channels_out, layer.side) for layer in first.layers
    ] == [
        (1, 2, 256, 128, 28),
        (3, 1, 128, 128, 28),
        (1, 1, 128, 512, 28),
        (1, 2, 256, 512, 28),
    ]
    assert first.layers[0].parameters == 256 * 128 + 2 * 128
    assert first.layers[0].multiply_adds == 256 * 128 * 28 * 28


def test_the_variants_differ_where_they_should() -> None:
    def halving(name: str) -> list[tuple[str, int, str]]:
        found = structure(VARIANTS[name])
        return [
            (block.stage, block.number, layer.name.rpartition(".")[2] if layer.kernel == 3 else layer.roles[0])
            for block in found.blocks
            for layer in block.layers
            if layer.stride == 2
        ]

    firsts = [("conv3_x", 1), ("conv4_x", 1), ("conv5_x", 1)]
    assert halving("torchvision") == [(*at, what) for at in firsts for what in ("conv2", "match")]
    assert halving("keras") == [(*at, what) for at in firsts for what in ("reduce", "match")]
    assert halving("slim") == [("conv2_x", 3, "conv2"), ("conv3_x", 4, "conv2"), ("conv4_x", 6, "conv2")]
    strided = [(block.stage, block.number) for block in structure(VARIANTS["slim"]).blocks if block.shortcut_stride > 1]
    assert strided == [("conv2_x", 3), ("conv3_x", 4), ("conv4_x", 6)]
    assert [structure(VARIANTS[name]).pool.side for name in ("torchvision", "slim", "keras-old-pad0")] == [56, 56, 55]


def test_model_prints_a_line_for_each_layer_and_the_totals(here: Callable[..., Result]) -> None:
    done = here("model")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len([line for line in lines if re.search(r"\d+ -> +\d+", line)]) == 53
    (first,) = [line for line in lines if "layer2.0.conv1" in line]
    assert (
        first.split() == "conv3_x 1 projection layer2.0.conv1 1x1 1 256 -> 128 56x56 33,024 102,760,448 reduce".split()
    )
    assert lines[-2].split()[:4] == "to avgpool 23,508,032 parameters".split()
    assert lines[-1].split()[:5] == "with fc 25,557,032 parameters 4.089".split()


@pytest.mark.slow
def test_model_of_a_weights_file_shows_its_own_network(here: Callable[..., Result], tmp_path: Path) -> None:
    tensors = published.state(classifier=False)
    keras_files.write_by_layer(tmp_path / "k.h5", published.keras_layers(tensors, published.biases(tensors)))
    told = json.loads(here("model", "--weights", "k.h5", "--json").stdout)
    assert told["provenance"]["network"] == told["network"] == "keras resnet50"
    assert told["multiply_adds"] == structure(VARIANTS["keras"]).multiply_adds
    (tmp_path / "notes.txt").write_text("no weights")
    wrong = here("model", "--weights", "notes.txt")
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("Error: ")
    assert len(wrong.stderr.splitlines()) == 1
    assert here("model", "--json", "--html", "x.html").exit_code == 2
