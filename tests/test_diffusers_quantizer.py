"""What diffusers makes of a checkpoint: the quantized denoiser, without floating-point weights ever in memory."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import UNet2DConditionModel, UNetMotionModel, WanTransformer3DModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qvd_core.calibration.calibrate import calibrate
from qvd_core.checkpoint import load_quantized, save
from qvd_core.checkpoint_file import CONFIG, WEIGHTS
from qvd_core.diffusers_quantizer import QVDConfig
from qvd_core.errors import ModelError, StorageError
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.layers.structure import stored_tensors
from qvd_core.models.loader import load
from qvd_core.recipe import METHODS, get_recipe
from qvd_core.variant import quantize
from tests.closeness import assert_close, assert_same
from tests.denoiser_calls import recorded_calls
from tests.full_size import narrow_model


@pytest.fixture(scope="module")
def saved(named, tmp_path_factory) -> Path:
    """A variant with shared inputs, folded norms, a grid per step and a logarithmic grid."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save(named("qvd-w4a8"), folder)
    return folder


@pytest.fixture(scope="module")
def expected(named, call) -> torch.Tensor:
    return call(named("qvd-w4a8").denoiser)


@pytest.mark.parametrize("method", METHODS)
def test_outputs_are_those_of_the_variant(named, call, tmp_path, method):
    variant = named(f"{method}-w4a6")
    save(variant, tmp_path)
    unet, info = UNetMotionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert type(unet) is UNetMotionModel
    assert not unet.training
    assert_same(call(unet), call(variant.denoiser))


def test_a_transformer_comes_back_too(wan, tmp_path):
    variant = quantize(wan, get_recipe("dynamic-w4a8"))
    save(variant, tmp_path)
    call = recorded_calls(wan, "a red circle")[0]
    assert_same(call(WanTransformer3DModel.from_pretrained(tmp_path)), call(variant.denoiser))


def test_every_layer_is_packed(saved):
    unet = UNetMotionModel.from_pretrained(saved)
    layers = [module for module in unet.modules() if isinstance(module, QuantizedLayer)]
    assert len(layers) > 100
    for layer in layers:
        assert all(t.numel() < layer.codes.numel() or t.dtype == torch.uint8 for t in layer.buffers(recurse=False))
    assert sum(t.nbytes for t in stored_tensors(unet).values()) < (saved / WEIGHTS).stat().st_size


@pytest.mark.parametrize(
    "choices",
    [
        {"low_cpu_mem_usage": True},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"disable_mmap": True},
        {"use_safetensors": True},
        {"ignore_mismatched_sizes": True},
        {"torch_dtype": torch.float32},
        {"local_files_only": True},
    ],
    ids=str,
)
def test_options_of_diffusers_change_nothing(saved, call, expected, choices):
    assert_same(call(UNetMotionModel.from_pretrained(saved, **choices)), expected)


@pytest.mark.parametrize(
    ("choices", "error", "reason"),
    [
        ({"low_cpu_mem_usage": False}, ValueError, "low_cpu_mem_usage"),
        ({"offload_state_dict": True}, ModelError, "without offload_state_dict"),
        ({"device_map": {"": "disk"}, "offload_folder": "x"}, ModelError, "cannot wait on disk"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(saved, choices, error, reason):
    with pytest.raises(error, match=reason):
        UNetMotionModel.from_pretrained(saved, **choices)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_precision_leaves_scales_and_codes_alone(model, saved, named, dtype):
    unet = UNetMotionModel.from_pretrained(saved, torch_dtype=dtype)
    cast = named("qvd-w4a8").denoiser
    cast = copy.deepcopy(cast).to(dtype)
    found, wanted = stored_tensors(unet), stored_tensors(cast)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert_same(found[name], tensor, name)
    assert unet.conv_in.scales.dtype == unet.conv_in.quantize_input.scale.dtype == torch.float32
    assert unet.dtype == unet.conv_in.weight.dtype == dtype


def test_the_precision_is_that_of_the_quantized_model(wan_folder, tmp_path):
    model = load(str(wan_folder), device="cpu")
    model.pipeline.to(torch.bfloat16)
    variant = quantize(model, get_recipe("dynamic-w8a8"))
    save(variant, tmp_path)
    found = stored_tensors(load_quantized(tmp_path, model).denoiser)
    assert all(t.dtype == found[name].dtype for name, t in stored_tensors(variant.denoiser).items())
    again = WanTransformer3DModel.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    # The class asks for some parts in fp32, which diffusers heeds; their numbers are those of bf16.
    for name, tensor in stored_tensors(again).items():
        assert_close(tensor, found[name], 0, name)


# Memory


class Allocations(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, while they live."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                if storage._cdata not in self.seen | given:
                    self.seen.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return result

    def freed(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def test_allocations_are_counted_while_they_live():
    with Allocations() as counted:
        kept = torch.zeros(1000)
        torch.zeros(5000).view(50, 100).t()
        assert counted.now == kept.nbytes == 4000
    assert counted.peak == 24000


def test_no_floating_point_copy_is_ever_in_memory(model, tmp_path):
    """Of a model whose weights dwarf its activations: at any time less than the checkpoint and its largest layer."""
    narrow = narrow_model(model)
    statistics = calibrate(narrow, ["a red circle"], steps=1, frames=1, height=8, width=8)
    save(quantize(narrow, get_recipe("minmax-w4a8"), statistics), tmp_path)
    call = recorded_calls(narrow, "a red circle", steps=1, frames=1, height=8, width=8)[0]
    with Allocations() as exact:
        call(narrow.denoiser)
    weights = sum(p.nbytes for p in narrow.denoiser.parameters())
    largest = max(p.numel() for p in narrow.denoiser.parameters())
    checkpoint = (tmp_path / WEIGHTS).stat().st_size
    with Allocations() as loading:
        unet = UNetMotionModel.from_pretrained(tmp_path)
    assert loading.peak < 1.05 * checkpoint  # the file, mapped rather than copied, is most of it
    with Allocations() as running:
        call(unet)
    # One layer takes its codes twice, in another order of memory, and their real numbers.
    assert running.peak < exact.peak + (1 + 1 + 4) * largest
    assert checkpoint + running.peak < 0.5 * weights  # so this would have been noticed


# Saving again, moving, copying


def test_save_pretrained_writes_a_checkpoint_again(model, saved, call, expected, tmp_path):
    UNetMotionModel.from_pretrained(saved).save_pretrained(tmp_path / "again")
    assert_same(call(UNetMotionModel.from_pretrained(tmp_path / "again")), expected)
    again = load_quantized(tmp_path / "again", model)
    assert_same(call(again.denoiser), expected)
    assert again.transforms.keys() == load_quantized(saved, model).transforms.keys()


def test_in_several_files_too(model, saved, call, expected, tmp_path):
    UNetMotionModel.from_pretrained(saved).save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(call(UNetMotionModel.from_pretrained(tmp_path)), expected)
    assert_same(call(load_quantized(tmp_path, model).denoiser), expected)
    next(tmp_path.glob("*-00002-*")).unlink()
    with pytest.raises(StorageError, match="is incomplete"):
        load_quantized(tmp_path, model)


def test_pickled_weights_are_not_written(saved, tmp_path):
    with pytest.raises(ModelError, match="safetensors only"):
        UNetMotionModel.from_pretrained(saved).save_pretrained(tmp_path, safe_serialization=False)


def test_a_whole_pipeline_is_saved_and_loaded(model, saved, call, expected, tmp_path):
    unet = UNetMotionModel.from_pretrained(saved)
    pipeline = type(model.pipeline)(**{**model.pipeline.components, "unet": unet})
    pipeline.save_pretrained(tmp_path)
    again = type(pipeline).from_pretrained(tmp_path)
    assert_same(call(again.unet), expected)
    with pytest.raises(ModelError, match=r"is quantized already.*load_quantized"):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda unet: pickle.loads(pickle.dumps(unet))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("name", ["qvd-w4a8", "tfmq-dm-w4a6", "tabulated-w4a6"])
def test_copies_compute_the_same(named, call, tmp_path, name, copied):
    save(named(name), tmp_path)
    unet = UNetMotionModel.from_pretrained(tmp_path)
    wanted = call(unet)
    again = copied(unet)
    assert_same(call(again), wanted)
    assert_same(call(copied(named(name).denoiser)), wanted)
    assert not {id(m) for m in again.modules()} & {id(m) for m in unet.modules()}


@pytest.mark.parametrize("offload_buffers", [True, False])
def test_parts_wait_elsewhere_and_come_when_called(saved, call, expected, offload_buffers):
    unet = UNetMotionModel.from_pretrained(saved)
    cpu_offload(unet, torch.device("cpu"), offload_buffers=offload_buffers)
    for _ in range(2):
        assert_same(call(unet), expected)
    assert unet.conv_in.bias.is_meta
    assert unet.conv_in.packed.is_meta is offload_buffers


def test_a_variant_with_dequantized_weights_can_wait_too(model, saved, call, expected):
    denoiser = load_quantized(saved, model).denoiser
    cpu_offload(denoiser, torch.device("cpu"))
    assert_same(call(denoiser), expected)


def test_whole_models_are_moved_by_hooks(saved, call, expected):
    unet, hook = cpu_offload_with_hook(UNetMotionModel.from_pretrained(saved), torch.device("cpu"))
    assert_same(call(unet), expected)
    hook.offload()
    assert_same(call(unet), expected)


def test_casting_afterwards_is_refused_by_diffusers(saved, call, expected):
    unet = UNetMotionModel.from_pretrained(saved)
    with pytest.raises(ValueError, match="use the `torch_dtype` argument"):
        unet.to(torch.bfloat16)
    assert_same(call(unet.to("cpu")), expected)


@pytest.mark.slow
def test_it_compiles(saved, call, expected):
    assert_same(call(torch.compile(UNetMotionModel.from_pretrained(saved), backend="eager")), expected)


def test_dequantizing_is_refused(saved):
    with pytest.raises(ModelError, match="full precision"):
        UNetMotionModel.from_pretrained(saved).dequantize()


def test_a_plain_model_is_not_quantized_while_it_loads(tiny_folder):
    with pytest.raises(ValueError, match="require the model to be pre-quantized"):
        UNet2DConditionModel.from_pretrained(tiny_folder / "unet", quantization_config=QVDConfig())


def test_a_config_shows_itself():
    assert json.loads(repr(QVDConfig(format=1)).removeprefix("QVDConfig ")) == {"quant_method": "qvd", "format": 1}


def test_diffusers_knows_the_format_only_after_the_import(saved):
    code = "import sys, diffusers\n{}diffusers.UNetMotionModel.from_pretrained(sys.argv[1])"
    for line, known in (("", False), ("import qvd_core.diffusers_quantizer\n", True)):
        child = subprocess.run(
            [sys.executable, "-c", code.format(line), str(saved)],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[1],
        )
        assert (child.returncode == 0) is known, child.stderr[-2000:]
        assert ("Unknown quantization type, got qvd" in child.stderr) is not known


# Damage


@pytest.fixture
def damaged(saved, tmp_path) -> Path:
    for name in (CONFIG, WEIGHTS):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def test_flipped_bits_are_found(damaged):
    content = (damaged / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for place in (header + 5, (header + len(content)) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        (damaged / WEIGHTS).write_bytes(changed)
        with pytest.raises(StorageError, match=r"contents have changed since they were written"):
            UNetMotionModel.from_pretrained(damaged)


def test_a_file_cut_short(damaged):
    content = (damaged / WEIGHTS).read_bytes()
    (damaged / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match="Unable to load weights from checkpoint file"):  # diffusers reads it first
        UNetMotionModel.from_pretrained(damaged)


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda c: c.update(norm_eps=2e-5), ModelError, "its norm_eps is 2e-05, and the checkpoint's 1e-05"),
        (lambda c: c["quantization_config"].update(format=9), ModelError, "has format 9, and this version reads 1"),
        (lambda c: c["quantization_config"].pop("structure"), ModelError, "lacks structure"),
        (lambda c: c["quantization_config"].update(dtype="float8"), ModelError, "dtype 'float8'"),
        (
            lambda c: c["quantization_config"]["structure"]["pieces"]["conv_in"].update(kind="eval"),
            ModelError,
            "'eval', which is not known",
        ),
        (
            lambda c: c["quantization_config"]["structure"]["pieces"]["conv_in"].update(weight_bits=2),
            ModelError,
            "conv_in.packed is U8",
        ),
        (
            lambda c: c["quantization_config"]["provenance"].update(model="another"),
            StorageError,
            "contents have changed",
        ),
    ],
    ids=["own-config", "newer", "incomplete", "dtype", "unknown-piece", "other-bits", "provenance"],
)
def test_changed_descriptions_are_refused(damaged, change, error, reason):
    config = json.loads((damaged / CONFIG).read_text())
    change(config)
    (damaged / CONFIG).write_text(json.dumps(config))
    with pytest.raises(error, match=reason):
        UNetMotionModel.from_pretrained(damaged)
