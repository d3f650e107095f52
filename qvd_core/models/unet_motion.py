"""Sites of UNetMotionModel, the UNet of AnimateDiff: a 2-D UNet with motion modules between its layers.

Temporal features, in the words of QVD (arXiv 2407.11585), are the inputs of every `time_emb_proj`.
Both attentions of a motion module are self-attentions over frames.
"""

from __future__ import annotations

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
    (r"^conv_in$", "first_convolution"),
    (r"^conv_out$", "last_convolution"),
    (r"\.resnets\.\d+\.conv[12]$", "residual_convolution"),
    (r"\.conv_shortcut$", "shortcut_convolution"),
    (r"\.(down|up)samplers\.\d+\.conv$", "resampling_convolution"),
)
