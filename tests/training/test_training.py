"""The training program at toy budgets: exact latents, whole words, and resuming that changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from qvd_core.shapeworld.scene import ALL_SCENES, Scene
from training import denoiser
from training.data import batch_generator, draw_clips, draw_images
from training.denoiser import Denoiser, build_scheduler, build_unet, train_clips, train_images
from training.export import export_pipeline
from training.latents import PatchBasis
from training.run import Workers, warmup_stable_decay
from training.text import build_text_encoder, build_tokenizer

ALONE = Workers(rank=0, count=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return draw_images(256, batch_generator(0, 0, 0, torch.device("cpu")))[0]


def test_latents_have_unit_variance_and_decode_to_the_best_linear_approximation(pictures: torch.Tensor) -> None:
    basis = PatchBasis.fit(pictures)
    latents = basis.encode(pictures)
    assert latents.shape == (256, 16, 8, 8)
    assert latents.square().mean().sqrt() == pytest.approx(1, abs=1e-3)
    # Independent reference: singular values of the centred patches beyond the 16th.
    patches = torch.nn.functional.unfold(pictures * 2 - 1, 8, stride=8).transpose(1, 2).flatten(0, 1).double()
    singular = torch.linalg.svdvals(patches - patches.mean(0))
    lost = singular[16:].square().sum() / patches.numel()
    error = (basis.decode(latents) - pictures).mul(2).square().mean()
    assert error == pytest.approx(lost.item(), rel=1e-3)


def test_every_caption_is_one_token_per_word() -> None:
    tokenizer = build_tokenizer()
    for scene in ALL_SCENES[::31]:
        assert len(tokenizer(scene.caption).input_ids) == len(scene.caption.split()) + 2, scene.caption


def test_a_batch_depends_on_its_place_alone() -> None:
    once, scenes = draw_clips(2, batch_generator(3, 7, 1, torch.device("cpu")))
    again, _ = draw_clips(2, batch_generator(3, 7, 1, torch.device("cpu")))
    other, _ = draw_clips(2, batch_generator(3, 7, 0, torch.device("cpu")))
    assert once.shape == (2, 16, 3, 64, 64)
    assert len(scenes) == 2
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_the_plateau_does_not_know_how_long_it_will_be() -> None:
    assert warmup_stable_decay(0, 1000) == pytest.approx(1 / 200)
    assert warmup_stable_decay(500, 1000) == warmup_stable_decay(500, 5000) == 1
    assert warmup_stable_decay(999, 1000) == pytest.approx(0.02)


def _interrupted_after(batches: int) -> Callable[[int, torch.Generator], tuple[torch.Tensor, list[Scene]]]:
    left = [batches]

    def draw(count: int, generator: torch.Generator) -> tuple[torch.Tensor, list[Scene]]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return draw_images(count, generator)

    return draw


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_uninterrupted_one_does_and_exports(
    tmp_path: Path, pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    for folder in (straight, resumed):
        folder.mkdir()
        torch.save(asdict(PatchBasis.fit(pictures)), folder / "basis.pt")
    monkeypatch.setattr(denoiser, "SAVE_EVERY", 2)
    train_images(straight, ALONE, images=8, batch=2, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(denoiser, "draw_images", _interrupted_after(3))
        with pytest.raises(KeyboardInterrupt):
            train_images(resumed, ALONE, images=8, batch=2, seed=0)
    train_images(resumed, ALONE, images=8, batch=2, seed=0)
    a, b = (torch.load(f / "images.pt", weights_only=True) for f in (straight, resumed))
    assert a["step"] == b["step"] == 4
    # Not bit for bit: convolution sums depend on memory alignment, and Adam's first steps amplify that.
    torch.manual_seed(0)
    initial = Denoiser(build_unet(), build_text_encoder(build_tokenizer()), build_scheduler()).state_dict()
    moved = sum((a["module"][name] - initial[name]).square().sum() for name in initial).sqrt()
    apart = sum((a["module"][name] - b["module"][name]).square().sum() for name in initial).sqrt()
    assert apart < 0.2 * moved, (apart, moved)

    train_clips(straight, ALONE, clips=1, batch=1, seed=0)
    assert torch.load(straight / "clips.pt", weights_only=True)["step"] == 1
    from training.autoencoder import train_autoencoder

    train_autoencoder(straight, ALONE, images=4, batch=2, seed=0)
    export_pipeline(straight, straight / "pipeline")
    from qvd_core.models.loader import load

    model = load(str(straight / "pipeline"))
    assert type(model.denoiser).__name__ == "UNetMotionModel"
    assert len(model.sites) == 288
