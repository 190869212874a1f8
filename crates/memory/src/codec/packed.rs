//! Lossless packing of two-byte values: planes of bytes, each entropy-coded if that pays.
//!
//! The high bytes of f16 or bf16 values (sign, exponent, and what mantissa is left) are far from uniform;
//! the low bytes are noise and are kept as they are. LZ coders find no repeats in either plane and gain
//! nothing (measured by ZipNN, Hershcovitch et al. 2024, and here), so the coder is plain order-0 rANS.
//!
//! ```text
//! [0]       form of the high plane: 0 as it is, 1 as `neap_kernels::rans::bytes` codes it, in one part
//! [1, 5)    its bytes here, u32 little-endian
//! [5]       form of the low plane
//! [6, 10)   its bytes here
//! [10, …)   high plane, low plane (the longer one of an odd number of bytes)
//! ```

use neap_kernels::Isa;
use neap_kernels::rans::bytes as rans;

use super::{BlockCodec, CodecError};
use crate::level::Level;

const HEAD_BYTES: usize = 10;

/// See the [module's description](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct Packed;

fn bad(offset: usize, reason: &'static str) -> CodecError {
    CodecError {
        codec: "packed",
        offset,
        reason,
    }
}

/// Encodes one plane into the start of `out`: its form and its bytes.
fn encode_plane(plane: &[u8], out: &mut [u8]) -> Result<(u8, usize), CodecError> {
    let room = out.len().min(plane.len());
    if let Some(bytes) = (room > 0)
        .then(|| rans::encode(Isa::best(), &[plane], &mut out[..room]))
        .flatten()
    {
        return Ok((1, bytes));
    }
    out.get_mut(..plane.len())
        .ok_or(bad(0, "too little room to encode"))?
        .copy_from_slice(plane);
    Ok((0, plane.len()))
}

fn decode_plane(form: u8, bytes: &[u8], at: usize, plane: &mut [u8]) -> Result<(), CodecError> {
    match form {
        0 if bytes.len() == plane.len() => {
            plane.copy_from_slice(bytes);
            Ok(())
        }
        0 => Err(bad(at, "a plane has another length than the block's")),
        1 if plane.is_empty() => Err(bad(at, "a plane of nothing is coded")),
        1 => rans::decode(Isa::best(), bytes, &mut [plane])
            .map_err(|error| bad(at + error.offset, error.reason)),
        _ => Err(bad(at, "unknown form of a plane")),
    }
}

fn read_head(head: &[u8]) -> (u8, usize) {
    (
        head[0],
        u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize,
    )
}

impl BlockCodec for Packed {
    fn id(&self) -> u16 {
        super::PACKED_ID
    }

    fn level(&self) -> Level {
        Level::Packed
    }

    fn max_encoded_bytes(&self, hot_bytes: usize) -> usize {
        hot_bytes.saturating_add(HEAD_BYTES)
    }

    fn scratch_bytes(&self, hot_bytes: usize) -> usize {
        // Two planes when encoding; one and the table of the coder when decoding.
        hot_bytes + 32 * 1024
    }

    fn encode(&self, hot: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        if out.len() < self.max_encoded_bytes(hot.len()) || u32::try_from(hot.len()).is_err() {
            return Err(bad(0, "too little room to encode"));
        }
        let (head, body) = out.split_at_mut(HEAD_BYTES);
        let (pairs, odd) = hot.as_chunks::<2>();
        let high: Vec<u8> = pairs.iter().map(|pair| pair[1]).collect();
        let (high_form, high_bytes) = encode_plane(&high, body)?;
        let mut low: Vec<u8> = pairs.iter().map(|pair| pair[0]).collect();
        low.extend_from_slice(odd);
        let (low_form, low_bytes) = encode_plane(&low, &mut body[high_bytes..])?;
        head[0] = high_form;
        head[1..5].copy_from_slice(&(high_bytes as u32).to_le_bytes());
        head[5] = low_form;
        head[6..10].copy_from_slice(&(low_bytes as u32).to_le_bytes());
        Ok(HEAD_BYTES + high_bytes + low_bytes)
    }

    fn decode(&self, encoded: &[u8], hot: &mut [u8]) -> Result<(), CodecError> {
        if encoded.len() < HEAD_BYTES {
            return Err(bad(encoded.len(), "the head is cut off"));
        }
        let (head, body) = encoded.split_at(HEAD_BYTES);
        let ((high_form, high_bytes), (low_form, low_bytes)) =
            (read_head(head), read_head(&head[5..]));
        if high_bytes.checked_add(low_bytes) != Some(body.len()) {
            return Err(bad(1, "the planes have another length than the body"));
        }
        let mut planes = vec![0; hot.len()];
        let (high, low) = planes.split_at_mut(hot.len() / 2);
        decode_plane(high_form, &body[..high_bytes], HEAD_BYTES, high)?;
        let at = HEAD_BYTES + high_bytes;
        decode_plane(low_form, &body[high_bytes..], at, low)?;
        let (pairs, odd) = hot.as_chunks_mut::<2>();
        for ((pair, &high), &low) in pairs.iter_mut().zip(&*high).zip(&*low) {
            *pair = [low, high];
        }
        if let ([last], Some(low)) = (odd, low.last()) {
            *last = *low;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(hot: &[u8]) -> usize {
        let mut encoded = vec![0; Packed.max_encoded_bytes(hot.len())];
        let bytes = Packed.encode(hot, &mut encoded).unwrap();
        let mut back = vec![0xEE; hot.len()];
        Packed.decode(&encoded[..bytes], &mut back).unwrap();
        assert_eq!(back, hot);
        bytes
    }

    /// Values like those of keys: sums of uniform ones, as bf16.
    fn bell(count: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut uniform = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count)
            .flat_map(|_| {
                let value: f32 = (0..8).map(|_| uniform()).sum();
                ((value.to_bits() >> 16) as u16).to_le_bytes()
            })
            .collect()
    }

    #[test]
    fn values_like_keys_shrink_and_noise_does_not_grow() {
        let bytes = round_trip(&bell(100_000));
        assert!(bytes < 200_000 * 78 / 100, "{bytes}");
        let mut state = 5u64;
        let noise: Vec<u8> = (0..10_000)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        assert!(round_trip(&noise) <= noise.len() + HEAD_BYTES);
        assert!(round_trip(&[0; 100_000]) < 1500);
    }

    #[test]
    fn too_little_room_is_an_error() {
        assert!(Packed.encode(&[0; 100], &mut [0; 100]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_bytes_come_back(
            values in 1..255u8,
            hot in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            let hot: Vec<u8> = hot.into_iter().map(|b| b % values).collect();
            round_trip(&hot);
        }

        #[test]
        fn damaged_bytes_never_panic(
            at in any::<prop::sample::Index>(),
            bit in 0..8u32,
            cut in any::<prop::sample::Index>(),
        ) {
            let hot = bell(1500);
            let mut encoded = vec![0; Packed.max_encoded_bytes(hot.len())];
            let bytes = Packed.encode(&hot, &mut encoded).unwrap();
            encoded.truncate(bytes);
            let mut back = vec![0; hot.len()];
            prop_assert!(Packed.decode(&encoded[..cut.index(bytes)], &mut back).is_err());
            prop_assert!(Packed.decode(&encoded, &mut back[..hot.len() - 2]).is_err());
            let at = at.index(bytes);
            encoded[at] ^= 1 << bit;
            // A flip may pass unnoticed here: the checksum of the record is what finds it.
            let _ = Packed.decode(&encoded, &mut back);
        }
    }
}
