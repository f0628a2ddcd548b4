"""Tiled softmax attention: FlashAttention, Dao et al. 2022, and FlashAttention-2, Dao 2023."""
