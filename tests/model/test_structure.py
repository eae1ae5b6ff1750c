"""structure and model: the network as it is, counted, told and drawn."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import keras_files
import published
import pytest
import torch
from chromium import Chromium
from click.testing import Result

from rn50feat.model import network
from rn50feat.model.structure import structure
from rn50feat.model.variants import VARIANTS
from rn50feat.pages import diagram, page

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


class Page(HTMLParser):
    """What a screen reader would hear of a page, and whether its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.named: list[str] = []
        self.roles: list[str | None] = []
        self.tags: Counter[str] = Counter()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        held = dict(attributes)
        self.tags[tag] += 1
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        if "id" in held:
            self.ids.append(held["id"] or "")
        self.named += [held[name] or "" for name in ("aria-labelledby", "aria-describedby") if name in held]
        if tag == "svg":
            self.roles.append(held.get("role"))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", VARIANTS)
def test_the_page_is_whole_and_says_in_words_what_it_draws(name: str) -> None:
    found = structure(VARIANTS[name])
    text = "".join(diagram.pieces(found))
    heard = Page(text)
    assert heard.open == []
    assert len(heard.ids) == len(set(heard.ids))
    assert set(heard.named) <= set(heard.ids)
    assert set(heard.roles) == {"img"}
    assert heard.tags["script"] == 0
    assert heard.tags["title"] == heard.tags["svg"] + 1
    assert heard.tags["desc"] == heard.tags["svg"] == (9 if name != "slim" else 12)
    for block in found.blocks:
        assert all(f">{layer.name}</th>" in text for layer in block.layers)
    assert f"{found.parameters:,}" in text
    assert f"{found.multiply_adds / 1e9:.3f} G" in text


def test_model_html_writes_a_page_and_nothing_else(here: Callable[..., Result], tmp_path: Path) -> None:
    done = here("model", "--html", "network.html")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "network.html: figures of torchvision resnet50\n")
    assert (tmp_path / "network.html").read_text() == "".join(diagram.pieces(structure(VARIANTS["torchvision"])))
    wrong = here("model", "--html", "missing/network.html")
    assert (wrong.exit_code, len(wrong.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_a_browser_shows_the_page_whole(chromium: Chromium, tmp_path: Path, width: int) -> None:
    path = tmp_path / "slim.html"
    page.save(path, diagram.pieces(structure(VARIANTS["slim"])))
    chromium.open(path, width=width)
    chromium.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    assert chromium.complaints() == []
    assert chromium.requests() == [path.as_uri()]
    spoken = chromium.spoken()
    drawn = [name for role, name in spoken if role == "image"]
    assert len(drawn) == 12
    assert "conv2_x, block 3: bottleneck with identity shortcut" in drawn
    assert ("columnheader", "role of a 1×1") in spoken
