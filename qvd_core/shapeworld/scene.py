"""The procedural world the embedded models are trained on: its words, its captions, its clips.

A clip shows one shape of one colour making one motion over one textured background, and its
caption says exactly that: "a red circle moving left on a striped gray background". Everything a
caption does not fix (where, how large, how fast, how lit) is drawn from a seeded generator. Clips
are rendered from signed distance functions in torch, so they come out on whatever device asks.

Objects are 22-40 px wide in a 64 px frame: a VAE that reduces eightfold then gives a shape three
to five latent cells, which is what a small network needs to draw its outline.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qvd_core.shapeworld.words import BACKGROUND_COLOURS, MOTIONS, OBJECT_COLOURS, SHAPES, TEXTURES

FRAMES = 16
SIZE = 64
CELL = 16  # px of a stripe or checker: two latent cells, as one would be the finest wave latents can hold


@dataclass(frozen=True)
class Scene:
    """What a caption says, one word (or two) for each of five attributes."""

    shape: str
    colour: str
    motion: str
    texture: str
    background: str

    @property
    def caption(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape} {self.motion} on a {self.texture} {self.background} background"


ALL_SCENES: tuple[Scene, ...] = tuple(
    Scene(*words) for words in itertools.product(SHAPES, OBJECT_COLOURS, MOTIONS, TEXTURES, BACKGROUND_COLOURS)
)
"""Every caption of the world: 5 shapes x 6 colours x 6 motions x 3 textures x 5 backgrounds = 2700."""

HELD_OUT_SCENES: tuple[Scene, ...] = ALL_SCENES[7::13]
"""208 captions that training never shows; 13 is coprime to every factor, so all words occur."""

TRAINING_SCENES: tuple[Scene, ...] = tuple(s for s in ALL_SCENES if s not in set(HELD_OUT_SCENES))


def held_out_captions(count: int) -> list[str]:
    """`count` held-out captions, spread evenly over the world and the same on every machine; beyond 208 they recur."""
    order = torch.randperm(len(HELD_OUT_SCENES), generator=torch.Generator().manual_seed(0)).tolist()
    return [HELD_OUT_SCENES[i].caption for i in itertools.islice(itertools.cycle(order), count)]


def parse_caption(caption: str) -> Scene | None:
    """The scene a caption describes, or None when it is not a caption of this world."""
    return _SCENE_BY_CAPTION.get(" ".join(caption.lower().split()).rstrip("."))


_SCENE_BY_CAPTION = {scene.caption: scene for scene in ALL_SCENES}


def render(
    scenes: list[Scene],
    generator: torch.Generator,
    frames: int = FRAMES,
    at: Tensor | None = None,
) -> Tensor:
    """Draw one clip per scene, with position, size, speed and light drawn from `generator`.

    Args:
        scenes: N scenes.
        generator: source of everything the captions leave open; its device is where clips are drawn.
        frames: frames per clip, evenly spaced over the motion.
        at: optional moments in [0, 1], shape [N, frames], instead of evenly spaced ones.

    Returns:
        Float clips [N, frames, 3, SIZE, SIZE] in [0, 1].
    """
    device = generator.device
    n = len(scenes)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator, device=device)

    if at is None:
        at = torch.linspace(0, 1, frames, device=device).expand(n, frames)

    # Where the object is and how large, [N, frames]. Coordinates in pixels, y downwards.
    moves = torch.tensor([[s.motion == m for m in MOTIONS] for s in scenes], device=device).float()
    sign_x, sign_y = moves[:, 1] - moves[:, 0], moves[:, 3] - moves[:, 2]
    sign_radius = moves[:, 4] - moves[:, 5]
    from_middle = at - 0.5
    travel = uniform(22, 30)[:, None] * from_middle
    radius = uniform(13, 16)[:, None] + sign_radius[:, None] * uniform(12, 15)[:, None] * from_middle
    jitter_x, jitter_y = uniform(-5, 5)[:, None], uniform(-5, 5)[:, None]
    centre_x = SIZE / 2 + jitter_x + sign_x[:, None] * travel
    centre_y = SIZE / 2 + jitter_y + sign_y[:, None] * travel

    grid = torch.arange(SIZE, device=device) + 0.5
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    background = _background(scenes, x, y, uniform, device)[:, None]

    tilt = uniform(-0.12, 0.12)
    distance = _distance(scenes, x, y, centre_x, centre_y, radius, tilt)
    shadow = _distance(scenes, x, y, centre_x + 2, centre_y + 3, radius, tilt)
    background = background * (1 - 0.35 * torch.sigmoid(-shadow / 1.5)[:, :, None])

    # Lit from the upper left: brighter there, darker below.
    light = -(x - centre_x[..., None, None]) - (y - centre_y[..., None, None])
    light = 1 + 0.14 * (light / (1.5 * radius[..., None, None])).clamp(-1, 1)
    colour = _palette(OBJECT_COLOURS, [s.colour for s in scenes], device)[:, None, :, None, None]
    inside = torch.sigmoid(-distance / 0.45)[:, :, None]  # about one pixel of anti-aliasing
    return torch.lerp(background, colour * light[:, :, None], inside).clamp(0, 1)


def _palette(colours: dict[str, tuple[int, int, int]], names: list[str], device: torch.device) -> Tensor:
    return torch.tensor([colours[name] for name in names], device=device) / 255


def _background(
    scenes: list[Scene], x: Tensor, y: Tensor, uniform: Callable[[float, float], Tensor], device: torch.device
) -> Tensor:
    """Backgrounds [N, 3, SIZE, SIZE]: a soft vertical gradient, or two tones in 16 px cells."""
    colour = _palette(BACKGROUND_COLOURS, [s.background for s in scenes], device)
    gray = colour.mean(1, keepdim=True)
    second = torch.where(gray > 0.35, 0.74 * colour, 0.78 * colour + 0.22)
    rows, columns = (y // CELL)[None], (x // CELL)[None]
    striped = torch.tensor([s.texture == "striped" for s in scenes], device=device)[:, None, None]
    checkered = torch.tensor([s.texture == "checkered" for s in scenes], device=device)[:, None, None]
    tone = striped * (rows % 2) + checkered * ((rows + columns) % 2)
    slope = uniform(-0.08, 0.08)[:, None, None] * (y / SIZE - 0.5)[None] * 2
    flat = torch.lerp(colour[:, :, None, None], second[:, :, None, None], tone[:, None])
    return flat * (1 + slope[:, None])


def _distance(
    scenes: list[Scene],
    x: Tensor,
    y: Tensor,
    centre_x: Tensor,
    centre_y: Tensor,
    radius: Tensor,
    tilt: Tensor,
) -> Tensor:
    """Signed distance in pixels to each scene's outline, [N, frames, SIZE, SIZE], negative inside."""
    dx = x - centre_x[..., None, None]
    dy = y - centre_y[..., None, None]
    cos, sin = torch.cos(tilt)[:, None, None, None], torch.sin(tilt)[:, None, None, None]
    dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
    radius = radius[..., None, None]
    return torch.stack([_OUTLINES[s.shape](dx[i], dy[i], radius[i]) for i, s in enumerate(scenes)])


def _box(dx: Tensor, dy: Tensor, half_width: Tensor, half_height: Tensor) -> Tensor:
    qx, qy = dx.abs() - half_width, dy.abs() - half_height
    return torch.hypot(qx.clamp(min=0), qy.clamp(min=0)) + torch.maximum(qx, qy).clamp(max=0)


def _triangle(dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Upward triangle as the intersection of three half-planes; wider than equilateral to read at 3 cells."""
    slanted = (dx.abs() * 2.0 - (dy + 1.05 * radius)) / 5**0.5
    return torch.maximum(slanted, dy - 0.95 * radius)


_OUTLINES = {
    "circle": lambda dx, dy, r: torch.hypot(dx, dy) - r,
    "square": lambda dx, dy, r: _box(dx, dy, 0.9 * r, 0.9 * r),
    "triangle": _triangle,
    "ring": lambda dx, dy, r: (torch.hypot(dx, dy) - 0.8 * r).abs() - 0.32 * r,
    "cross": lambda dx, dy, r: torch.minimum(_box(dx, dy, 1.1 * r, 0.38 * r), _box(dx, dy, 0.38 * r, 1.1 * r)),
}
