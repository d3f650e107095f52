"""The two files of a checkpoint: what is in them, and whether they are what was written.

    config.json                          the denoiser's own config and, as "quantization_config", all but the numbers
    diffusion_pytorch_model.safetensors  the numbers: packed codes, scales, zero points, biases, norms, tables

The header of the second holds a SHA-256 over the numbers, their names, types and shapes, and the
quantization_config, so a byte changed anywhere is found. diffusers may split it into several, of one checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvd_core.errors import ModelError, StorageError

METHOD = "qvd"
FORMAT = 1
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
FIELDS = ("format", "recipe", "dtype", "architecture", "structure", "provenance")
"""What a quantization_config holds beside "quant_method"."""

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
}
FLOATS = ("F32", "BF16", "F16", "F64")


def metadata_of(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, str]:
    """The header of a file of `tensors` that belongs to the quantization_config `config`."""
    checksum = _checksum(config, ((name, tensors[name]) for name in sorted(tensors)))
    return {"format": "pt", "qvd_format": str(FORMAT), "qvd_checksum": checksum}


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, tensor by tensor: no second copy of a large model is made in memory."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    # By size of their elements, as the format's own library does it, so that all of them are aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes(tensors[name]))


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json holds.

    Raises:
        ModelError: there is none, or it is that of another kind of folder, or of a later version.
        StorageError: it is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        raise ModelError(
            f"{folder} is no checkpoint: it has no {CONFIG} (found: {found}). Give a folder that qvd_core.save wrote."
        )
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} is damaged: {error}. Copy or export the checkpoint again.") from error
    quantization = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(quantization, dict) or quantization.get("quant_method") != METHOD:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        what = f"quantized by {method!r}" if method else "in full precision"
        raise ModelError(f"{folder} is no checkpoint of qvd_core but a model {what}; load it by qvd_core.load.")
    check_fields(quantization)
    check_architecture(config, quantization["architecture"], f"{path}: changed after it was written, as")
    return config


def check_fields(quantization: Mapping[str, Any]) -> None:
    """Refuse a quantization_config of another version, or an incomplete one.

    Raises:
        ModelError: with what was found.
    """
    found = quantization.get("format")
    if found != FORMAT:
        newer = type(found) is int and found > FORMAT
        advice = "update qvd_core to read it" if newer else "export it again"
        raise ModelError(f"This checkpoint has format {found!r}, and this version reads {FORMAT}: {advice}.")
    missing = sorted(set(FIELDS) - set(quantization))
    superfluous = sorted(set(quantization) - {*FIELDS, "quant_method"})
    if missing or superfluous or not isinstance(quantization["architecture"], dict):
        raise ModelError(
            f"The quantization_config of this checkpoint lacks {', '.join(missing) or 'nothing'} and has"
            f" {', '.join(superfluous) or 'nothing'} unknown; export it again."
        )


def own_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes the denoiser: a diffusers config without what merely accompanies it, JSON-ready."""
    own = {key: value for key, value in config.items() if key[0] != "_" and key != "quantization_config"}
    again: dict[str, Any] = json.loads(json.dumps(own, default=lambda array: array.tolist()))
    return again


def check_architecture(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Refuse another architecture. Versions of diffusers may know more entries, so only common ones count.

    Raises:
        ModelError: naming the first entry that differs.
    """
    own = own_config(found)
    for key in sorted(own.keys() & wanted.keys()):
        if own[key] != wanted[key]:
            raise ModelError(f"{where} its {key} is {own[key]!r}, and the checkpoint's {wanted[key]!r}.")


def weight_files(folder: Path) -> list[Path]:
    """The weights of a checkpoint, one file or several with an index.

    Raises:
        StorageError: they are not there.
    """
    index = folder / f"{WEIGHTS}.index.json"
    files = [folder / WEIGHTS]
    if not files[0].is_file() and index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            files = [folder / Path(name).name for name in names]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"{index} is damaged: {error!r}. Copy the checkpoint again.") from error
    absent = [file.name for file in files if not file.is_file()]
    if absent or not files:
        raise StorageError(f"{folder} is incomplete: {', '.join(absent)} is missing. Copy or export it again.")
    return files


def read_weights(
    files: Iterable[Path],
    config: Mapping[str, Any],
    expected: Mapping[str, Tensor],
    use: Callable[[str, Tensor], None] | None = None,
) -> None:
    """Check that `files` hold just what is expected and what was written; give each tensor to `use`.

    Args:
        config: the quantization_config they belong to.
        expected: by name, of this shape and type; any floating point stands for any other, but for "F32" kept exact.
        use: gets tensors that may be mapped from the file.

    Raises:
        StorageError: a file is damaged, or cut short.
        ModelError: tensors are missing, superfluous, of another shape or type, or there is no checksum.
    """
    from safetensors import SafetensorError, safe_open

    with ExitStack() as stack:
        holders: dict[str, Any] = {}
        try:
            for path in files:
                file = stack.enter_context(safe_open(path, framework="pt"))
                metadata = file.metadata() or {}
                holders |= dict.fromkeys(file.keys(), file)
                if "qvd_checksum" not in metadata:
                    raise ModelError(f"{path} has no checksum in its header, so qvd_core has not written it.")
            _check_names(holders, expected)

            def contents() -> Iterable[tuple[str, Tensor]]:
                for name in sorted(holders):
                    tensor = holders[name].get_tensor(name)
                    if use is not None:
                        use(name, tensor)
                    yield name, tensor

            checksum = _checksum(config, contents())
        except (SafetensorError, OSError) as error:
            raise StorageError(f"{path} is damaged or cut short ({error}). Copy or export it again.") from error
    if metadata["qvd_checksum"] != checksum:
        raise StorageError(
            f"{path} or its {CONFIG} is damaged: contents have changed since they were written (checksum"
            f" {checksum[:12]}, not {metadata['qvd_checksum'][:12]}). Copy or export the checkpoint again."
        )


def _check_names(holders: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    missing, superfluous = sorted(expected.keys() - holders), sorted(holders - expected.keys())
    if missing or superfluous:
        raise ModelError(
            f"The checkpoint's weights do not fit its description: {len(missing)} tensors are missing"
            f" ({', '.join(missing[:2])}), {len(superfluous)} are superfluous ({', '.join(superfluous[:2])})."
        )
    for name, tensor in expected.items():
        stored = holders[name].get_slice(name)
        shape, dtype = list(stored.get_shape()), stored.get_dtype()
        floats = tensor.is_floating_point() and dtype in FLOATS
        if shape != list(tensor.shape) or not (floats or dtype == DTYPES[tensor.dtype]):
            raise ModelError(
                f"The checkpoint's {name} is {dtype} {shape}, and its description asks for {DTYPES[tensor.dtype]}"
                f" {list(tensor.shape)}."
            )


def _checksum(config: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    for name, tensor in tensors:
        digest.update(f"{name} {DTYPES[tensor.dtype]} {list(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
