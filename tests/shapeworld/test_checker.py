"""The checker against clips whose scene is known, clean and damaged, and against clips that show nothing."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from qvd_core.shapeworld.checker import ATTRIBUTES, Reading, caption_accuracy, read_clip
from qvd_core.shapeworld.scene import ALL_SCENES, MOTIONS, SIZE, Scene, render

CLIPS = 300


def drawn(scenes, seed):
    """Clips [N, F, H, W, 3] in [0, 1], a few at a time to bound memory."""
    generator = torch.Generator().manual_seed(seed)
    parts = [render(list(scenes[i : i + 10]), generator) for i in range(0, len(scenes), 10)]
    return torch.cat(parts).permute(0, 1, 3, 4, 2).numpy()


def blurred_and_noisy(clip, rng):
    noise = rng.normal(0, 0.03, clip.shape)
    return (ndimage.gaussian_filter(clip, (0, 1, 1, 0)) + noise).clip(0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def truth():
    """Seeded scenes from the whole world with their clips; read only."""
    order = torch.randperm(len(ALL_SCENES), generator=torch.Generator().manual_seed(11))[:CLIPS]
    scenes = [ALL_SCENES[i] for i in order]
    return scenes, drawn(scenes, 12)


def shares(clips, scenes):
    return caption_accuracy(clips, [scene.caption for scene in scenes])


def test_clean_clips_are_read_right(truth):
    scenes, clips = truth
    found = shares(clips, scenes)
    assert all(found[name] > 0.98 for name in ATTRIBUTES), found
    assert found["count"] == CLIPS


def test_blurred_noisy_clips_are_read_right(truth):
    scenes, clips = truth
    rng = np.random.default_rng(13)
    found = shares([blurred_and_noisy(clip, rng) for clip in clips], scenes)
    assert all(found[name] >= 0.95 for name in ATTRIBUTES), found


@pytest.mark.parametrize("gain", [0.9, 1.1])
def test_brightness_does_not_change_colours(truth, gain):
    scenes, clips = truth
    found = shares([(clip * gain).clip(0, 1) for clip in clips[:100]], scenes[:100])
    assert all(found[name] > 0.98 for name in ATTRIBUTES), found


def test_wobbly_outlines_keep_their_shape(truth):
    """Each frame is bent by its own smooth field of 1.5 px, as unsteady decoding does."""
    scenes, clips = truth
    rng = np.random.default_rng(14)
    found = shares([bent(clip, rng) for clip in clips[:60]], scenes[:60])
    assert found["shape"] >= 0.95, found
    assert found["motion"] >= 0.95, found


def bent(clip, rng):
    shift = ndimage.gaussian_filter(rng.normal(size=(2, *clip.shape[:3])), (0, 0, 5, 5))
    places = np.indices(clip.shape[:3]).astype(float)
    places[1:] += shift * (1.5 / shift.std())
    channels = [ndimage.map_coordinates(clip[..., k], places, order=1, mode="nearest") for k in range(3)]
    return np.stack(channels, -1)


def test_eight_bit_clips_read_as_their_float_originals(truth):
    _, clips = truth
    for clip in clips[:5]:
        assert read_clip((clip * 255).round().astype(np.uint8)) == read_clip(clip)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.94])
def test_a_blank_clip_shows_no_object(level):
    reading = read_clip(np.full((16, SIZE, SIZE, 3), level, np.float32))
    assert (reading.shape, reading.colour, reading.motion) == (None, None, None)
    assert reading.texture == "plain"


def test_noise_shows_no_object_or_motion():
    reading = read_clip(np.random.default_rng(0).random((16, SIZE, SIZE, 3)))
    assert (reading.shape, reading.colour, reading.motion) == (None, None, None)


def test_shuffled_pixels_show_no_shape_or_motion(truth):
    _, clips = truth
    order = np.random.default_rng(1).permutation(SIZE * SIZE)
    for clip in clips[:20]:
        reading = read_clip(clip.reshape(16, -1, 3)[:, order].reshape(clip.shape))
        assert (reading.shape, reading.motion) == (None, None)


def test_shuffled_frames_show_no_motion(truth):
    _, clips = truth
    rng = np.random.default_rng(2)
    assert all(read_clip(clip[rng.permutation(16)]).motion is None for clip in clips[:20])


def test_a_static_clip_has_no_motion(truth):
    scenes, clips = truth
    for clip, scene in zip(clips[:20], scenes, strict=False):
        reading = read_clip(clip[[8] * 16])
        assert reading.motion is None
        assert reading.shape == scene.shape


@pytest.mark.parametrize("motion", MOTIONS)
def test_time_reversed_clips_show_the_opposite_motion(motion):
    opposite = MOTIONS[MOTIONS.index(motion) ^ 1]  # the tuple lists them in opposite pairs
    clip = drawn([Scene("triangle", "green", motion, "striped", "pink")], 3)[0]
    assert read_clip(clip).motion == motion
    assert read_clip(clip[::-1]).motion == opposite


def test_stripes_turned_into_columns_are_no_texture_of_this_world():
    clip = drawn([Scene("circle", "blue", "growing", "striped", "white")], 4)[0]
    assert read_clip(clip.swapaxes(1, 2)).texture is None


def test_a_cyan_object_has_no_colour_of_this_world():
    clip = drawn([Scene("square", "red", "moving left", "plain", "black")], 5)[0]
    reading = read_clip(clip[..., [1, 0, 0]])  # red light moves to green and blue
    assert reading.colour is None
    assert reading.shape == "square"


def test_wrong_captions_are_not_credited(truth):
    """Each clip is judged by a caption that differs in every attribute."""
    scenes, clips = truth
    wrong = [next(other for other in reversed(ALL_SCENES) if differ(other, scene)) for scene in scenes[:30]]
    found = shares(clips[:30], wrong)
    assert all(found[name] == 0 for name in ATTRIBUTES), found


def differ(a, b):
    return all(getattr(a, name) != getattr(b, name) for name in ATTRIBUTES)


def test_agreement_is_per_attribute_and_none_never_agrees():
    scene = Scene("ring", "red", "growing", "plain", "teal")
    reading = Reading(shape="ring", colour="blue", motion=None, texture="plain", background=None)
    expected = {"shape": True, "colour": False, "motion": False, "texture": True, "background": False}
    assert reading.agreement(scene) == expected


GOOD = np.full((16, SIZE, SIZE, 3), 0.5, np.float32)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        pytest.param(GOOD[0], r"got \[64, 64, 3\]", id="one frame without its axis"),
        pytest.param(GOOD[:0], r"got \[0, 64, 64, 3\]", id="no frames"),
        pytest.param(GOOD.transpose(0, 3, 1, 2), r"got \[16, 3, 64, 64\]", id="channels first"),
        pytest.param(GOOD[:, :32], r"got \[16, 32, 64, 3\]", id="another size"),
        pytest.param(np.where(GOOD > 0, np.nan, GOOD), "NaN", id="NaN"),
        pytest.param(GOOD * 510, "255 to 255", id="float up to 255"),
        pytest.param(GOOD - 1, "clamp or rescale", id="in -1 to 1"),
        pytest.param(GOOD.astype(np.int64), "int64", id="wide integers"),
    ],
)
def test_bad_clips_are_refused_with_what_was_received(frames, message):
    with pytest.raises(ValueError, match=message):
        read_clip(frames)


def test_a_caption_of_another_world_is_named():
    with pytest.raises(ValueError, match="a cat on a sofa"):
        caption_accuracy([GOOD], ["a cat on a sofa"])


def test_clips_and_captions_must_pair_up():
    caption = ALL_SCENES[0].caption
    with pytest.raises(ValueError, match="2 clips, 1 captions"):
        caption_accuracy([GOOD, GOOD], [caption])
    with pytest.raises(ValueError, match="0 clips"):
        caption_accuracy([], [])
