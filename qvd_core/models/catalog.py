"""The models known by name: complete specs, readable in one screen. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qvd_core.errors import ModelError

ASSETS = Path(__file__).resolve().parents[2] / "assets"


@dataclass(frozen=True)
class ModelSpec:
    """Where a model comes from and how it is meant to be sampled.

    Attributes:
        name: what users type.
        title: one line for a menu.
        source: a diffusers pipeline: a folder, or a hub id ("owner/name").
        revision: branch, tag or commit on the hub; None for folders.
        motion_adapter: hub id of an AnimateDiff motion adapter to insert, if the source is a 2-D pipeline.
        frames, height, width: default clip, in frames and pixels.
        steps, guidance_scale: default sampling.
        fps: frames per second at which clips are shown.
        example_prompts: prompts that show the model at its best.
    """

    name: str
    title: str
    source: str
    revision: str | None
    motion_adapter: str | None
    frames: int
    height: int
    width: int
    steps: int
    guidance_scale: float
    fps: int
    example_prompts: tuple[str, ...]

    @property
    def embedded(self) -> bool:
        """Whether the model ships with the project."""
        return Path(self.source).is_relative_to(ASSETS)


CATALOG: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="animatediff-mini",
            title="AnimateDiff mini",
            source=str(ASSETS / "models" / "animatediff-mini"),
            revision=None,
            motion_adapter=None,
            frames=16,
            height=64,
            width=64,
            steps=25,
            guidance_scale=1.5,
            fps=8,
            example_prompts=(
                "a red circle moving left on a striped gray background",
                "a yellow square growing on a plain teal background",
                "a blue ring moving up on a checkered white background",
                "an orange triangle moving right on a plain black background",
                "a green cross shrinking on a striped pink background",
                "a purple circle moving down on a checkered gray background",
            ),
        ),
        ModelSpec(
            name="animatediff-sd15",
            title="AnimateDiff v1.5-3, SD 1.5",
            source="stable-diffusion-v1-5/stable-diffusion-v1-5",
            revision="main",
            motion_adapter="guoyww/animatediff-motion-adapter-v1-5-3",
            frames=16,
            height=512,
            width=512,
            steps=25,
            guidance_scale=7.5,
            fps=8,
            example_prompts=(
                "a corgi running along a beach at sunset, film grain",
                "a paper boat drifting down a rainy street, close-up",
                "time lapse of clouds over a mountain lake",
            ),
        ),
    )
}


def get_spec(name: str) -> ModelSpec:
    """The spec of a catalog model.

    Raises:
        ModelError: there is none of that name; the message lists those there are.
    """
    if name not in CATALOG:
        raise ModelError(f"Unknown model {name!r}; choose from {', '.join(CATALOG)}.")
    return CATALOG[name]
