"""From a name, a folder or a hub id to a model whose every weight is known to come from its files.

Each component is loaded on its own, so that a missing or misshapen tensor is reported rather than
filled with random numbers. Only safetensors are read, and no code that comes with a model is run.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvd_core.device import Device, pick_device
from qvd_core.errors import ModelError, memory_errors
from qvd_core.models.catalog import CATALOG, ModelSpec, get_spec
from qvd_core.models.sites import Site, find_sites, has_site_map

_LIBRARIES = ("diffusers", "transformers")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*diffusion_pytorch_model*.safetensors", "*/model*.safetensors"]
_HUB_UNUSED = ["*.fp16*", "*.bf16*", "*.non_ema*", "safety_checker/*"]  # the same again, and what is not used


def _says_something(record: logging.LogRecord) -> bool:
    return "should be kept in float32: []" not in record.getMessage()


# diffusers 0.42 warns at every cast of modules that must not be cast, and lists none.
logging.getLogger("diffusers.models.modeling_utils").addFilter(_says_something)


@dataclass(eq=False)
class VideoModel:
    """A loaded text-to-video pipeline.

    Attributes:
        spec: what was asked for.
        pipeline: the diffusers pipeline; its modules are shared by all variants and never modified.
        denoiser_name: "unet" or "transformer".
        device: where it runs and why.
        sites: the layers of the denoiser that can be quantized.
        mapped: whether the sites carry this family's roles rather than generic ones.
    """

    spec: ModelSpec
    pipeline: Any
    denoiser_name: str
    device: Device
    sites: tuple[Site, ...] = field(init=False)
    mapped: bool = field(init=False)

    def __post_init__(self) -> None:
        self.sites = find_sites(self.denoiser)
        self.mapped = has_site_map(self.denoiser)

    @property
    def denoiser(self) -> nn.Module:
        """The network that is quantized; the text encoder and VAE stay as they are."""
        return getattr(self.pipeline, self.denoiser_name)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of names, shapes and sampled values of the denoiser's weights: is it the same model?"""
        digest = hashlib.sha256()
        for name, tensor in self.denoiser.state_dict().items():
            flat = tensor.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)].float().cpu()
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(sample.numpy().tobytes())
        return digest.hexdigest()[:16]


def load(source: str, *, revision: str | None = None, device: str = "auto", allow_folders: bool = True) -> VideoModel:
    """Load a text-to-video diffusion pipeline.

    Args:
        source: a catalog name ("animatediff-mini"), a local diffusers folder, or a hub id ("owner/name").
        revision: branch, tag or commit, for hub ids.
        device: "auto", "cpu" or "cuda".
        allow_folders: whether `source` may name a local folder; a server that takes it from strangers says no.

    Returns:
        The model on its device: fp32 on the CPU and for small models, bf16 on CUDA above 0.5 B parameters.

    Raises:
        ModelError: unknown name, unreachable hub, foreign or incomplete folder, damaged or non-finite weights.
        OutOfMemory: the device cannot hold it.
    """
    where = pick_device(device)
    spec = _spec_for(source, revision, allow_folders)
    with memory_errors(f"the weights of {spec.name}", "Free some memory or load it on another device."):
        folder = local_folder(spec.source, spec.revision)
        adapter = _load_adapter(spec) if spec.motion_adapter else None
        pipeline, denoiser_name = _load_pipeline(folder, adapter)
        denoiser = getattr(pipeline, denoiser_name)
        size = sum(p.numel() for p in denoiser.parameters())
        dtype = torch.bfloat16 if where.name == "cuda" and size > 500_000_000 else torch.float32
        pipeline.to(where.name, dtype)
        # Some pipelines build it anew from what was loaded: a UNet and motion modules become one network.
        denoiser.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return VideoModel(spec, pipeline, denoiser_name, where)


def _spec_for(source: str, revision: str | None, allow_folders: bool) -> ModelSpec:
    """The catalog's spec, or one made for a folder or a hub id."""
    embedded = source in CATALOG and get_spec(source).embedded
    folder = Path(get_spec(source).source) if embedded else as_folder(source) if allow_folders else None
    if folder is not None and revision is not None:
        raise ModelError(f"{source} is a local folder, so it has no revision {revision!r}; leave the revision out.")
    if source in CATALOG:
        spec = get_spec(source)
        return spec if revision is None else dataclasses.replace(spec, revision=revision)
    if folder is not None:
        name, where = folder.name, str(folder)
    elif source.count("/") == 1 and all(source.split("/")):
        name, where = source, source
    else:
        raise ModelError(
            f"Unknown model {source!r}: neither a catalog name ({', '.join(CATALOG)}), an existing folder,"
            " nor a hub id of the form owner/name."
        )
    return ModelSpec(
        name=name,
        title=name,
        source=where,
        revision=revision,
        motion_adapter=None,
        frames=16,
        height=0,
        width=0,
        steps=25,
        guidance_scale=7.5,
        fps=8,
        example_prompts=(),
    )


def as_folder(source: str) -> Path | None:
    """The folder `source` means, or None if it neither looks like a path nor exists."""
    try:
        path = Path(source).expanduser()
        return path.resolve() if source.startswith((".", "/", "~")) or path.exists() else None
    except (OSError, RuntimeError):  # too long for a file name; the home of nobody
        return None


def local_folder(source: str, revision: str | None) -> Path:
    """The folder of a local source, or a snapshot of a hub repository (safetensors and configs only)."""
    if Path(source).is_absolute():
        folder = Path(source)
        if not folder.is_dir():
            raise ModelError(f"There is no folder {folder}.")
        return folder

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(source, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_UNUSED)
        )
    except HFValidationError as error:
        raise ModelError(f"{source!r} is neither an existing folder nor a hub id: {_first_line(error)}") from error
    except GatedRepoError as error:
        raise ModelError(f"{source} is gated: accept its terms on the hub and log in with `hf auth login`.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"The hub has no model {source}, or it is private: check the spelling.") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{source} has no revision {revision!r}.") from error
    except Exception as error:  # of whichever HTTP library this huggingface_hub uses
        raise ModelError(
            f"Cannot download {source}: {_first_line(error)} Check the connection, or give a local folder."
        ) from error


def _load_pipeline(folder: Path, adapter: Any) -> tuple[Any, str]:
    """Build the pipeline in `folder` from components loaded and checked one by one."""
    import diffusers

    index = _read_index(folder)
    class_name = index["_class_name"]
    modules: dict[str, Any] = {}
    for component, (library, kind) in _components(folder, index):
        if not (folder / component).is_dir():
            raise ModelError(
                f"{folder} is incomplete: its model_index.json lists {component!r}, but there is no such folder."
            )
        if (folder / component / "config.json").is_file() and component != "feature_extractor":
            modules[component] = _load_module(folder / component, library, kind)

    denoiser_name = next((name for name in ("unet", "transformer") if name in modules), None)
    if denoiser_name is None:
        raise ModelError(f"{folder} has neither a unet nor a transformer, so there is nothing to quantize.")
    if "transformer_2" in modules:
        raise ModelError(
            f"{folder} has two denoisers (experts by noise level). Only one would be quantized, so it is not loaded;"
            " single-transformer models of the same family are."
        )
    if adapter is not None:
        class_name, modules["motion_adapter"] = "AnimateDiffPipeline", adapter
        # Motion adapters are trained under this schedule, not under that of the image model they are put into.
        modules["scheduler"] = diffusers.DDIMScheduler.from_pretrained(
            str(folder / "scheduler"),
            beta_schedule="linear",
            clip_sample=False,
            timestep_spacing="linspace",
            steps_offset=1,
        )
    pipeline_class: Any = getattr(diffusers, class_name, None)
    known = isinstance(pipeline_class, type) and issubclass(pipeline_class, diffusers.DiffusionPipeline)
    if not known:
        raise ModelError(f"{folder}: this diffusers has no pipeline {class_name!r}; its code is not run.")
    try:
        pipeline = pipeline_class.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, **modules)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder} is not a complete {class_name} folder: {_first_line(error)}") from error
    for component, part in pipeline.components.items():
        _check_vocabulary(folder / component, part)
    pipeline.register_to_config(_name_or_path=str(folder))
    return pipeline, denoiser_name


def _check_vocabulary(folder: Path, part: Any) -> None:
    """Refuse a tokenizer without its words: transformers makes one that reads every prompt alike."""
    files = dict(getattr(part, "vocab_files_names", {}))
    whole = folder / files.pop("tokenizer_file", "tokenizer.json")
    if files and not whole.is_file() and not all((folder / name).is_file() for name in files.values()):
        raise ModelError(f"{folder}: the vocabulary is missing (neither {whole.name} nor {', '.join(files.values())}).")


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        raise ModelError(
            f"{folder} is not a diffusers pipeline: it has no model_index.json (found: {found})."
            " Give the folder that save_pretrained() of a pipeline wrote."
        )
    try:
        index = json.loads(path.read_text())
        if not isinstance(index["_class_name"], str):
            raise TypeError("_class_name is not a string")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {error!r}.") from error
    return index


def _components(folder: Path, index: dict[str, Any]) -> list[tuple[str, tuple[str, str]]]:
    """(name, (library, class)) of every component that is present; refuses classes of other packages."""
    present = []
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or len(entry) != 2 or entry[0] is None:
            continue
        library = str(entry[0])
        if library not in _LIBRARIES and not library.startswith("diffusers."):
            if name == "safety_checker" or library == "stable_diffusion":
                continue  # SD 1.5's image filter; AnimateDiffPipeline has no such component
            raise ModelError(
                f"{folder}: component {name!r} needs code from {library!r}, which is not run."
                " Only components of diffusers and transformers are loaded."
            )
        present.append((name, (library, str(entry[1]))))
    return present


def _load_module(folder: Path, library: str, class_name: str) -> nn.Module:
    """Load one network and refuse it if any weight is missing, misshapen or not finite."""
    from safetensors import SafetensorError

    kind: Any = getattr(importlib.import_module(library.partition(".")[0]), class_name, None)
    if kind is None:
        raise ModelError(f"{folder.name}: {library} has no class {class_name!r}.")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder}: the weights are missing (no .safetensors file). Pickled .bin files are not read;"
            " convert them with save_pretrained(safe_serialization=True)."
        )
    try:
        if library == "diffusers" and "quantization_config" in kind.load_config(str(folder), local_files_only=True):
            raise ModelError(
                f"{folder} is quantized already. Load the model in full precision, and a checkpoint made by"
                " qvd_core.save on top of it by qvd_core.load_quantized."
            )
        module, info = kind.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except SafetensorError as error:
        raise ModelError(f"{folder}: the weight file is damaged or cut short ({error}).") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{folder} does not fit {class_name}: {_first_line(error)}") from error
    # transformers keeps some non-persistent position ids out of its files on purpose.
    missing = [k for k in info["missing_keys"] if not k.endswith("position_ids")]
    if missing or info["mismatched_keys"]:
        named = [*missing, *map(str, info["mismatched_keys"])]
        raise ModelError(
            f"{folder}: {len(named)} weights of {class_name} are missing or misshapen,"
            f" among them {named[0]}. They would be random; the folder is not used."
        )
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"{folder}: {name} contains NaN or infinite values; the folder is not used.")
    return module.eval().requires_grad_(False)


def _load_adapter(spec: ModelSpec) -> nn.Module:
    assert spec.motion_adapter is not None
    return _load_module(local_folder(spec.motion_adapter, None), "diffusers", "MotionAdapter")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
