"""The forward pass of the Llama family in numpy and float64: slow, plain, and independent of Neap.

`forward` takes the weights as float64 arrays and returns the logits of every position. `Arithmetic` adds, where
asked, the two roundings that Neap makes on purpose, so that their effect can be measured: keys and values held as
f16, and activations as 8-bit integers where a matrix is quantized.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Config:
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    tied: bool = True
    rms_eps: float = 1e-5
    rope_base: float = 10000.0
    rope_layout: str = "interleaved"  # or "halves"
    rope_scaling: dict | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    context: int = 2048


def rope_frequencies(config: Config):
    """The angle per position of each pair, and the factor on cosine and sine."""
    dims = config.head_dim
    frequencies = config.rope_base ** (-np.arange(0, dims, 2) / dims)
    scaling = config.rope_scaling or {"type": "none"}
    if scaling["type"] == "none":
        return frequencies, 1.0
    if scaling["type"] == "linear":
        return frequencies / scaling["factor"], 1.0
    if scaling["type"] == "llama3":
        return frequencies / llama3_divisors(config), 1.0
    if scaling["type"] == "yarn":
        return yarn(config, frequencies)
    raise ValueError(scaling)


def llama3_divisors(config: Config) -> np.ndarray:
    """Llama 3.1: short wavelengths are kept, long ones divided by the factor, a ramp between."""
    scaling = config.rope_scaling
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    old = scaling["original_context"]
    frequencies = config.rope_base ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    divisors = []
    for frequency in frequencies:
        rotations = old * frequency / (2 * math.pi)
        if rotations < low:
            divisors.append(factor)
        elif rotations > high:
            divisors.append(1.0)
        else:
            smooth = (rotations - low) / (high - low)
            divisors.append(1.0 / ((1 - smooth) / factor + smooth))
    return np.array(divisors)


def yarn(config: Config, frequencies: np.ndarray):
    """Peng et al. 2023: interpolated below `beta_slow` rotations, kept above `beta_fast`, a ramp between."""
    scaling, dims = config.rope_scaling, config.head_dim
    old, factor = scaling["original_context"], scaling["factor"]

    def dimension(rotations: float) -> float:
        return dims * math.log(old / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_base))

    low = max(math.floor(dimension(scaling.get("beta_fast", 32.0))), 0)
    high = min(math.ceil(dimension(scaling.get("beta_slow", 1.0))), dims - 1)
    ramp = np.clip((np.arange(dims // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return frequencies / factor * ramp + frequencies * (1 - ramp), 0.1 * math.log(factor) + 1.0


def rotate(config: Config, x: np.ndarray) -> np.ndarray:
    """Rotary embedding of [tokens, heads, head_dim], token i at position i."""
    frequencies, factor = rope_frequencies(config)
    angles = np.arange(len(x))[:, None, None] * frequencies
    cos, sin = np.cos(angles) * factor, np.sin(angles) * factor
    out = np.empty_like(x)
    if config.rope_layout == "interleaved":
        first, second = slice(0, None, 2), slice(1, None, 2)
    else:
        half = config.head_dim // 2
        first, second = slice(0, half), slice(half, None)
    a, b = x[..., first], x[..., second]
    out[..., first] = a * cos - b * sin
    out[..., second] = a * sin + b * cos
    return out


def int8_groups(x: np.ndarray) -> np.ndarray:
    """Activations rounded to 8-bit codes times a power of two for each group of 32."""
    groups = x.reshape(*x.shape[:-1], -1, 32)
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    # The least exponent for which every code, rounded, is within 127.
    exponent = np.floor(np.log2(np.maximum(largest, 2.0**-100) / 127.5)) + 1
    scale = 2.0**exponent
    return (np.round(groups / scale) * scale).reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Which roundings to make; none gives the reference."""

    half_kv: bool = False
    int8_activations: bool = False


EXACT = Arithmetic()
AS_NEAP = Arithmetic(half_kv=True, int8_activations=True)


class Model:
    """Weights by short names; `quantized` says which of them are held in integer blocks."""

    def __init__(self, config: Config, weights: dict, quantized: set):
        self.config, self.quantized = config, quantized
        self.weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}

    def norm(self, x, name):
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.config.rms_eps) * self.weights[name]

    def linear(self, x, name, arithmetic):
        if arithmetic.int8_activations and name in self.quantized:
            x = int8_groups(x)
        out = x @ self.weights[name].T
        return out + self.weights[name + ".bias"] if name + ".bias" in self.weights else out

    def attention(self, x, layer, arithmetic):
        c, tokens = self.config, len(x)
        q = self.linear(x, f"{layer}.q", arithmetic).reshape(tokens, c.heads, c.head_dim)
        k = self.linear(x, f"{layer}.k", arithmetic).reshape(tokens, c.kv_heads, c.head_dim)
        v = self.linear(x, f"{layer}.v", arithmetic).reshape(tokens, c.kv_heads, c.head_dim)
        if c.qk_norm:
            q, k = self.norm(q, f"{layer}.q_norm"), self.norm(k, f"{layer}.k_norm")
        q, k = rotate(c, q), rotate(c, k)
        if arithmetic.half_kv:
            k, v = k.astype(np.float16).astype(np.float64), v.astype(np.float16).astype(np.float64)
        out = np.empty_like(q)
        for head in range(c.heads):
            shared = head // (c.heads // c.kv_heads)
            scores = q[:, head] @ k[:, shared].T / math.sqrt(c.head_dim)
            scores[np.triu_indices(tokens, 1)] = -np.inf
            probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
            probabilities /= probabilities.sum(axis=1, keepdims=True)
            out[:, head] = probabilities @ v[:, shared]
        return self.linear(out.reshape(tokens, -1), f"{layer}.o", arithmetic)

    def ffn(self, x, layer, arithmetic):
        gate = self.linear(x, f"{layer}.gate", arithmetic)
        up = self.linear(x, f"{layer}.up", arithmetic)
        return self.linear(gate / (1 + np.exp(-gate)) * up, f"{layer}.down", arithmetic)

    def forward(self, tokens, arithmetic: Arithmetic = EXACT) -> np.ndarray:
        """Logits [tokens, vocab]."""
        x = self.weights["embed"][list(tokens)]
        for layer in range(self.config.layers):
            x = x + self.attention(self.norm(x, f"{layer}.attn_norm"), layer, arithmetic)
            x = x + self.ffn(self.norm(x, f"{layer}.ffn_norm"), layer, arithmetic)
        return self.linear(self.norm(x, "norm"), "embed" if self.config.tied else "head", arithmetic)

    def greedy(self, tokens, count: int, least_lead: float):
        """The next `count` tokens, or None if a first choice leads by less (in deviations of the logits)."""
        tokens, start = list(tokens), len(tokens)
        for _ in range(count):
            logits = self.forward(tokens)[-1]
            second, first = np.sort(logits)[-2:]
            if first - second < least_lead * rms(logits):
                return None
            tokens.append(int(np.argmax(logits)))
        return tokens[start:]


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def errors(actual: np.ndarray, expected: np.ndarray):
    """The worst position's relative L2 error, and the largest single error in units of its position's RMS."""
    deviation = np.sqrt(np.mean(np.square(expected), axis=-1))
    difference = np.asarray(actual, np.float64) - expected
    relative = np.sqrt(np.mean(np.square(difference), axis=-1)) / deviation
    largest = np.abs(difference).max(axis=-1) / deviation
    return float(relative.max()), float(largest.max())
