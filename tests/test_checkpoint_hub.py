"""Checkpoints by hub id, down and up, over a real connection to a hub on this machine, in a child process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qvd_core.checkpoint import save
from tests.loopback_hub import TOKEN, LoopbackHub, serve

# Loads the hub's checkpoints on top of the local model, and by diffusers, and prints what came of it.
CHILD = """
import json, sys, time
import torch
from diffusers import UNetMotionModel
import qvd_core.diffusers_quantizer
from qvd_core.checkpoint import load_quantized
from qvd_core.errors import QvdError
from qvd_core.layers.structure import stored_tensors
from qvd_core.models.loader import load

time.sleep = lambda seconds: None
model = load(sys.argv[1], device="cpu")
here = stored_tensors(load_quantized(sys.argv[2], model).denoiser)

def same(denoiser):
    found = stored_tensors(denoiser)
    return found.keys() == here.keys() and all(torch.equal(found[name], here[name]) for name in here)

def attempt(get):
    try:
        return same(get())
    except QvdError as error:
        return f"{type(error).__name__}: {error}"

def pushed():
    UNetMotionModel.from_pretrained(sys.argv[2]).push_to_hub("tiny/pushed", token=sys.argv[3])
    return UNetMotionModel.from_pretrained("tiny/pushed")

print("ANSWER", json.dumps({
    "by-id": attempt(lambda: load_quantized("tiny/quantized", model).denoiser),
    "by-tag": attempt(lambda: load_quantized("tiny/quantized", model, revision="v1.0").denoiser),
    "diffusers": attempt(lambda: UNetMotionModel.from_pretrained("tiny/quantized")),
    "unknown": attempt(lambda: load_quantized("tiny/nothing", model).denoiser),
    "gated": attempt(lambda: load_quantized("tiny/gated", model).denoiser),
    "plain": attempt(lambda: load_quantized("tiny/plain", model).denoiser),
    "pushed": attempt(pushed),
    "pushed-on-top": attempt(lambda: load_quantized("tiny/pushed", model).denoiser),
}))
"""


@pytest.fixture(scope="module")
def answers(tiny_folder, named, tmp_path_factory):
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("hub") / "quantized"
    save(named("qvd-w4a8"), folder)
    (folder / "README.md").write_text("a card")
    shutil.copy(folder / "diffusion_pytorch_model.safetensors", folder / "other.bin")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    repositories = {"tiny/quantized": folder, "tiny/gated": folder, "tiny/plain": tiny_folder / "unet"}
    created = tmp_path_factory.mktemp("created")
    with serve(LoopbackHub(repositories, new=created, gated=frozenset({"tiny/gated"}))) as hub:
        environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "no_proxy": "127.0.0.1"}
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(tiny_folder), str(folder), TOKEN],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert child.returncode == 0, child.stderr[-3000:]
        found = [line.removeprefix("ANSWER ") for line in child.stdout.splitlines() if line.startswith("ANSWER ")]
        return json.loads(found[0]), hub.downloads("tiny/quantized"), {path.name for path in created.glob("pushed/*")}


@pytest.mark.parametrize("way", ["by-id", "by-tag", "diffusers"])
def test_a_checkpoint_comes_from_the_hub(answers, way):
    assert answers[0][way] is True


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("unknown", "ModelError: The hub has no model tiny/nothing"),
        ("gated", "ModelError: tiny/gated is gated: accept its terms"),
        ("plain", "is no checkpoint of qvd_core but a model in full precision"),
    ],
)
def test_what_is_no_checkpoint_is_refused(answers, case, reason):
    assert reason in str(answers[0][case])


def test_only_its_two_files_are_downloaded(answers):
    assert answers[1] <= {"config.json", "diffusion_pytorch_model.safetensors"}


@pytest.mark.parametrize("way", ["pushed", "pushed-on-top"])
def test_what_diffusers_pushes_to_the_hub_comes_back(answers, way):
    assert answers[0][way] is True
    assert answers[2] == {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}
