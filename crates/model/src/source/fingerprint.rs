//! A short name for the contents of a model.

use std::fmt;

use neap_kernels::format::WeightFormat;

use super::{Container, ModelFileError};
use crate::safetensors::read_json;

/// A BLAKE3 hash that tells models apart without reading all of them: over the headers of the files (metadata, names,
/// shapes, formats and places of the tensors), their lengths, the configuration and tokenizer beside the weights, and
/// samples of every tensor. Neither paths nor times enter it.
///
/// It guards against mixing up models, not against someone who alters weights between the samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    /// Writes 64 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Taken from the start, the middle and the end of every tensor.
const SAMPLE_BYTES: usize = 4096;

/// With each sample the system maps as much around it as its cache holds in one piece: at most a huge page. Left there,
/// the samples of a 1 GB model were 300 MB of resident memory.
const MAPPED_AROUND: usize = 4 << 20;

pub(super) fn of(
    container: &Container,
    quantize: Option<WeightFormat>,
) -> Result<Fingerprint, ModelFileError> {
    let mut hasher = blake3::Hasher::new_derive_key("neap model fingerprint, version 1");
    for file in 0..container.file_count() {
        part(&mut hasher, container.header_bytes(file));
        hasher.update(&(container.file_bytes(file).len() as u64).to_le_bytes());
    }
    if let Container::HuggingFace(folder) = container {
        part(&mut hasher, folder.config_json());
        part(
            &mut hasher,
            folder.generation_config_json().unwrap_or_default(),
        );
        if let Some(quantize) = folder.quantize_config_json() {
            part(&mut hasher, quantize);
        }
        let tokenizer = match folder.tokenizer_json() {
            Some(path) => read_json(&path)?,
            None => Vec::new(),
        };
        part(&mut hasher, &tokenizer);
    }
    for info in container.tensors() {
        let (file, range) = (container.file_bytes(info.file), info.range());
        let bytes = &file[range.clone()];
        if bytes.len() <= 3 * SAMPLE_BYTES {
            hasher.update(bytes);
            continue;
        }
        for start in [
            0,
            bytes.len() / 2 - SAMPLE_BYTES / 2,
            bytes.len() - SAMPLE_BYTES,
        ] {
            hasher.update(&bytes[start..start + SAMPLE_BYTES]);
        }
        file.done_with(range.start.saturating_sub(MAPPED_AROUND)..range.end + MAPPED_AROUND);
    }
    if let Some(format) = quantize {
        part(&mut hasher, format.name().as_bytes());
    }
    Ok(Fingerprint(*hasher.finalize().as_bytes()))
}

/// Hashes a part after its length, so that parts cannot run into each other.
fn part(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
