"""The same results on a GPU, within what its arithmetic rounds differently. Needs a CUDA device."""

from __future__ import annotations

import pytest
import torch

from qvd_core.calibration.calibrate import calibrate
from qvd_core.models.loader import VideoModel, load
from qvd_core.recipe import get_recipe
from qvd_core.sampling import generate
from qvd_core.scores import compare
from qvd_core.variant import quantize
from tests.closeness import assert_close, assert_same_clip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch finds none"),
]


@pytest.fixture(scope="module")
def cuda_model(tiny_folder, model) -> VideoModel:
    loaded = load(str(tiny_folder), device="cuda")
    return VideoModel(model.spec, loaded.pipeline, loaded.denoiser_name, loaded.device)


def test_a_clip_from_the_gpu_is_the_clip_from_the_cpu(cuda_model, settings, reference):
    assert cuda_model.denoiser.conv_in.weight.is_cuda
    clip = generate(cuda_model, settings)
    # TF32 convolutions round to 10 bits; noise comes from the same CPU generator.
    assert_close(clip.latents_by_step[0], reference.latents_by_step[0], 0.05, "latents of the first step")
    assert compare(reference, clip).psnr_db > 35
    assert_same_clip(generate(cuda_model, settings), clip)


def test_weights_get_the_same_codes(cuda_model, model, statistics):
    here = quantize(model, get_recipe("minmax-w4a8"), statistics).denoiser
    there = quantize(cuda_model, get_recipe("minmax-w4a8"), statistics).denoiser
    for site in model.sites:
        codes, others = here.get_submodule(site.name).codes, there.get_submodule(site.name).codes.cpu()
        # A weight in the middle between two codes may fall on either side.
        assert (codes.int() - others.int()).abs().max() <= 1
        assert (codes != others).float().mean() < 1e-3, site.name


@pytest.mark.parametrize("name", ["minmax-w8a8", "dynamic-w8a8"])
def test_quantized_clips_are_as_close_to_full_precision(cuda_model, model, settings, statistics, name):
    def psnr(source: VideoModel) -> float:
        variant = quantize(source, get_recipe(name), statistics)
        return compare(generate(source, settings), generate(variant, settings)).psnr_db

    assert abs(psnr(cuda_model) - psnr(model)) < 3


def test_calibration_finds_the_same_ranges(cuda_model, model, settings):
    here, there = (calibrate(m, [settings.prompt], steps=1) for m in (model, cuda_model))
    for name, low in here.low.items():
        span = float((here.high[name] - low).max())
        assert_close(there.low[name], low, 0.02 * span, f"lows of {name}")
