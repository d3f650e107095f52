"""Sites of UNetMotionModel, the UNet of AnimateDiff: a 2-D UNet with motion modules between its layers.

Temporal features, in the words of QVD (arXiv 2407.11585), are the inputs of every `time_emb_proj`.
Both attentions of a motion module are self-attentions over frames.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

ROLE_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"^time_embedding\.", "time_embedding"),
    (r"\.time_emb_proj$", "temporal_features"),
    (r"motion_modules\.\d+\.proj_(in|out)$", "temporal_projection"),
    (r"motion_modules\..*\.attn[12]\.to_[qkv]$", "temporal_attention"),
    (r"motion_modules\..*\.attn[12]\.to_out\.0$", "temporal_attention_output"),
    (r"motion_modules\..*\.ff\.", "temporal_feed_forward"),
    (r"attentions\.\d+\.proj_(in|out)$", "spatial_projection"),
    (r"attentions\..*\.attn1\.to_[qkv]$", "spatial_attention"),
    (r"attentions\..*\.attn1\.to_out\.0$", "spatial_attention_output"),
    (r"attentions\..*\.attn2\.to_[qkv]$", "text_attention"),
    (r"attentions\..*\.attn2\.to_out\.0$", "text_attention_output"),
    (r"attentions\..*\.ff\.", "spatial_feed_forward"),
    (r"^conv_in$", "first_layer"),
    (r"^conv_out$", "last_layer"),
    (r"\.resnets\.\d+\.conv[12]$", "residual_convolution"),
    (r"\.conv_shortcut$", "shortcut_convolution"),
    (r"\.(down|up)samplers\.\d+\.conv$", "resampling_convolution"),
)

NORMED_INPUTS: tuple[tuple[str, tuple[str, ...], str | None], ...] = (
    (
        r"^(.*)\.attn1\.to_q$",
        (r"\1.attn1.to_q", r"\1.attn1.to_k", r"\1.attn1.to_v"),
        r"\1.norm1",
    ),
    (
        r"^(.*motion_modules.*)\.attn2\.to_q$",
        (r"\1.attn2.to_q", r"\1.attn2.to_k", r"\1.attn2.to_v"),
        r"\1.norm2",
    ),
    (r"^(.*)\.attn2\.to_q$", (r"\1.attn2.to_q",), r"\1.norm2"),
    (r"^(.*)\.attn2\.to_k$", (r"\1.attn2.to_k", r"\1.attn2.to_v"), None),  # the text has no norm here
    (r"^(.*)\.ff\.net\.0\.proj$", (r"\1.ff.net.0.proj",), r"\1.norm3"),
    (r"^(.*)\.proj_in$", (r"\1.proj_in",), r"\1.norm"),
)
"""(first of the layers that read one input, all of them, the norm that makes it and feeds nothing else)."""


def shortcut_split(denoiser: nn.Module, site_name: str) -> int | None:
    """Channels of the upsampled part of a shortcut convolution's input; the rest was skipped past the bottom.

    None for layers that read no such concatenation.
    """
    found = re.match(r"up_blocks\.(\d+)\.resnets\.(\d+)\.conv_shortcut$", site_name)
    if found is None:
        return None
    block, number = int(found[1]), int(found[2])
    before: Any = denoiser.get_submodule(f"up_blocks.{block}.resnets.{number - 1}" if number else "mid_block.resnets.0")
    if block and not number:
        before = denoiser.get_submodule(f"up_blocks.{block - 1}.resnets.0")
    return int(before.conv1.out_channels)
