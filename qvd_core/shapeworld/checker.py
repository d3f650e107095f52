"""Read what a shape-world clip shows, by image analysis alone and without seeing its caption.

No network is involved, so the judge shares no weakness with the models it judges. In CIE Lab:

1. The borders give the background's hue; the object is what differs from it in a and b. Shadows,
   stripes and light change mostly L, so they drop out of this comparison by themselves.
2. The object's core pixels vote for a colour. Its outline, moved to a common centroid and area, is
   compared with the five outlines of `scene`; the straight-line trends of its place and size say
   which motion it makes.
3. The background away from the object is compared with the fifteen that `scene` can draw: by its
   mean colour, then by how strongly the 16 px cells alternate between rows or like a checkerboard.

An attribute that fits no word of this world is read as None, not as the nearest word.

Limits: one object, 64 px square clips, thresholds tuned on rendered clips under blur, noise, wobble
and noise in the latents. "plain" is the absence of cells, so it is what mild blotches are read as,
and a motion is only what a straight line through the frames shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import ndimage
from skimage.color import rgb2lab

from qvd_core.shapeworld import scene as world
from qvd_core.shapeworld.scene import CELL, SIZE, Scene, parse_caption

ATTRIBUTES = ("shape", "colour", "motion", "texture", "background")

# Distances are in Lab units. Object colours lie at least 59 from every background in (a, b).
OBJECT_CONTRAST = 25.0
HUE_TOLERANCE = 20.0  # degrees; no two object colours are closer than 22 (blue, purple)
LIGHT_TOLERANCE = 25.0  # in L
BACKGROUND_TOLERANCE = 20.0  # of the mean colour
PIXEL_TOLERANCE = 25.0  # of the median pixel

# Shares of what `scene` draws. Blur and noise only weaken cells, so their threshold lies below a half.
CELL_STRENGTH = 0.4
PLAIN_DEVIATION = 1.2  # a plain background varies less than this many times as much as stripes would
OUTLINE_OVERLAP = 0.75
LEAST_MOTION = 0.4
STRAIGHTNESS = 0.8  # correlation with time; shuffled frames hardly ever reach it
SMALLEST_OBJECT = 25  # px; the smallest object drawn, a shrunken triangle, covers 60

# What `render` draws on average from the first frame to the last: px moved, and log of the growth in radius.
FULL_TRAVEL = 26.0
FULL_GROWTH = float(np.log((14.5 + 6.75) / (14.5 - 6.75)))

CANONICAL = 40  # samples per side of the window in which outlines are compared
REACH = 1.05  # half that window, in units of the square root of the object's area


@dataclass(frozen=True)
class Reading:
    """What a clip shows; None where no word of the world fits."""

    shape: str | None
    colour: str | None
    motion: str | None
    texture: str | None
    background: str | None

    def agreement(self, scene: Scene) -> dict[str, bool]:
        """Whether each attribute was read as `scene` has it; an unread attribute never agrees."""
        return {name: getattr(self, name) == getattr(scene, name) for name in ATTRIBUTES}


def read_clip(frames: np.ndarray) -> Reading:
    """Read the five attributes of one clip, frames [F, 64, 64, 3] in [0, 1] or uint8."""
    lab = _lab(_checked(frames))
    matte, body = _find_object(lab)
    background, texture = _read_background(lab, body)
    return Reading(
        shape=_read_shape(matte, body),
        colour=_read_colour(lab, body),
        motion=_read_motion(body),
        texture=texture,
        background=background,
    )


def caption_accuracy(clips: Iterable[np.ndarray], captions: Iterable[str]) -> dict[str, float]:
    """Share of clips [F, 64, 64, 3] that show what their captions say, per attribute, and their "count"."""
    captions = list(captions)
    scenes: list[Scene] = []
    for caption in captions:
        scene = parse_caption(caption)
        if scene is None:
            raise ValueError(f"not a caption of the shape world: {caption!r}; see scene.ALL_SCENES")
        scenes.append(scene)
    clips = list(clips)
    if len(clips) != len(scenes) or not clips:
        raise ValueError(f"need a caption for every clip, got {len(clips)} clips, {len(scenes)} captions")
    verdicts = [read_clip(clip).agreement(scene) for clip, scene in zip(clips, scenes, strict=True)]
    shares = {name: float(np.mean([verdict[name] for verdict in verdicts])) for name in ATTRIBUTES}
    return shares | {"count": float(len(verdicts))}


def _checked(frames: np.ndarray) -> np.ndarray:
    """The clip as float32 in [0, 1], or a ValueError that says what is wrong with it."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[1:] != (SIZE, SIZE, 3) or len(frames) == 0:
        raise ValueError(f"a clip is [frames >= 1, {SIZE}, {SIZE}, 3], got {list(frames.shape)}")
    if frames.dtype == np.uint8:
        return frames.astype(np.float32) / 255
    if not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"a clip is float in [0, 1] or uint8, got {frames.dtype}")
    if not np.isfinite(frames).all():
        raise ValueError("the clip has NaN or infinite pixels")
    if frames.min() < -1e-3 or frames.max() > 1 + 1e-3:
        low, high = frames.min(), frames.max()
        raise ValueError(f"float clips lie in [0, 1], got {low:.3g} to {high:.3g}; clamp or rescale first")
    return frames.astype(np.float32)


def _lab(frames: np.ndarray) -> np.ndarray:
    """Lab [F, H, W, 3] of a slightly smoothed clip: noise in dark pixels would become large in a and b."""
    return rgb2lab(ndimage.gaussian_filter(frames, (0, 0.7, 0.7, 0)).clip(0, 1))


def _find_object(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Soft matte [F, H, W] in [0, 1] and body, bool [F, H, W]: each frame's largest connected piece."""
    ab = lab[..., 1:]
    border = np.ones((SIZE, SIZE), bool)
    border[5:-5, 5:-5] = False
    behind = np.median(ab[:, border].reshape(-1, 2), axis=0)
    contrast = np.linalg.norm(ab - behind, axis=-1)
    # The smallest objects cover 1.5 % of a frame, so the last percent of pixels is all object.
    strong = contrast > max(OBJECT_CONTRAST, 0.6 * np.quantile(contrast, 0.99))
    body = np.zeros(contrast.shape, bool)
    if strong.mean() < 0.002:
        return np.zeros(contrast.shape), body
    front = np.median(ab[strong], axis=0)
    matte = contrast / (contrast + np.linalg.norm(ab - front, axis=-1) + 1e-6)
    for i, mask in enumerate(matte > 0.5):
        labels, count = ndimage.label(mask)
        sizes = np.bincount(labels.ravel())[1:]
        # Scattered pixels are not an object: one piece must hold most of them.
        if count and sizes.max() >= max(SMALLEST_OBJECT, 0.6 * sizes.sum()):
            body[i] = labels == 1 + sizes.argmax()
    return matte, body


def _read_colour(lab: np.ndarray, body: np.ndarray) -> str | None:
    """The colour whose hue most inner pixels are nearest to; fading and light change L and chroma more."""
    core = ndimage.binary_erosion(body, np.ones((1, 3, 3)))
    pixels = lab[core if core.sum() > SMALLEST_OBJECT else body]
    if len(pixels) == 0:
        return None
    names = list(world.OBJECT_COLOURS)
    palette = rgb2lab(np.array([*world.OBJECT_COLOURS.values()]) / 255)  # [6, 3]
    turn = np.abs((_hue(pixels)[:, None] - _hue(palette) + 180) % 360 - 180)  # [P, 6] degrees
    votes = np.bincount(turn.argmin(1), minlength=len(names))
    best = votes.argmax()
    light, hue = np.median(np.abs(pixels[:, 0] - palette[best, 0])), np.median(turn[:, best])
    fits = votes[best] > 0.5 * len(pixels) and hue < HUE_TOLERANCE and light < LIGHT_TOLERANCE
    return names[best] if fits else None


def _hue(lab: np.ndarray) -> np.ndarray:
    """Hue angle in degrees, Lab [..., 3] to [...]."""
    return np.degrees(np.arctan2(lab[..., 2], lab[..., 1]))


def _read_motion(body: np.ndarray) -> str | None:
    """The one straight trend of centroid or size that is neither short, crooked nor rivalled by another."""
    areas = body.sum((1, 2))
    seen = np.flatnonzero(areas)
    if len(seen) < max(4, 0.6 * len(body)):
        return None
    axis = np.arange(SIZE)
    x = (body.sum(1) @ axis)[seen] / areas[seen]
    y = (body.sum(2) @ axis)[seen] / areas[seen]
    tracks = np.stack([x / FULL_TRAVEL, y / FULL_TRAVEL, np.log(areas[seen]) / 2 / FULL_GROWTH])

    time = seen / (len(body) - 1) - 0.5
    time = time - time.mean()
    centred = tracks - tracks.mean(1, keepdims=True)
    change = centred @ time / (time @ time)  # in full motions, [3]
    straightness = np.abs(change) * np.sqrt(time @ time) / (np.linalg.norm(centred, axis=1) + 1e-9)
    best = np.abs(change).argmax()
    others = np.delete(np.abs(change), best).max()
    if np.abs(change[best]) < max(LEAST_MOTION, 1.5 * others) or straightness[best] < STRAIGHTNESS:
        return None
    words = (("moving left", "moving right"), ("moving up", "moving down"), ("shrinking", "growing"))
    return words[best][int(change[best] > 0)]


def _read_shape(matte: np.ndarray, body: np.ndarray) -> str | None:
    """The outline of greatest mean overlap (soft IoU), by area, over the frames that show it whole."""
    seen = np.flatnonzero(body.any((1, 2)))
    if len(seen) == 0:
        return None
    # The matte's own soft edge, but nothing of other pieces.
    near = ndimage.binary_dilation(body[seen], np.ones((1, 3, 3)), iterations=2)
    soft = np.where(near, ((matte[seen] - 0.5) * 2 + 0.5).clip(0, 1), 0)
    names, outlines = _outline_templates()
    overlap = _iou(_canonical(soft), outlines)  # [seen, templates]
    touching = np.pad(np.zeros((SIZE - 2, SIZE - 2), bool), 1, constant_values=True)
    cut = (body[seen] & touching).any((1, 2))
    if cut.all():
        return None
    weight = soft.sum((1, 2)) * ~cut
    mean = weight @ overlap / weight.sum()
    return names[mean.argmax()] if mean.max() > OUTLINE_OVERLAP else None


def _canonical(mattes: np.ndarray) -> np.ndarray:
    """Mattes [N, H, W] with centroid and area brought to a common frame, [N, CANONICAL ** 2]."""
    axis_y, axis_x = np.arange(mattes.shape[1]), np.arange(mattes.shape[2])
    area = mattes.sum((1, 2))
    y, x = mattes.sum(2) @ axis_y / area, mattes.sum(1) @ axis_x / area
    u = np.linspace(-REACH, REACH, CANONICAL) * np.sqrt(area)[:, None]
    shape = (len(mattes), CANONICAL, CANONICAL)
    index = np.broadcast_to(np.arange(len(mattes))[:, None, None], shape)
    rows = np.broadcast_to((y[:, None] + u)[:, :, None], shape)
    columns = np.broadcast_to((x[:, None] + u)[:, None, :], shape)
    sampled = ndimage.map_coordinates(mattes, (index, rows, columns), order=1, prefilter=False)
    return sampled.reshape(len(mattes), -1)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Soft intersection over union of every row of `a` [N, P] with every row of `b` [M, P], [N, M]."""
    shared = a @ b.T
    return shared / ((a * a).sum(1)[:, None] + (b * b).sum(1) - shared)


def _read_background(lab: np.ndarray, body: np.ndarray) -> tuple[str | None, str | None]:
    """Background colour and texture of what is never near the object, as (background, texture)."""
    # 5 px clears the anti-aliased edge and the shadow, which lies 2 px right of and 3 px below the object.
    visible = ~ndimage.binary_dilation(body, np.ones((1, 3, 3)), iterations=5)
    count = visible.sum(0)
    known = count > 0
    if known.mean() < 0.1:
        return None, None
    still = (lab * visible[..., None]).sum(0) / np.maximum(count, 1)[..., None]
    weights = _fit(still[known], _cell_waves()[known])
    prototypes = _background_prototypes()
    colour = min(prototypes, key=lambda name: _distance_to(prototypes[name].means, weights[0]).min())
    ideal = prototypes[colour]

    # Noise can average to gray, so single pixels must be of this colour too.
    mean_error = _distance_to(ideal.means, weights[0]).min()
    pixel_error = np.median(_distance_to(lab[visible][::7, None], ideal.tones).min(1))
    fits = mean_error < BACKGROUND_TOLERANCE and pixel_error < PIXEL_TOLERANCE

    strength = _alternation(weights) / ideal.alternation
    best = strength.argmax()
    if strength[best] > CELL_STRENGTH:
        texture = ("striped", "checkered", None)[best]  # columns instead of rows are not in this world
    else:
        gradient = _cell_waves()[..., :2] @ weights[:2, 0]
        rest = (lab[..., 0] - gradient)[visible].std()
        texture = "plain" if rest < PLAIN_DEVIATION * ideal.deviation else None
    return (colour if fits else None), texture


def _distance_to(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distance between Lab colours [..., 3] that broadcast against each other."""
    return np.linalg.norm(a - b, axis=-1)


def _fit(values: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """Least-squares weights [10, 3] of the `_cell_waves` [P, 10] in Lab values [P, 3]."""
    ridge = 1e-4 * len(waves) * np.eye(waves.shape[1])  # the known pixels may not tell all waves apart
    return np.linalg.solve(waves.T @ waves + ridge, waves.T @ values)


def _alternation(weights: np.ndarray) -> np.ndarray:
    """Amplitudes in L [3] of alternating rows, of a checkerboard and of alternating columns."""
    return np.array([np.linalg.norm(weights[part, 0]) for part in (slice(2, 4), slice(4, 8), slice(8, 10))])


@cache
def _cell_waves() -> np.ndarray:
    """Constant, gradient, waves of period 32 px along y (2), both axes (4) and x (2), [SIZE, SIZE, 10].

    Sine and cosine together fit cells in any position, so a shifted pattern counts as much as an aligned one.
    """
    angle = 2 * np.pi * (np.arange(SIZE) + 0.5) / (2 * CELL)
    wave = np.stack([np.sin(angle), np.cos(angle)])
    one, flat = np.ones((SIZE, SIZE)), np.ones(SIZE)
    down = [np.outer(w, flat) for w in wave]
    both = [np.outer(v, w) for v in wave for w in wave]
    slope = np.outer(np.linspace(-1, 1, SIZE), flat)
    return np.stack([one, slope, *down, *both, *(w.T for w in down)], axis=-1)


@dataclass(frozen=True)
class _Background:
    """How one background colour measures when `scene` draws it without any accident of light."""

    means: np.ndarray  # Lab [3, 3], for each texture
    tones: np.ndarray  # Lab [2, 3], of the two kinds of cells
    alternation: np.ndarray  # [3], of rows, checkers and columns at full strength
    deviation: float  # standard deviation in L of its cells


@cache
def _background_prototypes() -> dict[str, _Background]:
    """What each background colour should measure, by name."""
    waves = _cell_waves().reshape(SIZE * SIZE, -1)
    prototypes = {}
    for name in world.BACKGROUND_COLOURS:
        pictures = [_draw_background(name, texture) for texture in world.TEXTURES]
        plain, striped, checkered = (_fit(picture.reshape(-1, 3), waves) for picture in pictures)
        rows, checkers = _alternation(striped)[0], _alternation(checkered)[1]
        prototypes[name] = _Background(
            means=np.stack([plain[0], striped[0], checkered[0]]),
            tones=np.stack([pictures[1][CELL // 2, 0], pictures[1][CELL + CELL // 2, 0]]),
            alternation=np.array([rows, checkers, rows]),
            deviation=float(pictures[1][..., 0].std()),
        )
    return prototypes


def _draw_background(colour: str, texture: str) -> np.ndarray:
    """What `scene` draws without a gradient of light, Lab [SIZE, SIZE, 3]."""
    axis = torch.arange(SIZE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    scene = Scene("circle", "red", "growing", texture, colour)
    cpu = torch.device("cpu")
    picture = world._background([scene], x, y, lambda low, high: torch.zeros(1), cpu)[0]
    return rgb2lab(picture.permute(1, 2, 0).numpy())


@cache
def _outline_templates() -> tuple[list[str], np.ndarray]:
    """Shape names [M] and their outlines at the tilts `render` draws, [M, CANONICAL ** 2]."""
    axis = torch.linspace(-40, 40, 161)
    dy, dx = torch.meshgrid(axis, axis, indexing="ij")
    names, drawn = [], []
    for name, outline in world._OUTLINES.items():
        for tilt in (-0.12, -0.06, 0.0, 0.06, 0.12):  # radians
            cos, sin = float(np.cos(tilt)), float(np.sin(tilt))
            distance = outline(cos * dx + sin * dy, cos * dy - sin * dx, torch.tensor(24.0))
            names.append(name)
            drawn.append(torch.sigmoid(-distance / 1.0).numpy())
    return names, _canonical(np.stack(drawn))
