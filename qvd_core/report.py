"""A comparison on disk: both clips for eyes, and all numbers with what produced them."""

from __future__ import annotations

import json
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qvd_core import __version__
from qvd_core.models.loader import VideoModel
from qvd_core.sampling import Clip
from qvd_core.scores import Scores
from qvd_core.storage import storage_errors
from qvd_core.variant import Variant
from qvd_core.video import write_video

FILES = ("reference.mp4", "quantized.mp4", "scores.json")


def comparison_report(variant: Variant, reference: Clip, quantized: Clip, scores: Scores) -> dict[str, Any]:
    """Scores with recipe, settings, model, versions and measured seconds, JSON-ready."""
    return {
        **scores.to_dict(),
        "seconds": {"reference": round(reference.seconds, 2), "quantized": round(quantized.seconds, 2)},
        "arithmetic": variant.arithmetic,
        "recipe": variant.recipe.to_dict(),
        "settings": asdict(reference.settings),
        "model": describe(variant.model),
        "versions": versions(),
    }


def write_comparison(folder: Path, variant: Variant, reference: Clip, quantized: Clip, scores: Scores) -> list[Path]:
    """Write `FILES` into `folder`; they appear together, after all of them could be written.

    Raises:
        StorageError: they cannot be written; what was in `folder` before is still there.
    """
    fps = variant.model.spec.fps
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as name:
            scratch = Path(name)
            write_video(reference.frames, scratch / FILES[0], fps)
            write_video(quantized.frames, scratch / FILES[1], fps)
            report = comparison_report(variant, reference, quantized, scores)
            (scratch / FILES[2]).write_text(json.dumps(report, indent=2) + "\n")
            return [(scratch / file).replace(folder / file) for file in FILES]


def describe(model: VideoModel) -> dict[str, str]:
    """Which model, by name and by its weights, and where it ran."""
    return {"name": model.spec.name, "fingerprint": model.fingerprint, "device": str(model.device)}


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    import diffusers
    import torch
    import transformers

    return {
        "qvd_core": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
