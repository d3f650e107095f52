"""How a clip moves, judged without a reference: smoothness, flickering and constancy of content.

The protocols are VBench's (Huang et al. 2024). Where it uses networks whose weights cannot be had freely, another
takes their place and the name says which; such numbers do not compare with VBench's tables. Frames are compared
as floats, not rounded to 8 bits first. All three reward clips that stand still: read them beside a measure of motion.
"""

from __future__ import annotations

import numpy as np

from qvd_core.metrics.mobilenet import mobilenet_features
from qvd_core.metrics.networks import MetricUnavailable
from qvd_core.metrics.rife import middle_frame
from qvd_core.metrics.tensors import to_tensor

MOTION_SMOOTHNESS = "motion smoothness (RIFE-HDv3)"
TEMPORAL_FLICKERING = "temporal flickering"
FRAME_CONSISTENCY = "frame consistency (MobileNetV2)"


def motion_smoothness(frames: np.ndarray, device: str = "cpu") -> float:
    """1 - mean |dropped frame - its interpolation from both neighbours|, every second frame being dropped.

    VBench's motion smoothness with RIFE in the place of AMT. A last frame without a right neighbour is not judged.

    Args:
        frames: [F, H, W, 3] in [0, 1], at least 3.
        device: a torch device.

    Returns:
        At most 1, which is motion just as an interpolator expects it.

    Raises:
        MetricUnavailable: the weights are not here, or there are too few frames.
    """
    _need(3, frames)
    # One at a time, so that long clips of large frames fit.
    errors = []
    for number in range(1, len(frames) - 1, 2):
        first, dropped, last = to_tensor(frames[number - 1 : number + 2], device)
        predicted = middle_frame(first[None], last[None])[0]
        errors.append(float((predicted - dropped).abs().mean()))
    return 1 - float(np.mean(errors))


def temporal_flickering(frames: np.ndarray) -> float:
    """1 - mean |difference of neighbouring frames|: at most 1, which is a still.

    VBench measures it only on prompts that ask for a static scene; elsewhere motion lowers it as well.

    Args:
        frames: [F, H, W, 3] in [0, 1], at least 2.

    Raises:
        MetricUnavailable: there are too few frames.
    """
    _need(2, frames)
    return 1 - float(np.abs(np.diff(frames.astype(np.float64), axis=0)).mean())


def frame_consistency(frames: np.ndarray, device: str = "cpu") -> float:
    """Mean cosine between the features of each frame and those of the one before it and of the first.

    VBench's subject consistency with MobileNetV2 in the place of DINO.

    Args:
        frames: [F, H, W, 3] in [0, 1], at least 2.
        device: a torch device.

    Returns:
        0 to 1, which is content that never changes.

    Raises:
        MetricUnavailable: the weights are not here, or there are too few frames.
    """
    _need(2, frames)
    features = mobilenet_features(frames, device).astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    to_previous = (features[1:] * features[:-1]).sum(axis=1)
    to_first = features[1:] @ features[0]
    return float((to_previous + to_first).mean() / 2)


def _need(count: int, frames: np.ndarray) -> None:
    if len(frames) < count:
        raise MetricUnavailable(f"This measure needs at least {count} frames; the clip has {len(frames)}.")
