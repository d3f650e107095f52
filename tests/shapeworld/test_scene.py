"""The shape world itself: reproducible clips, captions that mean one scene, a fair held-out set."""

import pytest
import torch

from qvd_core.shapeworld.scene import (
    ALL_SCENES,
    BACKGROUND_COLOURS,
    FRAMES,
    HELD_OUT_SCENES,
    MOTIONS,
    OBJECT_COLOURS,
    SHAPES,
    SIZE,
    TEXTURES,
    TRAINING_SCENES,
    Scene,
    held_out_captions,
    parse_caption,
    render,
)

WORDS = {
    "shape": set(SHAPES),
    "colour": set(OBJECT_COLOURS),
    "motion": set(MOTIONS),
    "texture": set(TEXTURES),
    "background": set(BACKGROUND_COLOURS),
}


def drawn(scenes, seed, **options):
    return render(list(scenes), torch.Generator().manual_seed(seed), **options)


def test_same_seed_draws_the_same_clip_and_another_seed_another():
    scenes = ALL_SCENES[::300]
    assert torch.equal(drawn(scenes, 5), drawn(scenes, 5))
    assert not torch.equal(drawn(scenes, 5), drawn(scenes, 6))


def test_clips_have_the_documented_shape_and_range():
    clips = drawn(ALL_SCENES[::271], 0)
    assert clips.shape == (10, FRAMES, 3, SIZE, SIZE)
    assert clips.dtype == torch.float32
    assert clips.min() >= 0
    assert clips.max() <= 1


def test_moments_choose_the_frames_of_the_same_clip():
    scenes = ALL_SCENES[::900]
    last_first = torch.tensor([[1.0, 0.0]]).expand(len(scenes), 2)
    whole, picked = drawn(scenes, 3), drawn(scenes, 3, frames=2, at=last_first)
    torch.testing.assert_close(picked, whole[:, [-1, 0]])


def test_held_out_and_training_captions_share_nothing_and_cover_the_world():
    held_out = {scene.caption for scene in HELD_OUT_SCENES}
    training = {scene.caption for scene in TRAINING_SCENES}
    assert held_out.isdisjoint(training)
    assert len(held_out) + len(training) == len(ALL_SCENES) == 2700


@pytest.mark.parametrize("attribute", WORDS)
@pytest.mark.parametrize("scenes", [HELD_OUT_SCENES, TRAINING_SCENES], ids=["held-out", "training"])
def test_every_word_occurs(scenes, attribute):
    assert {getattr(scene, attribute) for scene in scenes} == WORDS[attribute]


def test_held_out_captions_are_distinct_held_out_and_stable():
    captions = held_out_captions(20)
    assert len(set(captions)) == 20
    assert set(captions) <= {scene.caption for scene in HELD_OUT_SCENES}
    assert captions[:5] == held_out_captions(5)


def test_every_caption_parses_back_to_its_scene():
    assert all(parse_caption(scene.caption) == scene for scene in ALL_SCENES)


def test_captions_may_differ_in_case_spaces_and_full_stop():
    scene = Scene("ring", "orange", "moving up", "plain", "teal")
    assert scene.caption == "an orange ring moving up on a plain teal background"
    assert parse_caption("  An ORANGE ring  moving up on a plain teal background. ") == scene


@pytest.mark.parametrize("caption", ["", "a red circle", "a red star moving left on a plain gray background"])
def test_other_sentences_are_no_scene(caption):
    assert parse_caption(caption) is None


def test_the_object_stays_mostly_in_the_frame():
    """A moving object never shows less than 80 % of its largest visible area, whatever its shape."""
    scenes = [Scene(shape, "red", motion, "plain", "white") for shape in SHAPES for motion in MOTIONS[:4]]
    clips = drawn(scenes * 5, 1)
    # Red on white: only the object has far more red than green.
    areas = (clips[:, :, 0] - clips[:, :, 1] > 0.35).sum((2, 3))
    share = areas.min(1).values / areas.max(1).values
    assert share.min() > 0.8, f"an object lost {1 - share.min():.0%} of its area at the frame's edge"
