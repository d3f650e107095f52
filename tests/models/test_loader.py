"""Loading: whole or refused, with the reason; no random weights, no pickles, no code from a model folder."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qvd_core.errors import GenerationError, ModelError, OutOfMemory
from qvd_core.models import loader
from qvd_core.models.loader import VideoModel, load
from qvd_core.sampling import default_settings, generate
from tests.closeness import assert_same_clip

WEIGHTS = "diffusion_pytorch_model.safetensors"


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_a_loaded_model_is_ready_and_frozen(tiny_folder):
    model = load(str(tiny_folder), device="cpu")
    assert (model.spec.name, model.spec.source) == ("tiny", str(tiny_folder))
    assert str(model.device).startswith("cpu (as asked; ")
    assert type(model.denoiser).__name__ == "UNetMotionModel"
    for component in (model.denoiser, model.pipeline.vae, model.pipeline.text_encoder):
        assert not component.training
        assert not any(p.requires_grad for p in component.parameters())
        assert {p.dtype for p in component.parameters()} == {torch.float32}


def test_loading_warns_of_nothing_when_there_is_nothing_to_warn_of(tiny_folder):
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("diffusers.models.modeling_utils")
    logger.addHandler(handler)
    try:
        load(str(tiny_folder), device="cpu")
        logger.warning("Something else.")
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == ["Something else."]


def test_every_weight_comes_from_the_files(tiny_folder, model):
    """Both halves of the joined network, tensor by tensor."""
    stored = load_file(tiny_folder / "unet" / WEIGHTS) | load_file(tiny_folder / "motion_adapter" / WEIGHTS)
    loaded = model.denoiser.state_dict()
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], stored[name].float()) for name in stored)


def test_ways_to_name_a_folder(tiny_folder, monkeypatch, model):
    monkeypatch.chdir(tiny_folder.parent)
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    for name in ("./tiny", "tiny", "~/tiny"):
        loaded = load(name, device="cpu")
        assert loaded.spec.source == str(tiny_folder)
        assert loaded.fingerprint == model.fingerprint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("animatediff", r"Unknown model 'animatediff': neither a catalog name \(animatediff-mini, "),
        ("a/b/c", "Unknown model 'a/b/c'"),
        ("/", "is not a diffusers pipeline"),
        ("/nowhere/at/all", "There is no folder /nowhere/at/all"),
        ("./nowhere", "There is no folder .*nowhere"),
        ("~/nowhere", "There is no folder .*nowhere"),
        ("x" * 5000, "Unknown model"),
        ("nul\0byte", "Unknown model"),
        ("~nobody-of-that-name/model", "neither an existing folder nor a hub id"),
        ("owner/na me!", "'owner/na me!' is neither an existing folder nor a hub id: Repo id must"),
        ("-owner/name", "'-owner/name' is neither"),
    ],
    ids=lambda value: value[:20].encode("unicode_escape").decode() if isinstance(value, str) else None,
)
def test_names_that_lead_nowhere(source, message):
    with pytest.raises(ModelError, match=message):
        load(source, device="cpu")


def test_devices():
    with pytest.raises(ModelError, match="Unknown device 'tpu'; choose auto, cpu or cuda"):
        load("animatediff-mini", device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="finds no CUDA device; use --device cpu"):
            load("animatediff-mini", device="cuda")


def remove_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def cut(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def flip_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[:64] = bytes(255 - b for b in data[:64])
    path.write_bytes(data)


def only_pickle(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    (folder / "unet" / WEIGHTS).unlink()
    torch.save(tensors, folder / "unet" / "diffusion_pytorch_model.bin")


def index(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "model_index.json", change)


def tensors(component: str, change: Callable[[dict[str, torch.Tensor]], object], file: str = WEIGHTS):
    return lambda folder: edit_tensors(folder / component / file, change)


def poison(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda values: values[name].view(-1).__setitem__(3, value)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty-folder": (empty, r"it has no model_index.json \(found: nothing\)"),
    "no-index": (remove_index, r"no model_index.json \(found: motion_adapter, scheduler, text_encoder"),
    "index-cut": (lambda f: cut(f / "model_index.json"), "model_index.json is damaged"),
    "index-is-a-list": (lambda f: (f / "model_index.json").write_text("[1, 2]"), "model_index.json is damaged"),
    "index-is-binary": (lambda f: (f / "model_index.json").write_bytes(b"\xff\xfe\x00"), "is damaged"),
    "no-class": (index(lambda i: i.pop("_class_name")), "damaged: KeyError"),
    "config-cut": (lambda f: cut(f / "unet" / "config.json"), "unet does not fit UNet2DConditionModel"),
    "scheduler-config-cut": (lambda f: cut(f / "scheduler" / "scheduler_config.json"), "not a complete Animate"),
    "weights-cut": (lambda f: cut(f / "unet" / WEIGHTS), "unet"),
    "weights-cut-at-end": (lambda f: cut(f / "unet" / WEIGHTS, 0.999), "unet"),
    "weights-empty": (lambda f: cut(f / "unet" / WEIGHTS, 0), "unet"),
    "header-flipped": (lambda f: flip_header(f / "vae" / WEIGHTS), "vae"),
    "text-encoder-cut": (lambda f: cut(f / "text_encoder" / "model.safetensors"), "text_encoder.*damaged or cut short"),
    "no-weights": (lambda f: (f / "unet" / WEIGHTS).unlink(), r"unet: the weights are missing .no .safetensors file"),
    "only-pickle": (only_pickle, "Pickled .bin files are not read"),
    **{
        f"no-{part}-folder": (lambda f, part=part: shutil.rmtree(f / part), f"lists '{part}', but there is no such")
        for part in ("unet", "motion_adapter", "vae", "text_encoder", "tokenizer", "scheduler")
    },
    "no-unet-at-all": (index(lambda i: i.pop("unet")), "neither a unet nor a transformer"),
    "no-vae-at-all": (index(lambda i: i.pop("vae")), "not a complete AnimateDiffPipeline"),
    "no-vocabulary": (
        lambda f: (f / "tokenizer" / "tokenizer.json").unlink(),
        r"tokenizer: the vocabulary is missing .neither tokenizer.json nor vocab.json, merges.txt",
    ),
    "vocabulary-cut": (lambda f: cut(f / "tokenizer" / "tokenizer.json"), "not a complete AnimateDiffPipeline"),
    "missing-unet-tensor": (
        tensors("unet", lambda t: t.pop("conv_in.weight")),
        "1 weights .* among them conv_in.weight",
    ),
    "missing-adapter-tensor": (
        tensors("motion_adapter", lambda t: t.pop("mid_block.motion_modules.0.proj_out.weight")),
        "1 weights of MotionAdapter .* mid_block.motion_modules.0.proj_out.weight. They would be random",
    ),
    "missing-text-tensor": (
        tensors("text_encoder", lambda t: t.pop("final_layer_norm.weight"), "model.safetensors"),
        "1 weights of CLIPTextModel .* final_layer_norm.weight",
    ),
    "missing-vae-tensor": (tensors("vae", lambda t: t.pop("decoder.conv_in.bias")), "decoder.conv_in.bias"),
    "misshapen-tensor": (
        tensors("unet", lambda t: t.update({"conv_in.weight": torch.zeros(16, 4, 1, 1)})),
        r"conv_in.weight.*\[16, 4, 1, 1\]",
    ),
    "misshapen-text-tensor": (
        tensors(
            "text_encoder",
            lambda t: t.update({"final_layer_norm.weight": torch.zeros(3)}),
            "model.safetensors",
        ),
        "text_encoder does not fit CLIPTextModel",
    ),
    "nan": (tensors("unet", poison("conv_in.weight", float("nan"))), "unet: conv_in.weight contains NaN or infinite"),
    "infinity": (tensors("vae", poison("decoder.conv_out.weight", float("inf"))), "decoder.conv_out.weight contains"),
    "other-sizes": (
        lambda f: edit_json(f / "unet" / "config.json", lambda c: c.update(block_out_channels=[16, 64])),
        "unet",
    ),
    "unknown-pipeline": (
        index(lambda i: i.update(_class_name="MagicPipeline")),
        "no pipeline 'MagicPipeline'; its code is not run",
    ),
    "pipeline-that-is-none": (index(lambda i: i.update(_class_name="AutoencoderKL")), "no pipeline 'AutoencoderKL'"),
    "pipeline-as-file-and-class": (
        index(lambda i: i.update(_class_name=["pipeline", "MagicPipeline"])),
        "model_index.json is damaged",
    ),
    "unknown-component-class": (
        index(lambda i: i.update(unet=["diffusers", "MagicModel"])),
        "unet: diffusers has no class 'MagicModel'",
    ),
    "foreign-component": (
        index(lambda i: i.update(unet=["evil_package", "Unet"])),
        "component 'unet' needs code from 'evil_package', which is not run",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_not_whole_is_refused_with_the_reason(copied, damage, message):
    folder = copied()
    damage(folder)
    with pytest.raises(ModelError, match=message):
        load(str(folder), device="cpu")


@pytest.mark.parametrize(
    "entry",
    [
        {"_class_name": ["pipeline", "Evil"]},
        {"_class_name": "Evil"},
        {"unet": ["evil", "Evil"]},
        {"safety_checker": ["evil", "Evil"]},
        {"tokenizer": ["evil", "Evil"]},
        {"feature_extractor": ["evil", "Evil"]},
        {"scheduler": ["..evil", "Evil"]},
        {"scheduler": ["diffusers.evil", "Evil"]},
        {"extra": ["evil", "Evil"]},
    ],
    ids=json.dumps,
)
def test_code_in_a_folder_is_never_run(copied, tmp_path, monkeypatch, entry):
    folder = copied()
    sentinel = tmp_path / "code-was-run"
    code = f"open({str(sentinel)!r}, 'w')\nclass Evil: pass\n"
    for place in (folder, folder / "unet", folder / "scheduler", folder / "tokenizer"):
        for name in ("pipeline.py", "evil.py", "model.py", "__init__.py"):
            (place / name).write_text(code)
    edit_json(folder / "model_index.json", lambda values: values.update(entry))
    edit_json(folder / "unet" / "config.json", lambda c: c.update(auto_map={"AutoModel": "evil.Evil"}))
    monkeypatch.chdir(folder)
    with suppress(ModelError):  # where nothing needs that code, the model loads
        load(str(folder), device="cpu")
    assert not sentinel.exists()


def test_pickled_weights_beside_safetensors_are_not_read(copied, tmp_path):
    folder = copied()

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "unpickled"), "w"))

    for component in ("unet", "vae", "motion_adapter"):
        torch.save({"x": Bomb()}, folder / component / "diffusion_pytorch_model.bin")
    load(str(folder), device="cpu")
    assert not (tmp_path / "unpickled").exists()


def test_an_image_pipeline_loads_but_says_that_it_makes_no_clips(copied):
    folder = copied()
    shutil.rmtree(folder / "motion_adapter")

    def image_only(values):
        values.pop("motion_adapter")
        values["_class_name"] = "StableDiffusionPipeline"
        values |= {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}

    edit_json(folder / "model_index.json", image_only)
    model = load(str(folder), device="cpu")
    with pytest.raises(
        GenerationError, match=r"StableDiffusionPipeline is not a text-to-video pipeline: .* num_frames"
    ):
        generate(model, default_settings(model, "a red circle", steps=1))


def test_weights_in_several_files(copied, model, settings, reference):
    """As large models are stored: shards and an index of them."""
    folder = copied()
    whole = load_file(folder / "unet" / WEIGHTS)
    (folder / "unet" / WEIGHTS).unlink()
    names = sorted(whole)
    shards = {"00001-of-00002": names[::2], "00002-of-00002": names[1::2]}
    where = {}
    for part, own in shards.items():
        file = f"diffusion_pytorch_model-{part}.safetensors"
        save_file({name: whole[name] for name in own}, folder / "unet" / file, {"format": "pt"})
        where |= dict.fromkeys(own, file)
    listing = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(listing))
    sharded = load(str(folder), device="cpu")
    assert_same_clip(generate(VideoModel(model.spec, sharded.pipeline, "unet", sharded.device), settings), reference)

    (folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="unet"):
        load(str(folder), device="cpu")


def test_fingerprint_is_stable_and_sensitive(copied, model, tiny_folder):
    assert load(str(tiny_folder), device="cpu").fingerprint == model.fingerprint
    assert len(model.fingerprint) == 16
    folder = copied()
    assert load(str(folder), device="cpu").fingerprint == model.fingerprint

    def nudge(values):
        values["conv_out.bias"][0] += 0.01

    edit_tensors(folder / "unet" / WEIGHTS, nudge)
    assert load(str(folder), device="cpu").fingerprint != model.fingerprint
    edit_tensors(folder / "motion_adapter" / WEIGHTS, lambda t: t["mid_block.motion_modules.0.proj_out.bias"].zero_())


def test_memory_that_runs_out_while_loading(tiny_folder, monkeypatch):
    def starved(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99999 bytes")

    monkeypatch.setattr(loader, "_load_module", starved)
    with pytest.raises(OutOfMemory, match=r"Not enough memory for the weights of tiny\. Free some memory"):
        load(str(tiny_folder), device="cpu")


def test_a_folder_has_no_revision(tiny_folder):
    with pytest.raises(ModelError, match="is a local folder, so it has no revision 'v2'"):
        load(str(tiny_folder), revision="v2")
    with pytest.raises(ModelError, match="animatediff-mini is a local folder"):
        load("animatediff-mini", revision="v2")


def test_two_experts_are_refused_rather_than_half_quantized(wan_folder, tmp_path):
    folder = Path(shutil.copytree(wan_folder, tmp_path / "experts"))
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    edit_json(folder / "model_index.json", lambda v: v.update(transformer_2=v["transformer"]))
    with pytest.raises(ModelError, match="has two denoisers"):
        load(str(folder))
