"""Lets diffusers read checkpoints of quantized denoisers; importing this module is all that is needed:

    import qvd_core.diffusers_quantizer
    unet = UNetMotionModel.from_pretrained("folder or hub id")

The structure is built on the meta device and filled with the file's tensors. Weights stay packed and are
unpacked layer by layer inside each call, so nothing ever holds more than the checkpoint and one layer.
diffusers has no registry for others' quantizers: this adds ours to its two dictionaries.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from qvd_core.checkpoint_file import (
    CONFIG,
    METHOD,
    check_architecture,
    check_fields,
    metadata_of,
    read_weights,
)
from qvd_core.errors import ModelError
from qvd_core.layers.exact import exact_names
from qvd_core.layers.structure import check_values, put_tensor, rebuild, stored_tensors


class Method(str, Enum):
    """diffusers reads the `value` of a quantization method."""

    QVD = METHOD


class QVDConfig(QuantizationConfigMixin):
    """The "quantization_config" of a checkpoint, see `qvd_core.checkpoint_file`. Only `qvd_core.save` makes one."""

    def __init__(self, quant_method: str = METHOD, **values: Any):
        self.quant_method = Method(quant_method)
        self.values = values

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": self.quant_method.value, **self.values}

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_dict(), indent=2, sort_keys=True)}"


class QVDQuantizer(DiffusersQuantizer):
    """What diffusers asks while it loads or saves a checkpoint.

    Raises:
        ModelError: the checkpoint is of a later version, or its description and its weights do not fit.
        StorageError: its contents have changed since they were written.
    """

    requires_calibration = True  # so diffusers refuses to quantize by this while it loads
    use_keep_in_fp32_modules = True
    is_serializable = True
    is_trainable = False
    is_compileable = True

    def __init__(self, quantization_config: QVDConfig, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self.config = quantization_config.to_dict()
        check_fields(self.config)
        self.files: list[Path] = []
        self.names: list[str] = []
        self.exact: set[str] = set()

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise ModelError("Parts of a quantized denoiser cannot wait on disk; give a device_map without it.")

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        """The precision the model had when it was quantized, unless another is asked for."""
        if torch_dtype is not None:
            return torch_dtype
        names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if self.config["dtype"] not in names:
            raise ModelError(
                f"This checkpoint has dtype {self.config['dtype']!r}, which is none of {', '.join(names)}."
            )
        return names[self.config["dtype"]]

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        self.files = [Path(file) for file in checkpoint_files]
        return loaded_keys

    def _process_model_before_weight_loading(
        self, model: nn.Module, keep_in_fp32_modules: list[str] | None = None, **kwargs: Any
    ) -> None:
        for name, module in model.named_modules():
            if set(name.split(".")) & set(keep_in_fp32_modules or ()):
                module.to(torch.float32)
        described = self.files[0].parent / CONFIG
        if described.is_file():
            architecture = self.config["architecture"]
            check_architecture(json.loads(described.read_bytes()), architecture, f"{described} has been changed:")
        rebuild(model, self.config["structure"])
        expected = stored_tensors(model)
        read_weights(self.files, self.config, expected)
        self.names, self.exact = list(expected), exact_names(model)

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        return [key for key in missing_keys if key in self.names]  # the others are of shared modules

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, state_dict: dict[str, Any], **kwargs: Any
    ) -> bool:
        return param_name in self.exact

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: Tensor,
        param_name: str,
        target_device: Any,
        state_dict: Any,
        *_: Any,
        **__: Any,
    ) -> None:
        put_tensor(model, param_name, state_dict[param_name].to(target_device))  # `param_value` has been cast

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        tensors = stored_tensors(model)
        empty = [name for name, tensor in tensors.items() if tensor.is_meta]
        if empty:
            raise ModelError(f"diffusers has not filled {empty[0]}; load the checkpoint without offload_state_dict.")
        check_values(tensors, model)
        model.register_to_config(quantization_config=self.quantization_config)
        return model

    def _dequantize(self, model: Any) -> Any:
        raise ModelError("Weights cannot be had back from their codes; load the model in full precision instead.")

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What `save_pretrained` writes: the same tensors, with a checksum; as safetensors only."""
        if not safe_serialization:
            raise ModelError("A quantized denoiser is saved as safetensors only; leave safe_serialization on.")
        tensors = {name: state_dict[name].detach() for name in self.names}
        return tensors, metadata_of(tensors, self.config)


auto.AUTO_QUANTIZER_MAPPING[METHOD] = QVDQuantizer
auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = QVDConfig
