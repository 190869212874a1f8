"""Weights in the block formats of ggml: packed here, unpacked by the `gguf` package.

`gguf.quants` packs the plain formats; for the K formats it only unpacks, so they are packed here in the simplest way
(scales from the extremes of a group). The reference logits always use what `gguf.quants` unpacks.
"""

import gguf
import numpy as np

Q = gguf.GGMLQuantizationType
BLOCK = 256


def codes_and_scale(groups: np.ndarray, largest_code: int):
    """Scale and minimum of each group from its extremes: value = scale * code - minimum, minimum >= 0."""
    minimum = np.maximum(-groups.min(axis=-1), 0.0)
    scale = (groups.max(axis=-1) + minimum) / largest_code
    return scale, minimum


def halves(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).view(np.uint8).reshape(len(x), 2)


def six_bit(x: np.ndarray):
    """Numbers as 6-bit multiples of a common f16 step: codes and steps."""
    step = (x.max(axis=-1) / 63).astype(np.float16)
    safe = np.where(step == 0, 1, step).astype(np.float64)
    return np.clip(np.round(x / safe[:, None]), 0, 63).astype(np.uint8), step


def pack_scales(scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """Eight 6-bit scales and minimums in twelve bytes."""
    low = scale[:, :4] | ((scale[:, 4:] >> 4) << 6)
    middle = minimum[:, :4] | ((minimum[:, 4:] >> 4) << 6)
    high = (scale[:, 4:] & 15) | ((minimum[:, 4:] & 15) << 4)
    return np.concatenate([low, middle, high], axis=1)


def pack_q4_k_q5_k(values: np.ndarray, bits: int) -> np.ndarray:
    groups = values.reshape(-1, 8, 32)
    largest = (1 << bits) - 1
    scale, minimum = codes_and_scale(groups, largest)
    scale_codes, scale_step = six_bit(scale)
    minimum_codes, minimum_step = six_bit(minimum)
    scale = scale_step.astype(np.float64)[:, None] * scale_codes
    minimum = minimum_step.astype(np.float64)[:, None] * minimum_codes
    safe = np.where(scale == 0, 1, scale)[..., None]
    codes = np.clip(np.round((groups + minimum[..., None]) / safe), 0, largest).astype(np.uint8)
    pairs = codes.reshape(-1, 4, 2, 32)
    nibbles = ((pairs[:, :, 0] & 15) | ((pairs[:, :, 1] & 15) << 4)).reshape(-1, 128)
    parts = [halves(scale_step), halves(minimum_step), pack_scales(scale_codes, minimum_codes)]
    if bits == 5:
        parts.append(np.bitwise_or.reduce((codes >> 4) << np.arange(8, dtype=np.uint8)[:, None], axis=1))
    return np.concatenate([*parts, nibbles], axis=1)


def pack_q6_k(values: np.ndarray) -> np.ndarray:
    groups = values.reshape(-1, 16, 16)
    scale = np.abs(groups).max(axis=-1) / 32
    step = (scale.max(axis=-1) / 127).astype(np.float16)
    scale_codes = np.clip(np.round(scale / step.astype(np.float64)[:, None]), 1, 127).astype(np.int8)
    scale = step.astype(np.float64)[:, None] * scale_codes
    codes = (np.clip(np.round(groups / scale[..., None]), -32, 31) + 32).astype(np.uint8)
    quarters = codes.reshape(-1, 2, 4, 32)  # two halves of four runs
    low = quarters & 15
    nibbles = np.concatenate([low[:, :, 0] | (low[:, :, 2] << 4), low[:, :, 1] | (low[:, :, 3] << 4)], axis=2)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = np.bitwise_or.reduce((quarters >> 4) << shifts, axis=2)
    return np.concatenate(
        [nibbles.reshape(-1, 128), high.reshape(-1, 64), scale_codes.view(np.uint8), halves(step)], axis=1
    )


def pack(values: np.ndarray, kind) -> np.ndarray:
    """A matrix as bytes (floats as floats)."""
    rows = len(values)
    if kind == Q.F32:
        return values.astype(np.float32)
    if kind == Q.F16:
        return values.astype(np.float16)
    if kind == Q.Q4_K:
        return pack_q4_k_q5_k(values, 4).reshape(rows, -1)
    if kind == Q.Q5_K:
        return pack_q4_k_q5_k(values, 5).reshape(rows, -1)
    if kind == Q.Q6_K:
        return pack_q6_k(values).reshape(rows, -1)
    return gguf.quants.quantize(values.astype(np.float32), kind)


def unpack(data: np.ndarray, kind) -> np.ndarray:
    """What the bytes mean, by the `gguf` package."""
    return gguf.quants.dequantize(data, kind).astype(np.float64)


def is_quantized(kind) -> bool:
    return kind not in (Q.F32, Q.F16, Q.BF16)
