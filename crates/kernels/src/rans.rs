//! Range asymmetric numeral systems (Duda 2013), interleaved so that vectors decode many symbols at once.
//!
//! [`nibbles`] codes rows of four-bit symbols by models that are part of the format, one for each row; [`bytes`] codes
//! bytes by tables that stand before them. Decoders take bytes that anybody may have written: they never panic, and what
//! they allocate does not depend on them. Streams that do not end where their symbols do are refused, but a damaged one
//! may pass: what stores them adds a checksum.

pub mod bytes;
pub mod nibbles;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod shuffles;

/// Coded bytes that are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at byte {offset}")]
pub struct RansError {
    /// Where in the coded bytes.
    pub offset: usize,
    /// What is wrong.
    pub reason: &'static str,
}

fn bad(offset: usize, reason: &'static str) -> RansError {
    RansError { offset, reason }
}

/// What a vector may need of a stream from `at` on, zeros where it has ended: then in `filled`. By reference, since bytes
/// that are moved are stored before they are loaded, and the vector waits for both.
#[inline(always)]
fn ahead<'a, const N: usize>(bytes: &'a [u8], at: usize, filled: &'a mut [u8; N]) -> &'a [u8; N] {
    if let Some(whole) = bytes.get(at..at + N).and_then(<[u8]>::first_chunk) {
        return whole;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    *filled = [0; N];
    filled[..rest.len()].copy_from_slice(rest);
    filled
}
