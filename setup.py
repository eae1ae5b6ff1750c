"""Packaging of rn50feat; settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
(VERSION,) = re.findall(r'__version__ = "(.+)"', (HERE / "rn50feat" / "__init__.py").read_text())


def description() -> str:
    """Return the README for the package index, where its relative links and its screenshot would lead nowhere.

    The project has no public address yet. Once it has one, set `url` below, and let the links lead there.
    """
    text = re.sub(r"^!\[.*\n\n", "", (HERE / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = re.sub(r"\[([^]]+)\]\((?!https?:)([^)#]+)(#[^)]*)?\)", r"\1 (`\2`)", text)
    return text.replace(" (`CHANGELOG.md`)", "")


HEIC = ["pillow-heif>=0.22"]
REMOTE = ["fsspec>=2024.6", "s3fs>=2024.6", "aiohttp>=3.9"]
MAP = ["openTSNE>=1.0.2"]
OPENVINO = ["openvino>=2025.0"]
PARQUET = ["pyarrow>=17"]
QDRANT = ["qdrant-client>=1.12"]
RAY = ["ray>=2.52"]  # the first with tokens
VERIFY = ["opencv-python-headless>=4.10"]  # the first for numpy 2
SLIM = ["google-crc32c>=1.6"]
# keras is what the readers of weight files are compared with.
TEST = [
    "build>=1.3",  # the first with --quiet
    "setuptools>=69",
    "twine>=6.1",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff>=0.14",
    "mypy>=1.18",
    "scikit-learn>=1.5",
    "keras>=3.8",
    "pandas>=2.2",
    *HEIC,
    *MAP,
    *OPENVINO,
    *PARQUET,
    *QDRANT,
    *REMOTE,
    *RAY,
    *SLIM,
    *VERIFY,
    "moto[server]>=5",
    "jsonschema>=4.20",
]

setup(
    name="rn50feat",
    version=VERSION,
    author="rn50feat developers",
    description="Turn folders of images into ResNet50 features in one HDF5 file, and find similar images",
    long_description=description(),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["resnet50", "image features", "embeddings", "similarity search", "duplicates", "hdf5", "faiss"],
    python_requires=">=3.10",
    packages=find_packages(include=["rn50feat", "rn50feat.*"]),
    package_data={"rn50feat": ["py.typed"], "rn50feat.pages": ["*.css", "*.js"], "rn50feat.cli": ["*.json"]},
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy>=1.26",
        "Pillow>=11.3",  # the first with AVIF
        "simplejpeg>=1.8",
        "click>=8.1",
        "h5py>=3.12",
        "faiss-cpu>=1.12",  # the first with RaBitQ in inverted lists and in factory strings
        "pathspec>=1.0",  # .gitignore rules as git follows them
        "tqdm>=4.66",
        "xxhash>=3.4",
        "safetensors>=0.5",
    ],
    extras_require={
        "heic": HEIC,
        "map": MAP,
        "openvino": OPENVINO,
        "parquet": PARQUET,
        "qdrant": QDRANT,
        "remote": REMOTE,
        "ray": RAY,
        "slim": SLIM,
        "verify": VERIFY,
        "test": TEST,
    },
    entry_points={"console_scripts": ["rn50feat=rn50feat.cli.main:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
