"""The dense model's forward pass, one layer at a time, in NumPy: what calibration needs of it.

Shapes: B sequences, T tokens, D hidden, H/KV heads, d head width, F feed-forward width.
"""

from __future__ import annotations

import numpy as np

from demo.gguf_source import Layer, Settings


def attend(layer: Layer, hidden: np.ndarray, settings: Settings) -> np.ndarray:
    """hidden + attention(hidden), causal, [B, T, D]."""
    batch, length, width = hidden.shape
    x = rms_norm(hidden, layer.attn_norm, settings.norm_eps)
    heads = settings.heads // settings.kv_heads
    q = rotate(_heads(x @ layer.q.T, settings.heads), settings)  # [B, H, T, d]
    k = rotate(_heads(x @ layer.k.T, settings.kv_heads), settings)  # [B, KV, T, d]
    v = _heads(x @ layer.v.T, settings.kv_heads)
    k, v = np.repeat(k, heads, axis=1), np.repeat(v, heads, axis=1)
    scores = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(settings.head_dim))  # [B, H, T, T]
    scores += np.triu(np.full((length, length), -np.inf, np.float32), 1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = (weights @ v).swapaxes(1, 2).reshape(batch, length, width)
    return hidden + mixed @ layer.o.T


def feed_forward(layer: Layer, x: np.ndarray) -> np.ndarray:
    """down(silu(gate x) * up x), [..., D]."""
    gate = x @ layer.gate.T
    gate /= 1 + np.exp(-gate)
    return (gate * (x @ layer.up.T)) @ layer.down.T


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x / rms(x) * weight over the last axis."""
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(eps)) * weight


def rotate(x: np.ndarray, settings: Settings) -> np.ndarray:
    """Rotary positions on the two halves of each head, x [B, H, T, d]."""
    half = settings.head_dim // 2
    inverse = settings.rope_theta ** (-np.arange(half) / half)
    angles = np.outer(np.arange(x.shape[2]), inverse)  # [T, d/2]
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _heads(x: np.ndarray, heads: int) -> np.ndarray:
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).swapaxes(1, 2)
