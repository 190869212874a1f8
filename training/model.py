"""The shipped model in plain JAX: a Llama block (RMSNorm, GQA, RoPE, SwiGLU), tied embeddings.

Weights are kept `[in, out]`, so that a layer is `x @ w`. RoPE rotates the two halves of a head
against each other; `export.py` permutes the rows of `wq` and `wk` into the interleaved order that
a GGUF file of architecture "llama" means.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 2048
    hidden: int = 192
    layers: int = 4
    heads: int = 3
    kv_heads: int = 1
    head_dim: int = 64
    ffn: int = 384
    context: int = 2048
    rope_base: float = 1000000.0
    rms_eps: float = 1e-5


def init_params(config, seed):
    """Random weights; projections that write to the residual stream start at zero."""
    rng = np.random.default_rng(seed)

    def matrix(rows, cols):
        return jnp.asarray(rng.normal(0, 1 / math.sqrt(rows), (rows, cols)), jnp.float32)

    kv = config.kv_heads * config.head_dim
    q = config.heads * config.head_dim
    layers = [
        {
            "attn_norm": jnp.ones(config.hidden),
            "wq": matrix(config.hidden, q),
            "wk": matrix(config.hidden, kv),
            "wv": matrix(config.hidden, kv),
            "wo": jnp.zeros((q, config.hidden)),
            "ffn_norm": jnp.ones(config.hidden),
            "gate": matrix(config.hidden, config.ffn),
            "up": matrix(config.hidden, config.ffn),
            "down": jnp.zeros((config.ffn, config.hidden)),
        }
        for _ in range(config.layers)
    ]
    embedding = jnp.asarray(rng.normal(0, 0.06, (config.vocab_size, config.hidden)), jnp.float32)
    return {"embedding": embedding, "layers": layers, "norm": jnp.ones(config.hidden)}


def plant_recall(config, params, seed):
    """Start with a rough circuit for recall in the first two layers, instead of waiting for one.

    Training finds such "induction heads" (Olsson et al. 2022) only after many steps; planting them
    is the idea of mimetic initialization (Trockman and Kolter 2023). The heads of layer 0 look 1, 2
    and 3 tokens back and copy what is there; the heads of layer 1 look for a place whose previous
    tokens are the current ones, and copy its token. Everything stays trainable.
    """
    rng = np.random.default_rng(seed)
    half, dim, d = config.head_dim // 2, config.head_dim, config.hidden
    frequency = config.rope_base ** (-np.arange(half) / half)
    params = jax.tree.map(np.array, params)
    embedding = params["embedding"]
    embedding[:, 0] = 0.24  # a constant, for heads that look at positions alone
    first, second = params["layers"][:2]

    near = np.arange(10)  # the fast pairs tell positions apart
    first["wk"][0, :], first["wk"][0, near] = 0, 1.9
    first["wv"][0, :] = 0
    written = 0.06 * np.array([0.7, 0.6, 0.5]) / math.sqrt(dim)  # beside embeddings of 0.06
    for head in range(config.heads):
        back, base = head + 1, head * dim
        first["wq"][0, base : base + dim] = 0
        first["wq"][0, base + near] = 1.9 * np.cos(frequency[near] * back)
        first["wq"][0, base + half + near] = -1.9 * np.sin(frequency[near] * back)
        first["wo"][base : base + dim] = rng.normal(0, written[head], (dim, d))

    slow = np.flatnonzero(frequency < 2e-3)  # the slow pairs tell contents apart at any distance
    slow = np.concatenate([slow, half + slow])
    picks = [rng.permutation(dim)[: len(slow)] for _ in range(config.heads)]
    stream = 0.085  # root mean square of the residual stream after layer 0
    read = [stream * first["wo"][h * dim : (h + 1) * dim].T / (d * written[h] ** 2) for h in range(config.heads)]
    own = stream / 0.06 * first["wv"]
    # The tokens 0, 1 and 2 back from here must be those 1, 2 and 3 back from there.
    second["wk"][:, slow] = sum(read[h][:, picks[h]] for h in range(config.heads))
    query = own[:, picks[0]] + read[0][:, picks[1]] + read[1][:, picks[2]]
    for head, share in enumerate((1.0, 0.7, 0.0)):
        base = head * dim
        second["wq"][:, base + slow] = share * query + (1 - share) * second["wq"][:, base + slow]
        second["wo"][base : base + dim] = second["wv"].T * (0.21, 0.09, 0.0)[head]
    params["norm"][:] = 0.5  # the first logits of tied embeddings must not be too sure
    return jax.tree.map(jnp.asarray, params)


def parameter_count(params):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def rms_norm(x, weight, eps):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rope_angles(config, positions):
    """cos and sin, `[batch, tokens, 1, head_dim / 2]`, of integer positions `[batch, tokens]`."""
    half = config.head_dim // 2
    frequency = config.rope_base ** (-np.arange(half) / half)
    angle = positions[..., None, None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x, cos, sin):
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def causal_attention(q, k, v, chunk):
    """q `[b, g, r, t, d]` (r query heads a KV head), k and v `[b, g, t, d]` -> like q.

    Queries go in chunks, so that the upper triangle is not computed.
    """
    tokens, dim = q.shape[-2], q.shape[-1]
    outputs = []
    for start in range(0, tokens, chunk):
        end = min(start + chunk, tokens)
        part = q[..., start:end, :]
        b, g, r, n, _ = part.shape
        scores = jnp.einsum("bgnd,bgkd->bgnk", part.reshape(b, g, r * n, dim), k[:, :, :end])
        scores = scores.reshape(b, g, r, n, end) * (dim**-0.5)
        mask = np.arange(start, end)[:, None] >= np.arange(end)[None, :]
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
        out = jnp.einsum("bgnk,bgkd->bgnd", weights.reshape(b, g, r * n, end), v[:, :, :end])
        outputs.append(out.reshape(b, g, r, n, dim))
    return jnp.concatenate(outputs, axis=-2)


def block(config, layer, x, cos, sin, chunk):
    b, t, _ = x.shape
    group = config.heads // config.kv_heads
    h = rms_norm(x, layer["attn_norm"], config.rms_eps)
    q = rotate((h @ layer["wq"]).reshape(b, t, config.heads, config.head_dim), cos, sin)
    k = rotate((h @ layer["wk"]).reshape(b, t, config.kv_heads, config.head_dim), cos, sin)
    v = (h @ layer["wv"]).reshape(b, t, config.kv_heads, config.head_dim)
    q = q.reshape(b, t, config.kv_heads, group, config.head_dim).transpose(0, 2, 3, 1, 4)
    attended = causal_attention(q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), chunk)
    attended = attended.transpose(0, 3, 1, 2, 4).reshape(b, t, config.heads * config.head_dim)
    x = x + attended @ layer["wo"]
    h = rms_norm(x, layer["ffn_norm"], config.rms_eps)
    return x + (jax.nn.silu(h @ layer["gate"]) * (h @ layer["up"])) @ layer["down"]


def forward(config, params, tokens, positions, chunk=256):
    """Logits `[batch, tokens, vocab]` of token ids and their positions, both `[batch, tokens]`."""
    x = params["embedding"][tokens]
    cos, sin = rope_angles(config, positions)
    for layer in params["layers"]:
        x = block(config, layer, x, cos, sin, chunk)
    return rms_norm(x, params["norm"], config.rms_eps) @ params["embedding"].T
