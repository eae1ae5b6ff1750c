"""The design holds: imports run downwards, and each library has one owner."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rn50feat

PACKAGE = Path(rn50feat.__file__).parent

# The journey of one picture, from the bottom: a module imports only from rows above its own.
LAYERS = [
    ["errors", "exchange", "hdf5_storage", "indexing", "pages", "places", "quantities"],
    ["caches", "disk", "limits", "rows", "typed", "unseen", "waiting", "engines.allowance"],
    ["damage", "places.zip_names", "places.folders", "places.remote", "places.lists"],
    ["places.zips"],
    ["places.archives", "beside"],
    ["places.exclusion"],
    ["provenance", "pages.page", "variants", "resampling", "formats.crc32c", "formats.protobuf", "formats.names"],
    ["formats.table", "formats.translation", "indexing.scores"],
    ["formats.hdf5", "formats.checkpoint"],
    ["formats.keras", "formats.slim"],
    ["formats.apart"],
    ["formats", "download"],
    ["images.kinds", "images.numbers", "images.png", "images.jpeg", "images.colors"],
    ["images.tiff", "images.wide"],
    ["images.samples"],
    ["places.sources", "images", "lock", "rollback", "tensors", "backends"],
    ["weights", "journal"],
    ["layout", "storable"],
    ["network", "places.selection", "presence", "opening"],
    ["store"],
    ["marks"],
    [
        "catalogue",
        "writer",
        "snapshot",
        "prune",
        "backends.openvino",
        "backends.exact",
        "backends.check",
        "backends.fused",
        "indexing.exact",
        "indexing.index_plan",
    ],
    ["backends.cuda"],
    [
        "convert",
        "structure",
        "plan",
        "backends.torch",
        "exchange.npy",
        "exchange.parquet",
        "engines",
        "engines.worker",
        "indexing.faiss_index",
    ],
    ["attempts", "nothing", "pages.figures", "summary", "exchange.export", "indexing.index_file"],
    ["pages.diagram", "engines.pool", "exchange.intake", "exchange.qdrant", "indexing.nearest"],
    ["engines.local", "indexing.recall"],
    ["engines.cluster", "engines.portion", "engines.remote"],
    ["engines.member"],
    ["engines.ray"],
    ["embedding", "indexing.index", "pages.thumbnails"],
    ["run", "search", "duplicates", "preview", "verify", "bench", "exchange.merge", "exchange.importing"],
    ["extract", "pages.gallery"],
    ["cli"],
    ["cli.facts", "cli.report", "cli.streams"],
    ["cli.groups"],
    ["cli.terminal"],
    ["cli.ending"],
    ["cli.options", "cli.stores"],
    ["cli.outcome", "cli.index"],
    [
        "cli.bench",
        "cli.convert",
        "cli.duplicates",
        "cli.extract",
        "cli.info",
        "cli.model",
        "cli.merge",
        "cli.export",
        "cli.import_",
        "cli.search",
        "cli.verify",
    ],
    ["cli.main"],
    ["__main__"],
]


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()

OWNERS = {
    "click": {name for name in MODULES if name.startswith("cli")}
    - {"cli", "cli.facts", "cli.groups", "cli.outcome", "cli.report", "cli.stores", "cli.streams", "cli.terminal"},
    "h5py": {"hdf5_storage", "layout", "opening", "store", "writer", "formats.hdf5", "formats.keras"},
    "pyarrow": {"exchange.parquet"},
    "qdrant_client": {"exchange.qdrant"},
    "faiss": {"indexing.faiss_index"},
    "torchvision": {"network"},
    "PIL": {name for name in MODULES if name.startswith("images")} - {"images.kinds"} | {"resampling"},
    "pillow_heif": {"images.kinds"},
    "tqdm": {"cli.terminal"},
    "openvino": {"backends.openvino"},
    "torch": {
        "network",
        "structure",
        "tensors",
        "backends.torch",
        "backends.fused",
        "backends.cuda",
        "backends.openvino",
        "backends.exact",
    },
    "ray": {"engines.cluster", "engines.member", "engines.ray"},
    "safetensors": {"tensors"},
    "simplejpeg": {"images.jpeg"},
    "fsspec": {"places.remote"},
    "pathspec": {"places.exclusion"},
}


def imports(tree: ast.Module) -> set[str]:
    """Return the dotted names of all imports, at run time and for types."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(module: str) -> set[str]:
    """Return the modules of this package that a module imports; a neighbour does not count as their package."""
    found = set()
    for name in imports(MODULES[module]):
        if name.startswith("rn50feat."):
            package, _, inner = name.removeprefix("rn50feat.").partition(".")
            exact = f"{package}.{inner.partition('.')[0]}"
            found.add(exact if exact in MODULES else package)
            if package != module.partition(".")[0]:
                found.add(package)
    return found & set(MODULES)


def test_every_module_has_its_layer() -> None:
    assert sorted(name for layer in LAYERS for name in layer) == sorted(set(MODULES) - {"__init__"})


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"__init__"}))
def test_imports_run_downwards(name: str) -> None:
    depth = {module: i for i, layer in enumerate(LAYERS) for module in layer}
    for other in own(name) - {name}:
        assert depth[other] < depth[name], f"{name} imports {other}"


@pytest.mark.parametrize("library", OWNERS)
def test_each_library_has_its_owners(library: str) -> None:
    users = {name for name, tree in MODULES.items() if library in {i.partition(".")[0] for i in imports(tree)}}
    assert users == OWNERS[library]


def test_store_and_network_never_meet() -> None:
    for code, absent in (("rn50feat.writer", "torch"), ("rn50feat.network", "h5py")):
        program = f"import sys, {code}; print({absent!r} in sys.modules)"
        output = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
        assert output.stdout == "False\n", code


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_and_public_name_has_a_docstring(name: str) -> None:
    tree = MODULES[name]
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node) or name.startswith("cli."), node.name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_and_functions_stay_short(name: str) -> None:
    lines = (PACKAGE / (name.replace(".", "/") + ".py")) if name not in ("engines", "backends", "cli") else None
    if lines is not None and lines.exists():
        assert len(lines.read_text(encoding="utf-8").splitlines()) <= 340
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno <= 65, node.name
