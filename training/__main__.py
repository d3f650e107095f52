"""Train the embedded AnimateDiff model from nothing.

    torchrun --nproc-per-node 2 -m training --work runs/animatediff-mini

runs every stage on two CPU cores (or on each GPU it finds) and resumes where it was stopped. Name
stages to run only those; `autoencoder` needs nothing but `latents`, so it can run beside `images`.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from qvd_core.storage import replacing
from training.run import Workers

STAGES = ("latents", "autoencoder", "images", "clips", "export")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("stages", nargs="*", default=STAGES, metavar="stage", help=f"any of {', '.join(STAGES)}")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and logs")
    parser.add_argument("--out", type=Path, help="where `export` writes the pipeline (default: WORK/pipeline)")
    parser.add_argument("--autoencoder-images", type=int, default=76_000)
    parser.add_argument("--images", type=int, default=192_000)
    parser.add_argument("--clips", type=int, default=40_000)
    parser.add_argument("--autoencoder-batch", type=int, default=4, help="per process")
    parser.add_argument("--image-batch", type=int, default=48, help="per process")
    parser.add_argument("--clip-batch", type=int, default=4, help="per process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    unknown = set(arguments.stages) - set(STAGES)
    if unknown:
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; choose from {', '.join(STAGES)}")

    workers = Workers.start(arguments.device)
    arguments.work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        if stage in arguments.stages:
            _run(stage, arguments, workers)
            workers.wait()
    workers.finish()


def _run(stage: str, arguments: argparse.Namespace, workers: Workers) -> None:
    work, seed = arguments.work, arguments.seed
    if stage == "latents":
        from training.data import batch_generator, draw_images
        from training.latents import PatchBasis

        # Never twice: signs of principal components may differ elsewhere, and what is trained depends on them.
        if not workers.leads or (work / "basis.pt").exists():
            return
        pictures, _ = draw_images(2048, batch_generator(seed, 0, 0, torch.device("cpu")))
        basis = PatchBasis.fit(pictures)
        with replacing(work / "basis.pt") as scratch:
            torch.save(asdict(basis), scratch)
        error = (basis.decode(basis.encode(pictures)) - pictures).square().mean()
        print(f"latents: linear reconstruction {-10 * error.log10():.1f} dB")
    elif stage == "autoencoder":
        from training.autoencoder import train_autoencoder

        train_autoencoder(work, workers, arguments.autoencoder_images, arguments.autoencoder_batch, seed)
    elif stage == "images":
        from training.denoiser import train_images

        train_images(work, workers, arguments.images, arguments.image_batch, seed)
    elif stage == "clips":
        from training.denoiser import train_clips

        train_clips(work, workers, arguments.clips, arguments.clip_batch, seed)
    elif workers.leads:
        from training.export import export_pipeline

        export_pipeline(work, arguments.out or work / "pipeline")


if __name__ == "__main__":
    main()
