"""Many prompts under many recipes: the rows, what they hold, and their summary."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from qvd_core.errors import CalibrationError, Cancelled, QvdError
from qvd_core.evaluation import REFERENCE, ClipResult, evaluate, summarize
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import Recipe, get_recipe
from qvd_core.sampling import default_settings, generate
from qvd_core.scores import compare
from qvd_core.shapeworld.checker import read_clip
from qvd_core.shapeworld.scene import parse_caption
from qvd_core.variant import quantize

CAPTION = "a red circle moving left on a striped gray background"
OTHER = "a corgi"


@pytest.fixture(scope="module")
def large(model) -> VideoModel:
    """The tiny model at the size of the shape world, whose checker reads no other."""
    spec = replace(model.spec, height=64, width=64, frames=2, steps=1)
    return VideoModel(spec, model.pipeline, model.denoiser_name, model.device)


@pytest.fixture(scope="module")
def results(large) -> list[ClipResult]:
    return evaluate(large, [get_recipe("dynamic-w8a8")], [CAPTION, OTHER], seed=5)


def test_one_row_per_prompt_and_recipe_with_a_seed_of_its_own(results):
    assert [(r.recipe, r.prompt, r.seed) for r in results] == [
        (REFERENCE, CAPTION, 5),
        ("dynamic-w8a8", CAPTION, 5),
        (REFERENCE, OTHER, 6),
        ("dynamic-w8a8", OTHER, 6),
    ]
    assert all(r.seconds > 0 for r in results)


def test_rows_hold_the_scores_of_the_same_clips_made_by_hand(large, results):
    variant = quantize(large, get_recipe("dynamic-w8a8"))
    for prompt, seed, reference, row in zip((CAPTION, OTHER), (5, 6), results[::2], results[1::2], strict=True):
        settings = default_settings(large, prompt, seed=seed)
        scores = compare(generate(large, settings), generate(variant, settings))
        assert (row.psnr_db, row.ssim, row.final_latent_error) == (
            scores.psnr_db,
            scores.ssim,
            scores.latent_error[-1],
        )
        assert (reference.psnr_db, reference.ssim, reference.final_latent_error) == (None, None, None)


def test_only_captions_of_the_world_are_read(large, results):
    clip = generate(large, default_settings(large, CAPTION, seed=5))
    assert results[0].caption == read_clip(clip.frames).agreement(parse_caption(CAPTION))
    assert set(results[1].caption) == {"shape", "colour", "motion", "texture", "background"}
    assert results[2].caption is None
    assert results[3].caption is None


@pytest.mark.parametrize(("frames", "size"), [(4, 16), (1, 64)], ids=["another-size", "one-frame"])
def test_clips_the_checker_cannot_read_have_no_reading(large, frames, size):
    spec = replace(large.spec, frames=frames, height=size, width=size)
    model = VideoModel(spec, large.pipeline, large.denoiser_name, large.device)
    (row,) = evaluate(model, [], [CAPTION])
    assert row.caption is None


def test_watchers_see_every_step_and_every_row(model):
    steps, rows = [], []
    results = evaluate(
        model, [get_recipe("dynamic-w8a8")], [OTHER], steps=3, on_step=steps.append, on_result=rows.append
    )
    assert [info.index for info in steps] == [0, 1, 2, 0, 1, 2]
    assert rows == results


def test_stopping_between_clips(model):
    def stop(_):
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        evaluate(model, [], [OTHER, OTHER], steps=1, on_result=stop)


def test_what_cannot_be_evaluated_is_refused_before_any_clip(model):
    rows = []
    with pytest.raises(QvdError, match="at least one prompt"):
        evaluate(model, [], [])
    with pytest.raises(CalibrationError, match="static grids"):
        evaluate(model, [get_recipe("minmax-w8a8")], [OTHER], on_result=rows.append)
    assert not rows


def test_a_recipe_that_changes_nothing_is_infinitely_close(model):
    _, row = evaluate(model, [Recipe("nothing", None, None)], [OTHER])
    assert (row.psnr_db, row.ssim, row.final_latent_error) == (math.inf, pytest.approx(1), 0)


def result(recipe: str, psnr_db: float | None, caption: dict[str, bool] | None = None, seconds=1.0) -> ClipResult:
    return ClipResult(recipe, "p", 0, psnr_db, None if psnr_db is None else 0.5, None, caption, seconds)


def test_summary_in_closed_form():
    read = [{"shape": True, "colour": False}, {"shape": True, "colour": True}]
    rows = summarize(
        [
            result(REFERENCE, None, read[0], seconds=2.0),
            result("w4", 10.0, read[0], seconds=3.0),
            result(REFERENCE, None, None, seconds=4.0),
            result("w4", 13.0, None, seconds=5.0),
            result("w4", math.inf, read[1], seconds=4.0),
        ]
    )
    assert [(row["recipe"], row["clips"]) for row in rows] == [(REFERENCE, 2), ("w4", 3)]
    reference, quantized = rows
    assert (reference["psnr_db"], reference["psnr_db_standard_error"]) == (None, None)
    assert reference["caption_accuracy"] == {"shape": 1.0, "colour": 0.0}
    assert reference["seconds_per_clip"] == 3.0
    # Identical clips have no finite PSNR and are left out of its mean.
    assert quantized["psnr_db"] == 11.5
    assert quantized["psnr_db_standard_error"] == pytest.approx(1.5)
    assert (quantized["ssim"], quantized["ssim_standard_error"]) == (0.5, 0.0)
    assert quantized["caption_accuracy"] == {"shape": 1.0, "colour": 0.5}
    assert quantized["seconds_per_clip"] == 4.0


def test_summary_of_one_clip_has_no_standard_error_and_no_readings():
    (row,) = summarize([result("w4", 10.0)])
    assert row["psnr_db"] == 10.0
    assert row["psnr_db_standard_error"] is None
    assert "caption_accuracy" not in row


def test_summary_of_nothing():
    assert summarize([]) == []


def test_two_recipes_of_one_name_are_refused(large):
    recipe = get_recipe("dynamic-w8a8")
    with pytest.raises(QvdError, match="dynamic-w8a8 occurs twice"):
        evaluate(large, [recipe, recipe], [CAPTION])
