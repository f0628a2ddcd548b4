"""What is done to queries, keys and values before attention: rotary embedding, multi-head latent attention."""

from __future__ import annotations

from refattn.transforms.latent import LatentAttention, absorb_mla, expand_mla
from refattn.transforms.rotary import rotary_cos_sin, rotary_embedding

__all__ = ("LatentAttention", "absorb_mla", "expand_mla", "rotary_cos_sin", "rotary_embedding")
