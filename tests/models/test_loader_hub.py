"""Loading from a hub, over a real connection to one on this machine.

The hub's address is read when huggingface_hub is imported, so a child process does the loading; it goes
through all sources once, and each test looks at one of its answers.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler

from qvd_core.models.loader import VideoModel
from qvd_core.sampling import generate
from tests.closeness import assert_same
from tests.loopback_hub import LoopbackHub, serve

PROJECT = Path(__file__).parents[2]

# Loads every [source, revision] given as JSON and prints what came of it.
CHILD = """
import json, sys, time
from pathlib import Path
from qvd_core.errors import QvdError
from qvd_core.models.catalog import CATALOG, ModelSpec
from qvd_core.models.loader import load

time.sleep = lambda seconds: None  # huggingface_hub waits before it tries again
CATALOG["adapted"] = ModelSpec("adapted", "", "tiny/spatial", "v1.0", "tiny/adapter", 4, 16, 16, 2, 7.5, 8, ())
for number, (source, revision) in enumerate(json.loads(sys.argv[1])):
    started = time.perf_counter()
    try:
        model = load(source, revision=revision, device="cpu")
        answer = {"fingerprint": model.fingerprint, "name": model.spec.name, "revision": model.spec.revision}
        if source == "adapted":
            import numpy as np
            from qvd_core.sampling import default_settings, generate
            clip = generate(model, default_settings(model, "a red circle moving left on a striped gray background"))
            np.save(sys.argv[2], clip.frames)
    except QvdError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print("ANSWER", json.dumps(answer | {"seconds": time.perf_counter() - started}), flush=True)
"""

SOURCES = {
    "by-id": ("tiny/video", None),
    "by-branch": ("tiny/video", "main"),
    "by-tag": ("tiny/video", "v1.0"),
    "by-commit": ("tiny/video", LoopbackHub.commit("tiny/video")),
    "unknown-revision": ("tiny/video", "v9"),
    "unknown-repository": ("tiny/nothing", None),
    "gated": ("tiny/gated", None),
    "cut-off": ("tiny/broken", None),
    "no-pipeline": ("tiny/adapter", None),
    "adapted": ("adapted", None),
}


def load_in_child(
    address: str, home: Path, sources: list[tuple[str, str | None]], frames: Path
) -> list[dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"PYTHONPATH": str(PROJECT), "no_proxy": "127.0.0.1"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(sources), str(frames)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return [
        json.loads(line.removeprefix("ANSWER ")) for line in child.stdout.splitlines() if line.startswith("ANSWER ")
    ]


@pytest.fixture(scope="module")
def frames_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frames") / "adapted.npy"


@pytest.fixture(scope="module")
def hub(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """The tiny model as a whole, and in two halves as Stable Diffusion and AnimateDiff publish theirs."""
    folder = tmp_path_factory.mktemp("hub")
    spatial = Path(shutil.copytree(tiny_folder, folder / "spatial"))
    adapter = spatial / "motion_adapter"
    adapter.rename(folder / "adapter")
    values = json.loads((spatial / "model_index.json").read_text())
    del values["motion_adapter"]
    values["_class_name"] = "StableDiffusionPipeline"
    values["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (spatial / "model_index.json").write_text(json.dumps(values))
    # What such repositories hold besides, and nobody needs.
    weights = spatial / "unet" / "diffusion_pytorch_model.safetensors"
    for surplus in (
        "v1-5-pruned-emaonly.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "safety_checker/model.fp16.safetensors",
        "pipeline.py",
        "README.md",
    ):
        (spatial / surplus).parent.mkdir(exist_ok=True)
        shutil.copy(weights, spatial / surplus)
    repositories = {
        "tiny/video": tiny_folder,
        "tiny/gated": tiny_folder,
        "tiny/broken": tiny_folder,
        "tiny/spatial": spatial,
        "tiny/adapter": folder / "adapter",
    }
    with serve(LoopbackHub(repositories, gated=frozenset({"tiny/gated"}), broken=frozenset({"tiny/broken"}))) as hub:
        yield hub


@pytest.fixture(scope="module")
def answers(hub: LoopbackHub, frames_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    given = load_in_child(hub.address, tmp_path_factory.mktemp("home"), list(SOURCES.values()), frames_file)
    return dict(zip(SOURCES, given, strict=True))


@pytest.mark.parametrize("way", ["by-id", "by-branch", "by-tag", "by-commit"])
def test_a_model_loads_by_id_and_revision(answers, model, way):
    source, revision = SOURCES[way]
    assert answers[way].get("fingerprint") == model.fingerprint, answers[way]
    assert (answers[way]["name"], answers[way]["revision"]) == (source, revision)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("unknown-revision", "tiny/video has no revision 'v9'."),
        ("unknown-repository", "The hub has no model tiny/nothing, or it is private: check the spelling."),
        ("gated", "tiny/gated is gated: accept its terms on the hub and log in with `hf auth login`."),
    ],
)
def test_refusals_say_what_to_do(answers, case, message):
    assert answers[case]["error"] == "ModelError"
    assert answers[case]["message"] == message


def test_a_download_cut_off_is_no_model(answers):
    assert answers["cut-off"]["error"] == "ModelError", answers["cut-off"]
    assert answers["cut-off"]["message"].startswith("Cannot download tiny/broken: ")


def test_a_repository_that_is_no_pipeline(answers):
    assert "is not a diffusers pipeline" in answers["no-pipeline"]["message"]


def test_a_spatial_pipeline_and_a_motion_adapter_become_one_model(answers, model, reference, frames_file):
    assert answers["adapted"].get("fingerprint") == model.fingerprint, answers["adapted"]
    schedule = {"beta_schedule": "linear", "clip_sample": False, "timestep_spacing": "linspace", "steps_offset": 1}
    scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config, **schedule)
    pipeline = type(model.pipeline)(**{**model.pipeline.components, "scheduler": scheduler})
    adapted = VideoModel(model.spec, pipeline, model.denoiser_name, model.device)
    assert_same(np.load(frames_file), generate(adapted, reference.settings).frames, "frames")


def test_only_what_is_needed_is_downloaded(answers, hub):
    wanted = hub.downloads("tiny/spatial")
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"} <= wanted
    surplus = {
        path for path in wanted if "fp16" in path or "ema" in path or not path.endswith((".json", ".safetensors"))
    }
    assert not surplus
    assert not hub.downloads("tiny/gated")


def test_an_unreachable_hub_is_reported_quickly(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        (answer,) = load_in_child(address, tmp_path, [("tiny/video", None)], tmp_path / "none")
    assert answer["error"] == "ModelError"
    assert answer["message"].startswith("Cannot download tiny/video: ")
    assert answer["message"].endswith("Check the connection, or give a local folder.")
    assert answer["seconds"] < 20
