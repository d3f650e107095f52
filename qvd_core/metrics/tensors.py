"""Frames as the pretrained networks take them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_tensor(frames: np.ndarray, device: str) -> Tensor:
    """Frames [..., H, W, 3] in [0, 1] as a float32 tensor [..., 3, H, W] on `device`, still in [0, 1]."""
    return torch.from_numpy(np.asarray(frames, dtype=np.float32)).to(device).movedim(-1, -3).contiguous()
