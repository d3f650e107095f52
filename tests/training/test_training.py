"""The training program at toy budgets: exact latents, whole words, and resuming that changes nothing."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from qvd_core.shapeworld.scene import ALL_SCENES, Scene
from training import denoiser
from training.data import batch_generator, draw_clips, draw_images
from training.denoiser import Denoiser, build_scheduler, build_unet, draw_timesteps, train_clips, train_images
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


@pytest.mark.parametrize("name", sorted(p.stem for p in Path(denoiser.__file__).parent.glob("[a-z]*.py")))
def test_every_part_of_training_can_be_imported(name: str) -> None:
    importlib.import_module(f"training.{name}")


def test_every_caption_is_one_token_per_word() -> None:
    tokenizer = build_tokenizer()
    for scene in ALL_SCENES[::31]:
        assert len(tokenizer(scene.caption).input_ids) == len(scene.caption.split()) + 2, scene.caption


@pytest.mark.slow
def test_every_process_builds_the_same_tokenizer() -> None:
    """Word hashes differ from process to process, and the trainer once broke ties by them."""
    program = "from training.text import build_tokenizer; print(sorted(build_tokenizer().get_vocab().items()))"
    outputs = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in range(3)
    }
    assert len(outputs) == 1


def test_late_frames_show_where_a_motion_leads() -> None:
    """What the image stage learns words from: over all moments, "left" and "right" would look alike."""
    generator = batch_generator(0, 0, 0, torch.device("cpu"))
    for earliest, apart in ((0.5, True), (0.0, False)):
        pictures, scenes = draw_images(600, generator, earliest=earliest)
        # Objects are saturated; no background but pink and teal is, and those two are dropped.
        saturation = (pictures.amax(1) - pictures.amin(1)).mean(1)  # [N, x]
        centre = (saturation * torch.arange(64)).sum(1) / saturation.sum(1)
        mean = {}
        for word in ("moving left", "moving right"):
            chosen = [s.motion == word and s.background not in ("pink", "teal") for s in scenes]
            mean[word] = float(centre[torch.tensor(chosen)].mean())
        assert (mean["moving right"] - mean["moving left"] > 6) is apart, (earliest, mean)


def test_timesteps_lean_towards_noise() -> None:
    timesteps = draw_timesteps(100_000, torch.Generator().manual_seed(0), lean=True)
    assert timesteps.min() >= 0
    assert timesteps.max() == 999
    # A density of 2t on [0, 1]: mean 2/3, a quarter of all below the middle.
    assert timesteps.float().mean() == pytest.approx(2000 / 3, rel=0.01)
    assert (timesteps < 500).float().mean() == pytest.approx(0.25, abs=0.01)
    assert draw_timesteps(100_000, torch.Generator().manual_seed(0), lean=False).float().mean() == pytest.approx(
        500, rel=0.01
    )


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


def _interrupted_after(batches: int) -> Callable[..., tuple[torch.Tensor, list[Scene]]]:
    left = [batches]

    def draw(count: int, generator: torch.Generator, earliest: float) -> tuple[torch.Tensor, list[Scene]]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return draw_images(count, generator, earliest)

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
