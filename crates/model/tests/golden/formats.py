"""Weights in the block formats of ggml: packed here, unpacked by the `gguf` package.

`gguf.quants` packs the plain formats; the K formats and those with a table of codes it only unpacks, so they are packed
here in the simplest way (scales from the extremes of a group). The reference logits always use what `gguf.quants` unpacks.
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


def pack_q2_k(values: np.ndarray) -> np.ndarray:
    groups = values.reshape(-1, 16, 16)
    steps = [x.max(axis=-1, keepdims=True) / 15 for x in codes_and_scale(groups, 3)]
    steps = [step.astype(np.float16).astype(np.float64) for step in steps]
    scale, minimum = [
        np.clip(np.round(x / step), 1, 15).astype(np.uint8) for x, step in zip(codes_and_scale(groups, 3), steps)
    ]
    scales, minima = (scale * steps[0])[..., None], (minimum * steps[1])[..., None]
    codes = np.clip(np.round((groups + minima) / scales), 0, 3).astype(np.uint8)
    return np.concatenate([scale | minimum << 4, two_bits(codes), halves(steps[0][:, 0]), halves(steps[1][:, 0])], axis=1)


def two_bits(codes: np.ndarray) -> np.ndarray:
    """Bits 2g of 32 bytes are the g-th 32 of 128 codes."""
    quarters = codes.reshape(-1, 2, 4, 32) & 3
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return np.bitwise_or.reduce(quarters << shifts, axis=2).reshape(-1, 64)


def signed_steps(scale: np.ndarray):
    """Scales as multiples, from 1 to 31, of a common f16 step: 6-bit codes that are 32 more, and scales."""
    step = (scale.max(axis=-1, keepdims=True) / 31).astype(np.float16)
    multiples = np.clip(np.round(scale / step.astype(np.float64)), 1, 31).astype(np.uint8)
    return multiples + 32, multiples * step.astype(np.float64), step[:, 0]


def pack_q3_k(values: np.ndarray) -> np.ndarray:
    groups = values.reshape(-1, 16, 16)
    scale_codes, scale, step = signed_steps(np.abs(groups).max(axis=-1) / 4)
    codes = (np.clip(np.round(groups / scale[..., None]), -4, 3) + 4).astype(np.uint8).reshape(-1, 256)
    third = np.bitwise_or.reduce((codes.reshape(-1, 8, 32) >> 2) << np.arange(8, dtype=np.uint8)[:, None], axis=1)
    low = (scale_codes[:, :8] & 15) | (scale_codes[:, 8:] & 15) << 4
    high = (scale_codes >> 4).reshape(-1, 4, 4)
    high = np.bitwise_or.reduce(high << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=1)
    return np.concatenate([third, two_bits(codes), low, high, halves(step)], axis=1)


IQ4_CODES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])


def nearest_codes(groups: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Groups of 32 by indices into the table: 16 bytes, columns 0 to 15 low."""
    distance = np.abs(groups[..., None] / scale[..., None, None] - IQ4_CODES)
    codes = distance.argmin(axis=-1).astype(np.uint8)
    return codes[..., :16] | codes[..., 16:] << 4


def pack_iq4_nl(values: np.ndarray) -> np.ndarray:
    groups = values.reshape(-1, 32)
    scale = (np.abs(groups).max(axis=-1) / 113).astype(np.float16)
    return np.concatenate([halves(scale), nearest_codes(groups, scale.astype(np.float64))], axis=1)


def pack_iq4_xs(values: np.ndarray) -> np.ndarray:
    groups = values.reshape(-1, 8, 32)
    codes, scale, step = signed_steps(np.abs(groups).max(axis=-1) / 113)
    high = np.bitwise_or.reduce((codes >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16), axis=1)
    low = (codes[:, ::2] & 15) | (codes[:, 1::2] & 15) << 4
    parts = [halves(step), high[:, None].view(np.uint8), low, nearest_codes(groups, scale).reshape(-1, 128)]
    return np.concatenate(parts, axis=1)


PACKERS = {Q.Q2_K: pack_q2_k, Q.Q3_K: pack_q3_k, Q.IQ4_NL: pack_iq4_nl, Q.IQ4_XS: pack_iq4_xs}


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
    if kind in PACKERS:
        return PACKERS[kind](values).reshape(rows, -1)
    return gguf.quants.quantize(values.astype(np.float32), kind)


def unpack(data: np.ndarray, kind) -> np.ndarray:
    """What the bytes mean, by the `gguf` package."""
    return gguf.quants.dequantize(data, kind).astype(np.float64)


def is_quantized(kind) -> bool:
    return kind not in (Q.F32, Q.F16, Q.BF16)
