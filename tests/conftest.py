"""Tiny random models, built once per session. They are read-only: a test that damages one copies it first.

Random weights are right for tests and wrong for results: nothing here says how well a method works.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# The networks are so small that threads cost more than they give; torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from qvd_core.calibration.statistics import Statistics
    from qvd_core.models.loader import VideoModel
    from qvd_core.sampling import Clip, Settings
    from qvd_core.variant import Variant

CAPTION = "a red circle moving left on a striped gray background"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved AnimateDiff pipeline: 16 frames of 16x16 pixels, two levels, captions of the shape world."""
    from tests.tiny_pipelines import save_animatediff

    return save_animatediff(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Wan pipeline: a family without a site map."""
    from tests.tiny_pipelines import save_wan

    return save_wan(tmp_path_factory.mktemp("models") / "tiny-wan")


@pytest.fixture(scope="session")
def model(tiny_folder: Path) -> VideoModel:
    from qvd_core.models.loader import VideoModel, load

    loaded = load(str(tiny_folder), device="cpu")
    # Four frames and two steps by default, so that calibration and evaluation are quick too.
    spec = replace(loaded.spec, frames=4, steps=2, example_prompts=(CAPTION,))
    return VideoModel(spec, loaded.pipeline, loaded.denoiser_name, loaded.device)


@pytest.fixture(scope="session")
def wan(wan_folder: Path) -> VideoModel:
    from qvd_core.models.loader import VideoModel, load

    loaded = load(str(wan_folder), device="cpu")
    spec = replace(loaded.spec, frames=5, height=16, width=16, steps=2)
    return VideoModel(spec, loaded.pipeline, loaded.denoiser_name, loaded.device)


@pytest.fixture(scope="session")
def ltx(tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    """A tiny LTX pipeline: another family without a site map."""
    from qvd_core.models.loader import VideoModel, load
    from tests.tiny_pipelines import save_ltx

    loaded = load(str(save_ltx(tmp_path_factory.mktemp("models") / "tiny-ltx")), device="cpu")
    spec = replace(loaded.spec, frames=9, height=32, width=32, steps=2)
    return VideoModel(spec, loaded.pipeline, loaded.denoiser_name, loaded.device)


@pytest.fixture(scope="session")
def settings(model: VideoModel) -> Settings:
    from qvd_core.sampling import default_settings

    return default_settings(model, CAPTION)


@pytest.fixture(scope="session")
def statistics(model: VideoModel) -> Statistics:
    """Calibrated on two captions with the default two steps."""
    from qvd_core.calibration.calibrate import calibrate

    return calibrate(model, [CAPTION, "a blue ring growing on a plain white background"])


@pytest.fixture(scope="session")
def reference(model: VideoModel, settings: Settings) -> Clip:
    """What the untouched model samples from `settings`."""
    from qvd_core.sampling import generate

    return generate(model, settings)


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a copy of the tiny pipeline that a test may damage."""

    def copy() -> Path:
        return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))

    return copy


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Makes the system refuse, for a while, to let any file grow beyond some bytes: a disk that fills up."""
    resource = pytest.importorskip("resource", reason="only POSIX systems limit file sizes")

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session")
def mini() -> VideoModel:
    """The model that ships with the project. Its weights may change, so nothing may depend on their values."""
    from qvd_core.models.loader import load

    return load("animatediff-mini", device="cpu")


@pytest.fixture(scope="session")
def mini_statistics(mini: VideoModel) -> Statistics:
    """Of one small clip and two steps, which takes a moment."""
    from qvd_core.calibration.calibrate import calibrate

    return calibrate(mini, [CAPTION], steps=2, frames=4, height=32, width=32)


@pytest.fixture(scope="module")
def named(model: VideoModel, statistics: Statistics) -> Callable[[str], Variant]:
    """Builds a named recipe's variant once; not to be changed."""
    from qvd_core.recipe import get_recipe
    from qvd_core.variant import quantize

    return functools.cache(lambda name: quantize(model, get_recipe(name), statistics))


@pytest.fixture(scope="module")
def call(model: VideoModel) -> Callable[[Any], Any]:
    """The first call of a sampling run, to be made of any denoiser."""
    from tests.denoiser_calls import recorded_calls

    return recorded_calls(model, "a red circle")[0]
