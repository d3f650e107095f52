"""Many prompts under many recipes: what each result holds, and results that are kept."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from qvd_core.errors import CalibrationError, Cancelled, QvdError
from qvd_core.evaluation import NETWORK_OF, NOISE_FLOOR, OTHER_SEEDS, REFERENCE, ClipResult, evaluate, unavailable
from qvd_core.metrics.fidelity import psnr
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
        assert row.measures["psnr_db"] == scores.psnr_db
        assert row.measures["ssim"] == scores.ssim
        assert row.measures["latent_error"] == scores.latent_error[-1]
        assert row.latent_error_by_step == scores.latent_error
        assert not {"psnr_db", "ssim", "latent_error"} & reference.measures.keys()


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
    with pytest.raises(CalibrationError, match="calibrated ranges"):
        evaluate(model, [get_recipe("minmax-w8a8")], [OTHER], on_result=rows.append)
    assert not rows


def test_a_recipe_that_changes_nothing_is_infinitely_close(model):
    _, row = evaluate(model, [Recipe("nothing", None, None)], [OTHER])
    assert row.measures["psnr_db"] == math.inf
    assert row.measures["ssim"] == pytest.approx(1)
    assert row.measures["latent_error"] == 0


def test_results_are_kept_and_not_made_again(large, tmp_path, results):
    recipes = [get_recipe("dynamic-w8a8")]
    first = evaluate(large, recipes, [CAPTION, OTHER], seed=5, cache=tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 4
    steps: list[object] = []
    again = evaluate(large, recipes, [CAPTION, OTHER], seed=5, cache=tmp_path, on_step=steps.append)
    assert not steps
    for made, kept in zip(first, again, strict=True):
        assert (kept.recipe, kept.number, kept.prompt, kept.seed) == (made.recipe, made.number, made.prompt, made.seed)
        assert kept.measures == made.measures
        assert kept.latent_error_by_step == made.latent_error_by_step
        assert kept.caption == made.caption


@pytest.mark.parametrize("change", ["seed", "steps", "recipe"])
def test_a_kept_result_serves_only_what_it_was_made_for(large, tmp_path, change):
    recipe = get_recipe("dynamic-w8a8")
    recipe = replace(recipe, name="x")
    evaluate(large, [recipe], [CAPTION], seed=5, steps=1, cache=tmp_path)
    if change == "recipe":
        recipe = replace(recipe, activations=replace(recipe.activations, bits=4))
    steps: list[object] = []
    seed, count = (6 if change == "seed" else 5), (2 if change == "steps" else 1)
    evaluate(large, [recipe], [CAPTION], seed=seed, steps=count, cache=tmp_path, on_step=steps.append)
    assert steps


@pytest.mark.parametrize("damage", [b"", b"not a zip", None], ids=["empty", "text", "truncated"])
def test_a_damaged_result_is_made_again(large, tmp_path, damage):
    (made,) = evaluate(large, [], [OTHER], cache=tmp_path)
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:-30] if damage is None else damage)
    assert ClipResult.load(path) is None
    (again,) = evaluate(large, [], [OTHER], cache=tmp_path)
    assert again.measures == made.measures
    assert ClipResult.load(path) is not None


def test_shares_of_the_work_make_up_the_whole(model, tmp_path):
    prompts, recipe = [OTHER, "a cat", "a dog"], get_recipe("dynamic-w8a8")
    parts = [evaluate(model, [recipe], prompts, share=(part, 2), cache=tmp_path) for part in (0, 1)]
    assert [[r.number for r in part] for part in parts] == [[0, 0, 2, 2], [1, 1]]
    steps: list[object] = []
    whole = evaluate(model, [recipe], prompts, cache=tmp_path, on_step=steps.append)
    assert not steps
    alone = evaluate(model, [recipe], prompts)
    assert [r.measures for r in whole] == [r.measures for r in alone]


def test_the_noise_floor_is_another_clip_of_the_same_caption(model):
    reference, floor = evaluate(model, [], [OTHER], seed=3, noise_floor=True)
    assert (floor.recipe, floor.number, floor.prompt) == (NOISE_FLOOR, 0, OTHER)
    assert floor.seed == reference.seed + OTHER_SEEDS
    other = generate(model, default_settings(model, OTHER, seed=floor.seed))
    mine = generate(model, default_settings(model, OTHER, seed=3))
    assert floor.measures["psnr_db"] == psnr(mine.frames, other.frames)


def test_networks_that_are_here_are_used_and_the_others_named(large, monkeypatch):
    missing = unavailable()
    clip = replace(large.spec, frames=9)
    model = VideoModel(clip, large.pipeline, large.denoiser_name, large.device)
    reference, floor = evaluate(model, [], [CAPTION], networks=True, noise_floor=True)
    for measure in NETWORK_OF:
        there = measure in floor.measures or measure in floor.features
        assert there is (measure not in missing), measure
    assert "lpips" not in reference.measures
    assert "temporal_flickering" in reference.measures
    if "i3d" not in missing:
        assert floor.features["i3d"].shape == (400,)
    if "inception" not in missing:
        assert floor.features["inception"].shape == (4, 2048)


def test_two_recipes_of_one_name_are_refused(large):
    recipe = get_recipe("dynamic-w8a8")
    with pytest.raises(QvdError, match="dynamic-w8a8 occurs twice"):
        evaluate(large, [recipe, recipe], [CAPTION])
