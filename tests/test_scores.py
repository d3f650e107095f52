"""Scores of two clips: what is compared, what is refused, what is written."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from qvd_core.errors import ComparisonError
from qvd_core.metrics.fidelity import latent_error_by_step, psnr, psnr_by_frame, ssim_by_frame
from qvd_core.sampling import Clip, Settings
from qvd_core.scores import compare

SETTINGS = Settings("a red circle", steps=3, frames=2, height=16, width=16)


def clip(number: int, **changes) -> Clip:
    random = np.random.default_rng(number)
    latents = tuple(torch.from_numpy(random.normal(size=(1, 4, 2, 2, 2))) for _ in range(3))
    settings = replace(SETTINGS, **changes)
    return Clip(random.random((2, 16, 16, 3), dtype=np.float32), latents, settings, 1.5)


def test_scores_are_the_metrics_of_the_two_clips():
    a, b = clip(0), clip(1)
    scores = compare(a, b)
    assert scores.psnr_db == psnr(a.frames, b.frames)
    assert scores.psnr_by_frame == tuple(psnr_by_frame(a.frames, b.frames))
    assert scores.ssim_by_frame == tuple(ssim_by_frame(a.frames, b.frames))
    assert scores.ssim == pytest.approx(sum(scores.ssim_by_frame) / 2)
    assert scores.latent_error == tuple(latent_error_by_step(a.latents_by_step, b.latents_by_step))


def test_the_first_clip_is_the_reference():
    """Latent errors are relative to it."""
    small, large = clip(0), clip(0)
    large = replace(large, latents_by_step=tuple(2 * z for z in small.latents_by_step))
    assert compare(small, large).latent_error == pytest.approx((1.0,) * 3)
    assert compare(large, small).latent_error == pytest.approx((0.5,) * 3)


def test_a_clip_against_itself():
    scores = compare(clip(0), clip(0))
    assert (scores.psnr_db, scores.ssim, scores.latent_error) == (math.inf, pytest.approx(1), (0, 0, 0))
    written = scores.to_dict()
    assert written["psnr_db"] is None
    assert written["psnr_by_frame"] == [None, None]
    assert written["ssim"] == 1
    json.dumps(written, allow_nan=False)


def test_written_scores_are_numbers_with_six_digits():
    written = compare(clip(0), clip(1)).to_dict()
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert [len(written[name]) for name in ("psnr_by_frame", "ssim_by_frame", "latent_error")] == [2, 2, 3]
    for value in (written["psnr_db"], written["ssim"], *written["latent_error"]):
        assert value == round(value, 6)


CHANGES = {
    "prompt": "a blue ring",
    "negative_prompt": "blurry",
    "seed": 1,
    "steps": 4,
    "guidance_scale": 1.0,
    "frames": 3,
    "height": 32,
    "width": 32,
}


@pytest.mark.parametrize(("name", "value"), CHANGES.items(), ids=CHANGES)
def test_clips_that_were_not_asked_for_alike(name, value):
    with pytest.raises(ComparisonError, match=f"The clips differ in {name}; sample both"):
        compare(clip(0), clip(1, **{name: value}))


def test_every_setting_is_compared():
    assert {field.name for field in fields(Settings)} == set(CHANGES)


def test_all_differences_are_named():
    with pytest.raises(ComparisonError, match="differ in prompt, seed, width;"):
        compare(clip(0), clip(1, prompt="x", seed=9, width=32))
