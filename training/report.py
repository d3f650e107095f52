"""What training did to the model, as measured, for its card.

    python -m training.report --out assets/models/animatediff-mini

draws the contact sheet and prints, for the model and for an untrained twin (same architecture, random
weights, seed 0), the moments of the temporal features and the mean channel coverage at each role. The
checker's scores come from `python -m qvd_core evaluate --clips 200`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from diffusers import UNetMotionModel

from analysis.site_map import site_overview
from analysis.temporal import moments
from qvd_core.calibration.calibrate import calibrate, calibration_prompts
from qvd_core.calibration.temporal_features import temporal_features
from qvd_core.models.loader import VideoModel, load
from qvd_core.sampling import default_settings, generate
from qvd_core.shapeworld.scene import held_out_captions
from qvd_core.video import to_uint8


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="animatediff-mini")
    parser.add_argument("--out", type=Path, required=True, help="folder for contact_sheet.png and phenomena.json")
    arguments = parser.parse_args()
    model = load(arguments.model)
    iio.imwrite(arguments.out / "contact_sheet.png", contact_sheet(model, held_out_captions(16)))
    report = {"trained": phenomena(model), "untrained twin": phenomena(untrained_twin(model))}
    text = json.dumps(report, indent=2)
    (arguments.out / "phenomena.json").write_text(text + "\n")
    print(text)


def contact_sheet(model: VideoModel, captions: list[str]) -> np.ndarray:
    """Eight frames of a clip per caption, two captions a row, uint8."""
    strips = []
    for seed, caption in enumerate(captions):
        frames = to_uint8(generate(model, default_settings(model, caption, seed=seed)).frames)
        strips.append(np.concatenate(list(frames[:: len(frames) // 8]), axis=1))
    gap = np.full((strips[0].shape[0], 8, 3), 255, np.uint8)
    rows = [np.concatenate([a, gap, b], axis=1) for a, b in zip(strips[::2], strips[1::2], strict=True)]
    return np.concatenate(rows)


def phenomena(model: VideoModel) -> dict[str, Any]:
    """Moments of the temporal features over the default sampler, and mean coverage by role over two clips."""
    shape = moments(temporal_features(model, model.spec.steps).values.numpy())
    statistics = calibrate(model, calibration_prompts(model, 2))
    coverage: dict[str, list[float]] = {}
    overview = site_overview(statistics, [site.name for site in model.sites])
    for site, row in zip(model.sites, overview, strict=True):
        coverage.setdefault(site.role, []).append(row.mean)
    return {
        "temporal_features": {name: round(value, 3) for name, value in vars(shape).items()},
        "mean_coverage": {role: round(float(np.mean(values)), 3) for role, values in sorted(coverage.items())},
    }


def untrained_twin(model: VideoModel) -> VideoModel:
    """The same pipeline around a randomly initialized denoiser of the same architecture."""
    torch.manual_seed(0)
    denoiser = UNetMotionModel.from_config(model.denoiser.config).eval().requires_grad_(False)
    pipeline = type(model.pipeline)(**{**model.pipeline.components, model.denoiser_name: denoiser})
    pipeline.set_progress_bar_config(disable=True)
    return VideoModel(model.spec, pipeline, model.denoiser_name, model.device)


if __name__ == "__main__":
    main()
