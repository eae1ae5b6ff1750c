"""The design holds: imports run down the packages, and each library has one owner."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

import rn50feat

PACKAGE = Path(rn50feat.__file__).parent
ARCHITECTURE = PACKAGE.parent / "docs/architecture.md"
# The path of one image, from the top: a package imports only from those below it. Its docstring says in which order
# its modules build on each other. `store` and `model` never import each other.
PACKAGES = (
    "__main__ cli pages exchange extraction searching engines backends model store images sources durable escape errors"
).split()
OWNERS = {
    "PIL": {"images"},
    "click": {"cli"},
    "cv2": {"searching.alignment", "searching.guesses"},
    "faiss": {"searching.faiss_index", "searching.products"},
    "fsspec": {"sources.remote"},
    "google_crc32c": {"model.weight_files.crc32c"},
    "h5py": {"durable.hdf5_storage", "model.weight_files.hdf5", "model.weight_files.keras", "store"},
    "openTSNE": {"searching.projection"},
    "openvino": {"backends.int8", "backends.openvino"},
    "pandas": {"store.array"},
    "pathspec": {"sources.exclusion"},
    "pillow_heif": {"images.kinds"},
    "pyarrow": {"exchange.parquet", "store.array"},
    "qdrant_client": {"exchange.qdrant"},
    "ray": {"engines.actor", "engines.cluster", "engines.ray"},
    "safetensors": {"model.tensors"},
    "simplejpeg": {"images.jpeg", "images.least_work"},
    "torch": {
        "backends",
        "model.network",
        "model.pickles",
        "model.structure",
        "model.tensors",
        "searching.blocks",
        "searching.rounded",
    },
    "torchvision": {"model.network"},
    "tqdm": {"cli.terminal"},
    "xxhash": {"store.checksums"},
}


def modules() -> dict[str, ast.Module]:
    paths = (path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): ast.parse(path.read_text(encoding="utf-8")) for name, path in names.items()}


MODULES = modules()


def imports(name: str) -> set[str]:
    """Return the dotted names of what a module imports, at run time and for types."""
    found = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_packages_are_those_of_the_design() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(PACKAGES)


def test_imports_run_down_the_packages() -> None:
    for name in MODULES:
        package = name.partition(".")[0]
        for other in imports(name):
            below = other.removeprefix("rn50feat.").partition(".")[0]
            if other.startswith("rn50feat.") and below in PACKAGES and below != package:
                assert PACKAGES.index(below) > PACKAGES.index(package), f"{name} imports {other}"
                assert (package, below) != ("model", "store"), f"{name} imports {other}"


def arrows() -> list[str]:
    """Return the imports between packages as the lines of a diagram, without those that follow from others."""
    used = {package: set[str]() for package in PACKAGES}
    for name in MODULES:
        package = name.partition(".")[0]
        below = {other.removeprefix("rn50feat.").partition(".")[0] for other in imports(name) if "rn50feat." in other}
        used[package] |= below & set(PACKAGES) - {package}

    def reached(package: str) -> set[str]:
        return used[package].union(*map(reached, used[package]))

    packages = PACKAGES[1:]  # without __main__
    far = {package: set[str]().union(*map(reached, used[package])) for package in packages}
    return [f"    {one} --> {other}" for one in packages for other in packages if other in used[one] - far[one]]


def test_the_diagram_and_the_files_of_the_architecture_page_are_those_of_the_code() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    assert "```mermaid\nflowchart TD\n" + "\n".join(arrows()) + "\n```" in text, "\n".join(arrows())
    assert re.findall(r"^\| `(\w+)/`", text, re.MULTILINE) == [name for name in PACKAGES if (PACKAGE / name).is_dir()]
    for name in re.findall(r"\b(?:[a-z_]+/)?[a-z_]+\.py\b", text.replace("tests/test_architecture.py", "")):
        assert (PACKAGE / name).is_file(), name
    for name, known in re.findall(r"`([a-z_/]+\.py)`: `(\w+)`", text):
        assert re.search(rf"\b(?:def|class) {known}\b", (PACKAGE / name).read_text(encoding="utf-8")), (name, known)


def test_modules_of_a_package_do_not_import_each_other_in_circles() -> None:
    depth: dict[str, int] = {}

    def follow(name: str, above: tuple[str, ...] = ()) -> int:
        assert name not in above, " -> ".join([*above, name])
        if name not in depth:
            own = {module for other in imports(name) if (module := home(other)) and module != name}
            depth[name] = 1 + max((follow(module, (*above, name)) for module in own), default=0)
        return depth[name]

    for name in MODULES:
        follow(name)


def test_the_docstring_of_a_package_lists_its_modules_in_their_order() -> None:
    for package in {name.rpartition(".")[0] for name in MODULES} - {""}:
        named = re.findall(r"`(\w+)`", ast.get_docstring(MODULES[package]) or "")
        places = {name: place for place, name in enumerate(named)}
        own = {name for name in MODULES if name.rpartition(".")[0] == package}
        for name in own:
            if package == "cli":
                commands = any(getattr(node, "name", "") == "command" for node in MODULES[name].body)
                assert commands or name.removeprefix("cli.") in named, name
                continue
            assert name.removeprefix(f"{package}.") in places, name
            for other in {module for other in imports(name) if (module := home(other))} & own - {name}:
                first, then = (places[one.removeprefix(f"{package}.")] for one in (other, name))
                assert first < then, f"{name} imports {other}"


def home(name: str) -> str | None:
    """Return the module that an import of ``rn50feat.…`` reads, None for one of another library."""
    inner = name.removeprefix("rn50feat.")
    return next((one for one in (inner, inner.rpartition(".")[0]) if name != inner and one in MODULES), None)


def test_each_library_has_its_owner() -> None:
    for library, owners in OWNERS.items():
        for name in MODULES:
            used = library in {other.partition(".")[0] for other in imports(name)}
            owned = any(name == owner or name.startswith(f"{owner}.") for owner in owners)
            assert owned or not used, f"{name} imports {library}"


def test_kinds_of_places_are_told_apart_in_sources_alone() -> None:
    kinds = {"Local", "Remote", "Member", "is_url", "is_archive", "split", "join"}
    for name in MODULES:
        if not name.startswith("sources"):
            used = {other.rpartition(".")[2] for other in imports(name) if other.startswith("rn50feat.sources.")}
            assert not used & kinds, name


@pytest.mark.slow
@pytest.mark.parametrize(("module", "absent"), [("store.writer", "torch"), ("model.network", "h5py")])
def test_store_works_without_torch_and_the_network_without_h5py(module: str, absent: str) -> None:
    program = f"import sys, rn50feat.{module}; print({absent!r} in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert output.stdout == "False\n"


def test_every_module_and_public_name_has_a_docstring() -> None:
    for name, tree in MODULES.items():
        assert ast.get_docstring(tree), name
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node) or name.startswith("cli."), f"{name}.{node.name}"


def test_modules_and_functions_stay_short() -> None:
    for name, tree in MODULES.items():
        for node in [tree, *ast.walk(tree)]:
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 65, f"{name}.{node.name}"
        assert max((node.end_lineno or 0 for node in tree.body), default=0) <= 340, name


# Modules whose tests are those of what they serve: a command's are in test_cli and test_messages, a file format's in
# the test of its reader or writer.
WITHOUT_A_TEST = """
    cli.* durable.hdf5_storage durable.records durable.waiting engines.actor engines.cluster engines.node
    exchange.npy exchange.parquet extraction.catalogue extraction.changes extraction.plan
    model.strangers model.weight_files.checkpoint model.weight_files.hdf5 model.weight_files.names
    model.weight_files.protobuf model.weight_files.table model.weight_files.translation pages.figures
    searching.faiss_index searching.neighbours searching.recall searching.rounded sources.contents sources.folders
    sources.listing sources.reference sources.tars sources.urls sources.zip_names sources.zips
    store.guards store.layout store.summary
""".split()


def test_every_module_with_logic_has_a_test_file() -> None:
    tests = Path(__file__).parent
    for path in PACKAGE.rglob("[!_]*.py"):
        inner = path.relative_to(PACKAGE)
        name = ".".join(inner.with_suffix("").parts)
        if not any(fnmatch(name, pattern) for pattern in WITHOUT_A_TEST):
            assert (tests / inner.with_name(f"test_{inner.name}")).exists(), name
