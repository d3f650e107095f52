"""Inception-v3's view of a frame: the features of FID, with the network FID was defined on.

TensorFlow's Inception of 2015-12-05, 2048 pooled features, prepared as pytorch-fid does. It sees frames one by
one, so a frame FID says nothing about motion.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from qvd_core.metrics.networks import find
from qvd_core.metrics.tensors import to_tensor

FRAME_FID = "frame FID (InceptionV3-2015)"
FRAME_KID = "frame KID (InceptionV3-2015)"

_SIDE = 299
_AT_ONCE = 16


def inception_features(frames: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Pooled features of each frame, resized to 299x299 bilinearly and without antialiasing, in [-1, 1].

    Args:
        frames: [N, H, W, 3] in [0, 1], of one clip or of several.
        device: a torch device.

    Returns:
        float32 [N, 2048].

    Raises:
        MetricUnavailable: the weights are not here.
    """
    network = _network(device)
    features = []
    with torch.inference_mode():
        for start in range(0, len(frames), _AT_ONCE):
            batch = to_tensor(frames[start : start + _AT_ONCE], device)
            batch = F.interpolate(batch, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
            features.append(network(2 * batch - 1).cpu().numpy())
    return np.concatenate(features)


@functools.cache
def _network(device: str) -> Any:
    # TorchScript: the file brings its own graph, which torch runs; no Python of the package is involved.
    return torch.jit.load(str(find("InceptionV3-2015")), map_location=device).eval()
