"""Checkpoints: a quantized denoiser as a diffusers folder a fraction of the size, and back.

The folder (see `checkpoint_file`) holds data alone: the recipe, the structure and what it was made from as
JSON, the numbers as safetensors. Nothing in it is executed; what is unknown or does not fit is refused.
It is read in two ways: by `load_quantized` on top of its model, or by diffusers itself, once
`qvd_core.diffusers_quantizer` has been imported.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

import qvd_core
from qvd_core.calibration.statistics import CalibrationRun
from qvd_core.checkpoint_file import (
    CONFIG,
    FORMAT,
    METHOD,
    WEIGHTS,
    check_architecture,
    metadata_of,
    own_config,
    read_config,
    read_weights,
    weight_files,
    write_weights,
)
from qvd_core.errors import ModelError, RecipeError, StorageError, memory_errors
from qvd_core.layers.folded_norm import folded_transform
from qvd_core.layers.inputs import StaticPerFrame
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.layers.structure import check_values, describe, put_tensor, rebuild, stored_tensors
from qvd_core.models.loader import VideoModel, as_folder, local_folder
from qvd_core.models.sites import find_inputs
from qvd_core.quantizers.channel_transform import ChannelTransform
from qvd_core.recipe import Recipe
from qvd_core.storage import replacing_in, storage_errors
from qvd_core.variant import Variant, share_structure


def save(variant: Variant, folder: str | Path) -> None:
    """Write a variant's denoiser as a checkpoint, whole or not at all.

    Kept are all numbers it computes with, the recipe, the structure and where it came from; the searches that
    led there (`thresholds`, `coefficients`) are not.

    Args:
        folder: missing, empty, or an earlier checkpoint, which is replaced.

    Raises:
        StorageError: the folder holds something else, or cannot be written.
        ModelError: the variant computes in integers, cannot be rebuilt from what a checkpoint says, or has values
            that are not finite.
    """
    if variant.engine != "simulate":
        raise ModelError(
            f"This variant computes in {variant.engine}; save the simulated one it was made from, and call"
            " in_integers on what load_quantized gives."
        )
    folder = Path(folder).expanduser()
    _check_place(folder)
    denoiser: Any = variant.denoiser
    config = {"_class_name": type(denoiser).__name__, "_diffusers_version": diffusers.__version__}
    own = own_config(denoiser.config)
    quantization = {
        "quant_method": METHOD,
        "format": FORMAT,
        "recipe": variant.recipe.to_dict(),
        "dtype": str(denoiser.dtype).removeprefix("torch."),
        "architecture": own,
        "structure": describe(denoiser, variant.clock),
        "provenance": {
            "qvd_version": qvd_core.__version__,
            "model": variant.model.spec.name,
            "fingerprint": variant.model.fingerprint,
            "calibration": None if variant.calibration is None else asdict(variant.calibration),
        },
    }
    quantization = json.loads(json.dumps(quantization))  # as a reader will have it
    tensors = stored_tensors(denoiser)
    _check_complete(tensors, denoiser, quantization)
    check_values(tensors, denoiser)
    text = json.dumps(config | own | {"quantization_config": quantization}, indent=2, sort_keys=True) + "\n"
    with replacing_in(folder, WEIGHTS, CONFIG) as (weights, description):
        write_weights(weights, tensors, metadata_of(tensors, quantization))
        description.write_text(text)


def load_quantized(folder: str | Path, model: VideoModel, *, revision: str | None = None) -> Variant:
    """The variant that `save` wrote, on top of its model.

    Its outputs are those of the variant that was saved, bit for bit, where the model has the precision and the
    device it had then. Searches are not kept: `thresholds` and `coefficients` are empty.

    Args:
        folder: a local folder or a hub id ("owner/name").
        model: what it was made from; text encoder, VAE and scheduler are its, and it is left untouched.
        revision: branch, tag or commit, for hub ids.

    Raises:
        ModelError: no checkpoint, one of another model or architecture, of a later version, or one whose
            description is not known here; or the hub cannot be reached.
        StorageError: the files are damaged or incomplete.
        OutOfMemory: it does not fit the device.
    """
    local = as_folder(str(folder))
    folder = local_folder(str(folder if local is None else local), revision)
    config = read_config(folder)
    quantization = config["quantization_config"]
    _check_model(config, model)
    try:
        recipe = Recipe.from_dict(quantization["recipe"])
    except RecipeError as error:
        raise ModelError(f"The recipe of this checkpoint is not known here, or damaged: {error}") from error
    denoiser = share_structure(model.denoiser)
    with memory_errors(f"the checkpoint {folder.name}", "Drop another variant first."):
        clock = rebuild(denoiser, quantization["structure"])
        expected = stored_tensors(denoiser)
        device = next(model.denoiser.parameters()).device
        tensors: dict[str, Tensor] = {}

        def keep(name: str, tensor: Tensor) -> None:
            tensors[name] = tensor.to(device, expected[name].dtype, copy=True)

        read_weights(weight_files(folder), quantization, expected, keep)
        check_values(tensors, denoiser)
        for name, tensor in tensors.items():
            put_tensor(denoiser, name, tensor)
        for module in denoiser.modules():
            if isinstance(module, QuantizedLayer):
                module.keep_dequantized()
    transforms, folded = _transforms(denoiser, model)
    return Variant(
        model,
        recipe,
        denoiser.eval(),
        transforms=transforms,
        folded=folded,
        frames=next((len(m.scale) for m in denoiser.modules() if isinstance(m, StaticPerFrame)), None),
        clock=clock,
        calibration=_calibration(quantization["provenance"]),
    )


def _check_place(folder: Path) -> None:
    with storage_errors(folder):
        found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if CONFIG in found:
        try:
            read_config(folder)
        except ModelError as error:
            raise StorageError(f"{folder} would be overwritten: {error} Choose another folder.") from error
    elif found:
        raise StorageError(
            f"{folder} holds {min(found)} and is no checkpoint; choose a folder that is empty or does not exist."
        )


def _check_complete(tensors: dict[str, Tensor], denoiser: Any, quantization: dict[str, Any]) -> None:
    """Before anything is written: what a reader will rebuild must be what there is."""
    from accelerate import init_empty_weights

    def kinds(tensors: dict[str, Tensor]) -> dict[str, tuple[list[int], Any]]:
        return {name: (list(t.shape), t.is_floating_point() or t.dtype) for name, t in tensors.items()}

    with init_empty_weights():
        again: nn.Module = type(denoiser).from_config(quantization["architecture"])
    rebuild(again, quantization["structure"])
    expected, found = kinds(stored_tensors(again)), kinds(tensors)
    if expected != found:
        other = min(name for name in expected | found if expected.get(name) != found.get(name))
        raise ModelError(
            f"This {type(denoiser).__name__} cannot be rebuilt from its config and the layers of a simulated variant:"
            f" {other} is {found.get(other, 'missing')}, and would be {expected.get(other, 'none of it')}."
        )


def _check_model(config: dict[str, Any], model: VideoModel) -> None:
    denoiser: Any = model.denoiser
    provenance = config["quantization_config"]["provenance"]
    made_of, kind = str(provenance.get("model")), type(denoiser).__name__
    if config.get("_class_name") != kind:
        raise ModelError(
            f"This checkpoint is a {config.get('_class_name')}, made of {made_of}; {model.spec.name} has a {kind}."
        )
    check_architecture(
        denoiser.config, own_config(config), f"This checkpoint was made of {made_of}, not of {model.spec.name}:"
    )
    if provenance.get("fingerprint") not in (None, model.fingerprint):
        dtype = config["quantization_config"]["dtype"]
        raise ModelError(
            f"This checkpoint was made of {made_of} ({provenance['fingerprint']}) in {dtype}, not of"
            f" {model.spec.name} ({model.fingerprint}) in {str(denoiser.dtype).removeprefix('torch.')}: load that"
            " model, in that precision, or export it again from this one."
        )


def _transforms(denoiser: nn.Module, model: VideoModel) -> tuple[dict[str, ChannelTransform], frozenset[str]]:
    """By site, what is done to the channels of its input; and the sites for which the norm before does it."""
    transforms: dict[str, ChannelTransform] = {}
    folded: set[str] = set()
    for shared in find_inputs(model.denoiser, model.sites):
        taken_in = None if shared.norm is None else folded_transform(denoiser.get_submodule(shared.norm))
        layer: Any = denoiser.get_submodule(shared.consumers[0])
        if taken_in is not None:
            taken_in = ChannelTransform(taken_in.shift.cpu(), taken_in.scale.cpu())
            transforms |= dict.fromkeys(shared.consumers, taken_in)
            folded.update(shared.consumers)
        elif getattr(layer, "input_scale", None) is not None:
            scale = layer.input_scale.flatten().float().cpu()
            shift = torch.zeros_like(scale) if layer.input_shift is None else layer.input_shift.flatten().float().cpu()
            transforms |= dict.fromkeys(shared.consumers, ChannelTransform(shift, scale))
    return transforms, frozenset(folded)


def _calibration(provenance: dict[str, Any]) -> CalibrationRun | None:
    run = provenance.get("calibration")
    try:
        return None if run is None else CalibrationRun(**{**run, "prompts": tuple(run["prompts"])})
    except (TypeError, KeyError) as error:
        raise ModelError(f"This checkpoint's calibration is described wrongly: {error}. Export it again.") from error
