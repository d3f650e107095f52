"""The frame halfway between two: RIFE's intermediate flow network (Huang et al. 2022), version HDv3.

Three blocks refine two flows, from the middle frame back to the first and on to the last, and a mask that blends
the two warped frames. Each block looks both ways in time and averages, so the order of the two does not matter.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvd_core.metrics.networks import find

_CHANNELS = 90
_SCALES = (4, 2, 1)  # each block works on frames shrunk this much
_MULTIPLE = 32  # of height and width that the coarsest block needs


def middle_frame(first: Tensor, last: Tensor) -> Tensor:
    """Interpolate halfway.

    Args:
        first, last: [N, 3, H, W] in [0, 1], on one device.

    Returns:
        [N, 3, H, W] in [0, 1].

    Raises:
        MetricUnavailable: the weights are not here.
    """
    height, width = first.shape[2:]
    margin = (0, -width % _MULTIPLE, 0, -height % _MULTIPLE)
    network = _network(str(first.device))
    with torch.inference_mode():
        return network(F.pad(first, margin), F.pad(last, margin))[..., :height, :width]


class IFNet(nn.Module):
    """Two frames [N, 3, H, W] in [0, 1], sides divisible by 32, to the frame between them.

    Flows are [N, 4, H, W] in pixels: x and y into the first frame, x and y into the last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.block0, self.block1, self.block2 = _Block(), _Block(), _Block()

    def forward(self, first: Tensor, last: Tensor) -> Tensor:
        flow = torch.zeros_like(first[:, :1]).repeat(1, 4, 1, 1)
        mask = torch.zeros_like(first[:, :1])
        to_first, to_last = first, last
        for block, scale in zip((self.block0, self.block1, self.block2), _SCALES, strict=True):
            forth = block(torch.cat([to_first, to_last, mask], dim=1), flow, scale)
            back = block(torch.cat([to_last, to_first, -mask], dim=1), _reversed(flow), scale)
            flow = flow + (forth[0] + _reversed(back[0])) / 2
            mask = mask + (forth[1] - back[1]) / 2
            to_first, to_last = warp(first, flow[:, :2]), warp(last, flow[:, 2:])
        return torch.lerp(to_last, to_first, mask.sigmoid())


class _Block(nn.Module):
    """A change of flow [N, 4, H, W] and of the mask's logits [N, 1, H, W], seen at one scale.

    The names of its parts are those in the file of weights.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = _CHANNELS
        self.conv0 = nn.Sequential(_convolution(11, channels // 2, 2), _convolution(channels // 2, channels, 2))
        self.convblock0, self.convblock1, self.convblock2, self.convblock3 = (
            nn.Sequential(_convolution(channels, channels), _convolution(channels, channels)) for _ in range(4)
        )
        self.conv1 = _upsampling(channels, 4)
        self.conv2 = _upsampling(channels, 1)

    def forward(self, frames: Tensor, flow: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        features = self.conv0(torch.cat([_resized(frames, 1 / scale), _resized(flow, 1 / scale) / scale], dim=1))
        for residual in (self.convblock0, self.convblock1, self.convblock2, self.convblock3):
            features = features + residual(features)
        return _resized(self.conv1(features), scale) * scale, _resized(self.conv2(features), scale)


def warp(frames: Tensor, flow: Tensor) -> Tensor:
    """Fetch each pixel from where `flow` [N, 2, H, W] points, in pixels right and down; edges extend outwards."""
    height, width = frames.shape[2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    # grid_sample counts from -1 at the first pixel's centre to 1 at the last one's.
    x = (columns + flow[:, 0]) * (2 / (width - 1)) - 1
    y = (rows + flow[:, 1]) * (2 / (height - 1)) - 1
    return F.grid_sample(frames, torch.stack([x, y], dim=-1), padding_mode="border", align_corners=True)


def _reversed(flow: Tensor) -> Tensor:
    return torch.cat([flow[:, 2:], flow[:, :2]], dim=1)


def _resized(x: Tensor, factor: float) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, stride, 1), nn.PReLU(channels_out))


def _upsampling(channels_in: int, channels_out: int) -> nn.Sequential:
    between = channels_in // 2
    return nn.Sequential(
        nn.ConvTranspose2d(channels_in, between, 4, 2, 1),
        nn.PReLU(between),
        nn.ConvTranspose2d(between, channels_out, 4, 2, 1),
    )


@functools.cache
def _network(device: str) -> IFNet:
    state = torch.load(find("RIFE-HDv3"), map_location="cpu", weights_only=True)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    network = IFNet()
    # block_tea is the teacher of its training, which has no part in the result.
    network.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("block_tea.")})
    return network.eval().to(device)
