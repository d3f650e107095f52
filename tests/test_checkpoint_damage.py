"""Checkpoints whose files or descriptions were changed: refused with the reason, and broken variants never saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qvd_core.checkpoint import load_quantized, save
from qvd_core.checkpoint_file import CONFIG, WEIGHTS, read_weights
from qvd_core.errors import ModelError, StorageError
from qvd_core.layers.structure import stored_tensors
from qvd_core.recipe import get_recipe
from qvd_core.variant import quantize


@pytest.fixture
def saved(named, tmp_path) -> Path:
    save(named("qvd-w4a8"), tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(folder: Path, change) -> None:
    """Change the description as somebody would who also knows how to compute the checksum."""
    from safetensors.torch import load_file, save_file

    from qvd_core.checkpoint_file import metadata_of

    config = json.loads((folder / CONFIG).read_text())
    change(config["quantization_config"])
    (folder / CONFIG).write_text(json.dumps(config))
    tensors = {name: t.clone() for name, t in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata_of(tensors, config["quantization_config"]))


def flip(path: Path, place: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


def where(folder: Path, tensor: str) -> int:
    """The file position of a tensor's middle byte."""
    content = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(content[:8], "little")
    start, end = json.loads(content[8 : 8 + size])[tensor]["data_offsets"]
    return 8 + size + (start + end) // 2


@pytest.mark.parametrize("tensor", ["conv_in.packed", "conv_in.scales", "conv_in.zero_points", "conv_in.bias"])
def test_a_flipped_bit_in_the_numbers_is_found(model, saved, tensor):
    flip(saved / WEIGHTS, where(saved, tensor))
    with pytest.raises((StorageError, ModelError), match=r"checksum|NaN|not positive"):
        load_quantized(saved, model)


def test_a_flipped_bit_anywhere_in_the_header_is_found(model, saved):
    content = (saved / WEIGHTS).read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    config = json.loads((saved / CONFIG).read_text())["quantization_config"]
    expected = stored_tensors(load_quantized(saved, model).denoiser)
    for place in [*range(8), *range(8, size, 4999), size - 1]:
        for bit in (1, 64):
            flip(saved / WEIGHTS, place, bit)
            with pytest.raises((StorageError, ModelError)):
                read_weights([saved / WEIGHTS], config, expected)
            (saved / WEIGHTS).write_bytes(content)
    read_weights([saved / WEIGHTS], config, expected)


def test_a_changed_config_is_found(model, saved):
    text = (saved / CONFIG).read_text()
    for old, new in (
        ('"fingerprint": ', '"fingerprint" : '),  # only its looks: not found, and it need not be
        ('"norm_eps": 1e-05', '"norm_eps": 2e-05'),
        ('"bits": 8', '"bits": 7'),
        ('"split_shortcuts": false', '"split_shortcuts": true'),
        ('"qvd_version": "0', '"qvd_version": "1'),
    ):
        assert old in text
        (saved / CONFIG).write_text(text.replace(old, new, 1))
        if new.startswith('"fingerprint"'):
            load_quantized(saved, model)
            continue
        with pytest.raises((StorageError, ModelError)):
            load_quantized(saved, model)
    (saved / CONFIG).write_text(text[: len(text) // 2])
    with pytest.raises(StorageError, match=r"config.json is damaged: .*export the checkpoint again"):
        load_quantized(saved, model)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_cut_short(model, saved, share):
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[: int(share * len(content))])
    with pytest.raises(StorageError, match=r"safetensors is damaged or cut short .*Copy or export it again"):
        load_quantized(saved, model)


def test_a_missing_file(model, saved):
    (saved / WEIGHTS).unlink()
    with pytest.raises(StorageError, match=f"is incomplete: {WEIGHTS} is missing"):
        load_quantized(saved, model)
    (saved / CONFIG).unlink()
    with pytest.raises(ModelError, match=r"has no config.json \(found: nothing\)"):
        load_quantized(saved, model)


def test_weights_without_a_checksum(model, saved):
    from safetensors.torch import load_file, save_file

    save_file({name: t.clone() for name, t in load_file(saved / WEIGHTS).items()}, saved / WEIGHTS)
    with pytest.raises(ModelError, match="no checksum in its header"):
        load_quantized(saved, model)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda q: q.update(format=2), "has format 2, and this version reads 1: update qvd_core"),
        (lambda q: q.update(format="x"), "has format 'x', and this version reads 1: export it again"),
        (lambda q: q.pop("recipe"), "lacks recipe"),
        (lambda q: q.update(hook="os.system"), "hook unknown"),
        (lambda q: q["recipe"].update(name="qvd-w8a8"), "is the name of another recipe"),
        (lambda q: q["structure"]["pieces"].pop("conv_in"), "2 tensors|tensors are missing"),
        (lambda q: q["structure"]["pieces"]["conv_in"].update(bias=False), "1 are superfluous .conv_in.bias"),
        (lambda q: q["structure"]["pieces"]["conv_in"].update(weight_bits=7), "conv_in.packed is U8"),
        (lambda q: q["structure"]["pieces"]["conv_in"]["input"].update(grids=3), "conv_in.quantize_input.scale is F32"),
        (lambda q: q["provenance"]["calibration"].pop("seed"), "calibration is described wrongly"),
        (lambda q: q.update(quant_method="bitsandbytes"), "no checkpoint of qvd_core but a model quantized by 'bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_descriptions_that_do_not_fit(model, saved, change, reason):
    from qvd_core.errors import QvdError

    rewrite(saved, change)
    with pytest.raises(QvdError, match=reason):
        load_quantized(saved, model)


def test_scales_that_are_no_numbers(model, named, saved):
    from safetensors.torch import load_file, save_file

    from qvd_core.checkpoint_file import metadata_of

    tensors = {name: t.clone() for name, t in load_file(saved / WEIGHTS).items()}
    tensors["conv_in.scales"][0] = float("nan")
    config = json.loads((saved / CONFIG).read_text())["quantization_config"]
    save_file(tensors, saved / WEIGHTS, metadata_of(tensors, config))
    with pytest.raises(ModelError, match=r"conv_in.scales contains NaN"):
        load_quantized(saved, model)


def test_a_variant_with_broken_scales_is_not_saved(model, tmp_path):
    variant = quantize(model, get_recipe("dynamic-w8a8"))
    variant.denoiser.conv_in.scales.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"conv_in.scales contains NaN"):
        save(variant, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_variant_that_cannot_be_rebuilt_is_not_saved(model, tmp_path):
    variant = quantize(model, get_recipe("dynamic-w8a8"))
    variant.denoiser.conv_in = torch.nn.Sequential(variant.denoiser.conv_in)
    with pytest.raises(ModelError, match=r"cannot be rebuilt from its config|lacks"):
        save(variant, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_without_a_recorded_fingerprint_the_architecture_decides(model, named, tmp_path):
    save(named("minmax-w8a8"), tmp_path / "x")
    rewrite(tmp_path / "x", lambda q: q["provenance"].update(fingerprint=None))
    load_quantized(tmp_path / "x", model)
