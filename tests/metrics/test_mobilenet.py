"""MobileNetV2 against the one of transformers, and by what it recognizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data

from qvd_core.metrics import mobilenet
from qvd_core.metrics.mobilenet import MobileNetV2, mobilenet_features
from qvd_core.metrics.networks import find
from tests.closeness import assert_close
from tests.metrics.synthetic import needs, waves

pytestmark = needs("MobileNetV2-IN1K")


def weights() -> dict[str, torch.Tensor]:
    return torch.load(find("MobileNetV2-IN1K"), map_location="cpu", weights_only=True)


def test_the_network_is_that_of_transformers():
    """Both list their parts in the same order under other names; the padding and epsilon are torchvision's."""
    from transformers import MobileNetV2Config, MobileNetV2Model

    config = MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, finegrained_output=True)
    theirs = MobileNetV2Model(config).eval()
    own = {name: tensor for name, tensor in weights().items() if not name.startswith("classifier.")}
    theirs.load_state_dict(dict(zip(theirs.state_dict(), own.values(), strict=True)))
    ours = MobileNetV2().eval()
    ours.load_state_dict(own)
    frames = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(ours(frames), theirs(frames).pooler_output, 1e-4, "features")


@pytest.mark.parametrize(
    ("picture", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {967})], ids=["cat", "espresso"]
)
def test_pictures_are_recognized(picture, classes):
    """Classes of ImageNet: tabby, tiger and Egyptian cat; espresso."""
    frame = getattr(data, picture)()[None].astype(np.float32) / 255
    state = weights()
    logits = mobilenet_features(frame) @ state["classifier.1.weight"].numpy().T + state["classifier.1.bias"].numpy()
    assert int(logits[0].argmax()) in classes


def test_many_frames_keep_their_order(monkeypatch):
    frames = waves(3)
    together = mobilenet_features(frames)
    assert together.shape == (3, 1280)
    assert together.dtype == np.float32
    assert together.min() >= 0
    monkeypatch.setattr(mobilenet, "_AT_ONCE", 2)
    assert_close(mobilenet_features(frames), together, 1e-4, "features")
