"""Raw inputs of every layer of the tiny model, from a run of their own: what the views are checked against."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from analysis.drawing import Drawing
from qvd_core.calibration.statistics import Statistics
from qvd_core.models.loader import VideoModel


@dataclass(frozen=True)
class RawInputs:
    """Everything layers were given while the clips behind `statistics` were sampled.

    Attributes:
        rows: by site, for every step fp32 [N, channels].
        framed: by site, for every step fp32 [frames, N, channels]; of sites whose input has frames.
    """

    rows: dict[str, list[np.ndarray]]
    framed: dict[str, list[np.ndarray]]


@pytest.fixture(scope="session")
def raw(model: VideoModel, statistics: Statistics) -> RawInputs:
    import torch

    from qvd_core.sampling import default_settings, sample
    from qvd_core.variant import share_structure

    seen: dict[str, dict[int, list[torch.Tensor]]] = defaultdict(lambda: defaultdict(list))
    step = [0]
    watched = share_structure(model.denoiser)
    for site in model.sites:

        def keep(_: Any, args: Any, kwargs: Any, name: str = site.name) -> None:
            seen[name][step[0]].append((args[0] if args else kwargs["input"]).clone())

        watched.get_submodule(site.name).register_forward_pre_hook(keep, with_kwargs=True)
    for number, prompt in enumerate(statistics.run.prompts):
        step[0] = 0
        settings = default_settings(model, prompt, seed=statistics.run.seed + number)
        sample(model, watched, settings, lambda info: step.__setitem__(0, info.index + 1))

    frames = statistics.run.frames
    rows: dict[str, list[np.ndarray]] = {}
    framed: dict[str, list[np.ndarray]] = {}
    for site in model.sites:
        inputs = [torch.cat(seen[site.name][s]) for s in range(statistics.run.steps)]
        if site.kind != "linear":
            inputs = [x.movedim(1, -1) for x in inputs]
        rows[site.name] = [x.flatten(0, -2).numpy() for x in inputs]
        if site.role.startswith("temporal_") and site.role != "temporal_features":  # [positions, frames, channels]
            framed[site.name] = [x.movedim(1, 0).flatten(1, -2).numpy() for x in inputs]
        elif site.sees_frames:  # [samples x frames, ..., channels]
            by_frame = [x.unflatten(0, (-1, frames)).movedim(1, 0) for x in inputs]
            framed[site.name] = [x.flatten(1, -2).numpy() for x in by_frame]
    return RawInputs(rows, framed)


@pytest.fixture(scope="session")
def drawings(model: VideoModel) -> dict[str, Drawing]:
    """One drawing of every kind, by its name in `tables.DRAWINGS`."""
    from tests.analysis.tables import DRAWINGS

    return {name: draw(model) for name, draw in DRAWINGS.items()}
