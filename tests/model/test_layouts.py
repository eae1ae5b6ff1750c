"""layouts: every published form of a ResNet50 gives the plain module's tensors bit for bit, and no other network does.

The names are those of the programs' own conversion scripts and models, written
down here apart from `rn50feat.model.layouts`.
"""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import torch
import torchvision
from networks import trained
from safetensors.torch import save_file

from rn50feat.errors import WeightsError
from rn50feat.model import network, tensors, variants, weights
from rn50feat.model.variants import CAFFE, TORCHVISION

State = dict[str, torch.Tensor]
COMMON = {
    "epoch": 200,
    "arch": "resnet50",
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{}]},
}


@pytest.fixture(scope="module")
def plain() -> State:
    """The trunk of a ResNet50 under torchvision's names; each row of a tensor repeats one number, for small files."""
    numbers = torch.Generator().manual_seed(11)
    shapes = {name: value.shape for name, value in published.state(classifier=False).items()}
    return {
        name: torch.rand((shape[0], *[1] * (len(shape) - 1)), generator=numbers).expand(shape)
        for name, shape in shapes.items()
    }


def other(state: State) -> State:
    """Another network with the same names, which a training keeps next to the first."""
    return {name: torch.ones(()).expand(value.shape) for name, value in state.items()}


def counted(state: State) -> State:
    """Add the counters that torch's batch norms keep."""
    norms = [name.removesuffix("running_mean") for name in state if name.endswith("running_mean")]
    return {**state, **{f"{norm}num_batches_tracked": torch.tensor(7) for norm in norms}}


def under(prefix: str, state: State, **extra: torch.Tensor) -> State:
    return {prefix + name: value for name, value in {**counted(state), **extra}.items()}


def head(*names: str) -> State:
    return {name: torch.ones(2, 2) for name in names}


def solid(state: State) -> State:
    """Give each tensor memory of its own, as safetensors wants it."""
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def renamed(state: State, *rules: tuple[str, Any]) -> State:
    found = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def hugging_face(state: State) -> State:
    return renamed(
        state,
        (r"^conv1\.", "embedder.embedder.convolution."),
        (r"^bn1\.", "embedder.embedder.normalization."),
        (r"^layer(\d)\.(\d+)\.", lambda match: f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}."),
        (r"downsample\.0", "shortcut.convolution"),
        (r"downsample\.1", "shortcut.normalization"),
        (r"\.conv(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.convolution."),
        (r"\.bn(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.normalization."),
    )


def detectron2(state: State) -> State:
    """What convert-torchvision-to-d2.py makes of a state dict."""
    found = {}
    for name, value in state.items():
        name = name if "layer" in name else f"stem.{name}"
        for number in range(1, 5):
            name = name.replace(f"layer{number}", f"res{number + 1}").replace(f"bn{number}", f"conv{number}.norm")
        found[name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = value
    return found


def caffe2(state: State) -> State:
    return renamed(
        state,
        (r"^bn1", "res_conv1_bn1"),
        (r"^layer(\d)\.(\d)\.", lambda match: f"res{int(match[1]) + 1}_{match[2]}_"),
        (r"downsample\.0", "branch1"),
        (r"downsample\.1", "branch1_bn1"),
        (r"_conv([123])\.", lambda match: f"_branch2{'abc'[int(match[1]) - 1]}."),
        (r"_bn([123])\.", lambda match: f"_branch2{'abc'[int(match[1]) - 1]}_bn1."),
        (r"_branch1_branch2a_bn1", "_branch1_bn1"),
        (r"res_conv1_branch2a_bn1", "res_conv1_bn1"),
        (r"bn1\.weight$", "bn_gamma"),
        (r"bn1\.bias$", "bn_beta"),
        (r"bn1\.running", "bn_running"),
        (r"\.weight$", "_w"),
    )


def sequential(state: State) -> State:
    return renamed(state, (r"^conv1", "0"), (r"^bn1", "1"), (r"^layer(\d)", lambda match: str(int(match[1]) + 3)))


def torch_file(content: Callable[[State], object], **form: bool) -> Callable[[State, Path], None]:
    return lambda state, path: torch.save(content(state), path, **form)


def arrays(content: Callable[[State], dict[str, object]]) -> Callable[[State, Path], None]:
    def write(state: State, path: Path) -> None:
        made = content({name: value.numpy() for name, value in state.items()})  # type: ignore[misc]
        path.write_bytes(pickle.dumps(made))

    return write


OLD = {"_use_new_zipfile_serialization": False}
LAYOUTS: dict[str, tuple[Callable[[State, Path], None], str]] = {
    "plain": (torch_file(lambda s: s), ""),
    "DataParallel": (
        torch_file(lambda s: {"epoch": 1, "state_dict": under("module.", s, **head("fc.weight"))}),
        "torchvision: state_dict.module., 265 tensors; left out: fc",
    ),
    "model": (torch_file(lambda s: under("model.", s)), "torchvision: model., 265 tensors"),
    "net": (torch_file(lambda s: {"net": under("module.", s)}), "torchvision: net.module., 265 tensors"),
    "Lightning": (
        torch_file(
            lambda s: {
                "pytorch-lightning_version": "2.4.0",
                "state_dict": {
                    **under("model.backbone.", s),
                    **head("model.classifier.weight", "model.classifier.bias"),
                },
                "hyper_parameters": argparse.Namespace(lr=0.1),
                "optimizer_states": [COMMON["optimizer"]],
                "loops": {"fit_loop": {"state_dict": {}}},
                "callbacks": {},
            }
        ),
        "Lightning: state_dict.model.backbone., 265 tensors; left out: classifier, optimizer_states",
    ),
    "Lightning, sequential": (
        torch_file(lambda s: {"pytorch-lightning_version": "1.9", "state_dict": under("backbone.", sequential(s))}),
        "Lightning: state_dict.backbone., 265 tensors",
    ),
    "MoCo v2": (
        torch_file(
            lambda s: {
                **COMMON,
                "state_dict": {
                    **under("module.encoder_q.", s, **head("fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias")),
                    **under("module.encoder_k.", other(s), **head("fc.0.weight", "fc.0.bias")),
                    **head("module.queue", "module.queue_ptr"),
                },
            },
            **OLD,
        ),
        "MoCo: state_dict.module.encoder_q., 265 tensors; left out: encoder_k, fc, optimizer, queue, queue_ptr",
    ),
    "MoCo v3": (
        torch_file(
            lambda s: {
                **COMMON,
                "state_dict": {
                    **under("module.base_encoder.", s, **head("fc.0.weight", "fc.1.running_mean")),
                    **under("module.momentum_encoder.", other(s), **head("fc.0.weight")),
                    **head("module.predictor.0.weight"),
                },
            }
        ),
        "torchvision: state_dict.module.base_encoder., 265 tensors;"
        " left out: fc, momentum_encoder, optimizer, predictor",
    ),
    "SimSiam": (
        torch_file(
            lambda s: {
                **COMMON,
                "state_dict": {
                    **under("module.encoder.", s, **head("fc.0.weight", "fc.1.running_mean", "fc.6.bias")),
                    **head("module.predictor.0.weight", "module.predictor.3.bias"),
                },
            }
        ),
        "SimSiam: state_dict.module.encoder., 265 tensors; left out: fc, optimizer, predictor",
    ),
    "SwAV": (
        torch_file(
            lambda s: under(
                "module.", s, **head("projection_head.0.weight", "projection_head.3.bias", "prototypes.weight")
            ),
            **OLD,
        ),
        "SwAV: module., 265 tensors; left out: projection_head, prototypes",
    ),
    "DINO, full": (
        torch_file(
            lambda s: {
                "student": under("module.backbone.", other(s), **head("fc.weight")),
                "teacher": {**under("backbone.", s), **head("head.mlp.0.weight", "head.last_layer.weight_g")},
                "dino_loss": head("center"),
                "optimizer": COMMON["optimizer"],
                "args": argparse.Namespace(arch="resnet50"),
            }
        ),
        "DINO: teacher.backbone., 265 tensors; left out: dino_loss, head, optimizer, student",
    ),
    "BYOL": (
        torch_file(
            lambda s: {
                "online_network_state_dict": {**under("encoder.", sequential(s)), **head("projetion.net.0.weight")},
                "target_network_state_dict": {
                    **under("encoder.", other(sequential(s))),
                    **head("projetion.net.0.weight"),
                },
                "optimizer_state_dict": COMMON["optimizer"],
            }
        ),
        "BYOL: online_network_state_dict.encoder., 265 tensors; left out: optimizer_state_dict, projetion,"
        " target_network_state_dict",
    ),
    "BYOL, lightly": (
        torch_file(
            lambda s: {
                **under("backbone.", sequential(s)),
                **under("backbone_momentum.", other(sequential(s))),
                **head("projection_head.layers.0.weight", "projection_head_momentum.layers.0.weight"),
                **head("prediction_head.layers.0.weight"),
            }
        ),
        "torch.nn.Sequential: backbone., 265 tensors;"
        " left out: backbone_momentum, prediction_head, projection_head, projection_head_momentum",
    ),
    "Barlow Twins": (
        torch_file(
            lambda s: {
                **COMMON,
                "model": {
                    **under("module.backbone.", s),
                    **head("module.projector.0.weight", "module.projector.1.running_mean", "module.bn.running_mean"),
                },
            }
        ),
        "torchvision: model.module.backbone., 265 tensors; left out: bn, optimizer, projector",
    ),
    "VICReg": (
        torch_file(lambda s: {"model": {**under("module.backbone.", s), **head("module.projector.0.weight")}}),
        "torchvision: model.module.backbone., 265 tensors; left out: projector",
    ),
    "VISSL": (
        torch_file(
            lambda s: {
                "phase_idx": 5,
                "classy_state_dict": {
                    "base_model": {
                        "model": {
                            "trunk": under("_feature_blocks.", s),
                            "heads": head("0.clf.0.weight", "0.clf.0.bias"),
                        },
                        "meters": [],
                    },
                    "optimizer": COMMON["optimizer"],
                    "loss": head("queue"),
                },
            }
        ),
        "VISSL: classy_state_dict.base_model.model.trunk._feature_blocks., 265 tensors;"
        " left out: heads, loss, optimizer",
    ),
    "MMPretrain": (
        torch_file(
            lambda s: {
                "meta": {"mmcls_version": "0.25", "CLASSES": ["tench"]},
                "state_dict": {**under("backbone.", s), **head("head.fc.weight", "head.fc.bias")},
            }
        ),
        "MMPretrain: state_dict.backbone., 265 tensors; left out: head",
    ),
    "timm, moving average": (
        torch_file(lambda s: {**COMMON, "state_dict": under("", other(s)), "state_dict_ema": under("", s)}),
        "torchvision: state_dict_ema., 265 tensors; left out: optimizer, state_dict",
    ),
    "timm": (lambda s, path: save_file(solid(under("", s, **head("fc.weight", "fc.bias"))), path), ""),
    "Hugging Face, safetensors": (
        lambda s, path: save_file(solid(under("resnet.", hugging_face(s))), path),
        "Hugging Face: resnet., 265 tensors",
    ),
    "Hugging Face, bin": (
        torch_file(lambda s: {**under("resnet.", hugging_face(s)), **head("classifier.1.weight", "classifier.1.bias")}),
        "Hugging Face: resnet., 265 tensors; left out: classifier",
    ),
    "Hugging Face, bare": (torch_file(hugging_face), "Hugging Face: 265 tensors"),
    "Detectron2 from torchvision": (
        arrays(lambda s: {"model": {**detectron2(s), "stem.fc.weight": np.ones(2)}, "__author__": "torchvision"}),
        "Detectron2: model., 265 tensors; left out: fc",
    ),
    "Caffe2": (
        arrays(lambda s: {"blobs": {**caffe2(s), "fc1000_w": np.ones(2), "conv1_b": np.ones(2)}}),
        "Caffe2: blobs., 265 tensors; left out: conv1_b, fc1000_w",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_gives_the_plain_tensors_bit_for_bit(plain: State, tmp_path: Path, name: str) -> None:
    write, words = LAYOUTS[name]
    path = tmp_path / "weights"
    write(plain, path)
    held = tensors.read(path)
    assert held.claims.layout == words
    trunk = {own: value for own, value in held.tensors.items() if not own.endswith("tracked") and own[:3] != "fc."}
    published.same({own: value.numpy() for own, value in trunk.items()}, {n: v.numpy() for n, v in plain.items()})
    expected = CAFFE if name == "Caffe2" else TORCHVISION
    assert held.claims.variants[0] is expected
    assert tensors.claims(path) == held.claims


def wider(state: State, factor: int) -> State:
    """Give the inner convolutions of blocks more channels, as Wide ResNets have."""

    def grown(name: str, value: torch.Tensor) -> torch.Tensor:
        shape = list(value.shape)
        if re.search(r"\.(conv|bn)[12]\.", name):
            shape[0] *= factor
        if re.search(r"\.conv[23]\.", name):
            shape[1] *= factor
        return torch.ones(()).expand(shape)

    return {name: grown(name, value) for name, value in state.items()}


def deep_stem(state: State, name: str = "conv1.{}.weight") -> State:
    rest = {own: value for own, value in state.items() if own != "conv1.weight"}
    sizes = {0: (32, 3, 3, 3), 3: (32, 32, 3, 3), 6: (64, 32, 3, 3)}
    return {**rest, **{name.format(place): torch.ones(()).expand(size) for place, size in sizes.items()}}


def averaged(state: State) -> State:
    """Move the shortcut's convolution behind an average pool, as ResNet50-D does."""
    return renamed(state, (r"downsample\.1", "downsample.2"), (r"downsample\.0", "downsample.1"))


def built(builder: Callable[[], torch.nn.Module]) -> State:
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in builder().state_dict().items()}
    return {name: torch.ones(()).expand(shape) for name, shape in shapes.items()}


def without(state: State, *names: str) -> State:
    return {name: value for name, value in state.items() if name not in names}


def pre_activated(state: State) -> State:
    """Normalise what a block gets, as ResNet V2 does: its first norm has as many channels as its input."""
    inputs = {f"layer{stage + 1}.1.bn1": 256 << stage for stage in range(4)}
    return {
        name: torch.ones(()).expand(inputs.get(name.rpartition(".")[0], value.shape[0]))
        if name.startswith(tuple(inputs))
        else value
        for name, value in state.items()
    }


STRANGERS: dict[str, tuple[Callable[[State], object], str]] = {
    "ResNet50-D": (lambda s: averaged(deep_stem(s)), "is ResNet50-D, which averages in its shortcuts"),
    "ResNet50-D, MMPretrain": (lambda s: under("backbone.", averaged(deep_stem(s, "stem.{}.weight"))), "is ResNet50-D"),
    "ResNet50-vd": (lambda s: deep_stem(s, "conv1.conv1_1.{}.weight"), "is ResNet50-vd, with a stem of three"),
    "ResNet50-S": (deep_stem, "is ResNet50-C, -S or -T, which have a stem of three convolutions"),
    "ResNet50-C, MMPretrain": (lambda s: under("backbone.", deep_stem(s, "stem.{}.weight")), "is ResNet50-C, -S or -T"),
    "Wide ResNet": (lambda s: under("module.", wider(s, 2)), "is a Wide ResNet: its blocks have 128 channels"),
    "ResNeXt": (
        lambda s: built(torchvision.models.resnext50_32x4d),
        "is a ResNeXt: its 3x3 convolutions have 32 groups",
    ),
    "ResNet V2": (pre_activated, "is a ResNet V2, which normalises before each convolution"),
    "BiT": (lambda s: head("stem.conv.weight", "stages.0.blocks.0.norm1.weight"), r"is a ResNet V2 \(such as BiT\)"),
    "BiT, original": (lambda s: head("resnet.root.conv.weight", "resnet.block1.unit01.conv1.weight"), "is a ResNet V2"),
    "a whole model": (
        lambda s: {f"model._modules.{name.replace('.', '._modules.')}": value for name, value in s.items()},
        r"holds a whole model, not its tensors: save its state_dict\(\) instead",
    ),
    "CLIP": (
        lambda s: {**renamed(deep_stem(s), (r"^", "visual.")), **head("visual.attnpool.positional_embedding")},
        "is a ResNet of CLIP, with a stem of three convolutions and a pool by attention",
    ),
    "SSCD": (
        lambda s: {**under("backbone.", s), **head("embeddings.1.weight", "embeddings.1.bias")},
        "is a copy detector such as SSCD, whose descriptors come from a GeM pool and a linear layer: if the average"
        " pool of its trunk will do, save the trunk's state dict alone",
    ),
    "GeM": (lambda s: {**under("backbone.", s), **head("pool.p")}, "has a GeM pool, not the average pool"),
    "ResNet18": (lambda s: built(torchvision.models.resnet18), "is ResNet18, with 2-2-2-2 blocks"),
    "ResNet34": (lambda s: built(torchvision.models.resnet34), "is ResNet34, with 3-4-6-3 blocks of two convolutions"),
    "ResNet101": (lambda s: hugging_face(built(torchvision.models.resnet101)), "is ResNet101, with 3-4-23-3 blocks"),
    "ResNet152": (lambda s: detectron2(built(torchvision.models.resnet152)), "is ResNet152, with 3-8-36-3 blocks"),
    "SE-ResNet50": (lambda s: {**s, **head("layer1.0.se.fc.0.weight")}, "has attention between its convolutions"),
    "ViT": (
        lambda s: head("cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
        "is a vision transformer",
    ),
    "small images": (
        lambda s: {**s, "conv1.weight": torch.ones(64, 3, 3, 3)},
        "is a ResNet for small images: its first convolution is 3x3, not 7x7",
    ),
    "grey": (lambda s: {**s, "conv1.weight": torch.ones(64, 1, 7, 7)}, "takes images of 1 channels, not of 3"),
    "incomplete": (
        lambda s: under("module.", without(s, "layer2.1.bn3.running_var")),
        r"is not a ResNet50 \(module.layer2.1.bn3.running_var is missing\): use a complete state dict",
    ),
    "narrower": (
        lambda s: {**s, "layer4.2.conv3.weight": torch.ones(1024, 512, 1, 1)},
        r"is not a ResNet50 \(layer4.2.conv3.weight has shape \(1024, 512, 1, 1\), not \(2048, 512, 1, 1\)\)",
    ),
    "more in a block": (
        lambda s: {**s, **head("layer1.0.bn1.IN.weight", "layer1.1.fc.weight", "layer5.0.weight")},
        r"has tensors that no ResNet50 and no known head has \(layer1.0.bn1.IN.weight, layer1.1.fc.weight and 1 more\)",
    ),
    "biases": (lambda s: {**s, **head("layer1.0.conv1.bias")}, "has tensors that no ResNet50 .*layer1.0.conv1.bias"),
    "two": (
        lambda s: {**under("a.", s), **under("b.", other(s))},
        "holds two ResNet50s, a. and b.: save the state dict of one of them",
    ),
    "a teacher that is not complete": (
        lambda s: {**under("student.", s), **under("teacher.", without(s, "conv1.weight"))},
        "has tensors that no ResNet50 .*teacher",
    ),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_another_network_is_named_in_one_line(plain: State, tmp_path: Path, name: str) -> None:
    path = tmp_path / "weights"
    content, reason = STRANGERS[name]
    torch.save(content(plain), path)
    for act in (tensors.claims, tensors.read):
        with pytest.raises(WeightsError, match=f"^{re.escape(str(path))} {reason}") as raised:
            act(path)
        assert "\n" not in str(raised.value) and ": " in str(raised.value)[len(str(path)) :]


def test_one_network_under_two_names_is_one(plain: State, tmp_path: Path) -> None:
    torch.save({**under("model.", plain), **under("backbone.", plain)}, tmp_path / "tied.pth")
    assert tensors.claims(tmp_path / "tied.pth").layout in (
        "torchvision: model., 265 tensors",
        "torchvision: backbone., 265 tensors",
    )


def test_norms_without_statistics_are_those_of_older_caffe2_files(plain: State, tmp_path: Path) -> None:
    kept = {name: value.numpy() for name, value in caffe2(plain).items() if "running" not in name}
    older = {name.replace("bn_gamma", "bn_s").replace("bn_beta", "bn_b"): value for name, value in kept.items()}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": {**older, "fc1000_b": np.ones(2, np.float32)}}))
    held = tensors.read(tmp_path / "R-50.pkl")
    assert held.claims.layout == "Caffe2: blobs., 159 tensors; left out: fc1000_b"
    assert torch.equal(held.tensors["layer3.5.bn2.weight"], plain["layer3.5.bn2.weight"])
    for name in plain:
        if name.endswith("running_mean"):
            scale = 1 / (held.tensors[name.replace("mean", "var")] + CAFFE.epsilon).sqrt()
            assert not held.tensors[name].any() and (scale - 1).abs().max() < 1e-6


def test_a_file_of_detectron2_says_which_strides_it_has(plain: State, tmp_path: Path) -> None:
    torch.save(detectron2(plain), tmp_path / "own.pth")
    assert tensors.claims(tmp_path / "own.pth").variants == (CAFFE, TORCHVISION)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("conv1.weight", r"is a TorchScript program, which .*: save model.state_dict\(\)$"),
        ("visual.attnpool.q_proj.weight", "is a ResNet of CLIP"),
    ],
)
def test_programs_are_never_run(tmp_path: Path, name: str, reason: str) -> None:
    path = tmp_path / "program.pt"
    torch.save(head(name), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("program/constants.pkl", pickle.dumps(()))
        archive.writestr("program/code/__torch__.py", "raise SystemExit")
    with pytest.raises(WeightsError, match=reason):
        tensors.claims(path)


@pytest.mark.slow
def test_rows_are_those_of_the_plain_module_to_the_bit(tmp_path: Path) -> None:
    state = {name: torch.from_numpy(value) for name, value in trained(11)[0].items()}
    torch.save(state, tmp_path / "plain.pth")
    save_file(hugging_face(state), tmp_path / "model.safetensors")
    torch.save(
        {"teacher": under("backbone.", state), "student": under("backbone.", other(state))}, tmp_path / "dino.pth"
    )
    batch = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rows = [network.load(weights.find(str(path))).module(batch) for path in sorted(tmp_path.iterdir())]
    assert len(rows) == 3 and rows[0].std() > 1e-3
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])


def test_a_network_of_caffe_has_strides_in_its_1x1_convolutions() -> None:
    module = network.build(variants.named("caffe"))
    assert module.layer2[0].conv1.stride == (2, 2) and module.layer2[0].conv2.stride == (1, 1)
    assert module.bn1.eps == 1e-5 and module.maxpool.padding == 1
