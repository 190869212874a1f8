//! The header of a safetensors file.

use std::fmt;

use neap_kernels::format::WeightFormat;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::source::error::{Fault, git_lfs_pointer};
use crate::source::tensor::{Stored, TensorInfo, tensor_bytes};

const LENGTH_BYTES: usize = 8;
const MAX_HEADER_BYTES: u64 = 100 << 20; // the reference implementation's limit
const MAX_DIMENSIONS: usize = 8;

/// What a header says, checked against the length of the file.
#[derive(Debug)]
pub(super) struct Header {
    /// In the order of the data.
    pub tensors: Vec<TensorInfo>,
    /// Where the data begins.
    pub end: usize,
}

/// Reads and checks the header of the file whose contents are `bytes`; `file` is its number in the model.
pub(super) fn parse(bytes: &[u8], file: usize) -> Result<Header, Fault> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        let reason = format!(
            "needs {LENGTH_BYTES} bytes, but the file ends after {}",
            bytes.len()
        );
        return Err(Fault::new("header length", 0, reason));
    };
    if let Some(reason) = git_lfs_pointer(bytes) {
        return Err(Fault::new("header length", 0, reason));
    }
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        let reason = format!("says {length}; at most {MAX_HEADER_BYTES} are allowed");
        return Err(Fault::new("header length", 0, reason));
    }
    if length > rest.len() as u64 {
        let left = rest.len();
        let reason = format!("says {length} bytes, and the file ends after {left}: it is cut off");
        return Err(Fault::new("header length", 0, reason));
    }
    let (json, data) = rest.split_at(length as usize);
    let entries: Entries = serde_json::from_slice(json).map_err(|error| {
        let at = LENGTH_BYTES + byte_offset(json, error.line(), error.column());
        Fault::new("header", at, error.to_string())
    })?;
    let end = bytes.len() - data.len();
    Ok(Header {
        tensors: place(entries.0, end, data.len(), file)?,
        end,
    })
}

/// The offset of a line and column (both from 1) of a text.
fn byte_offset(text: &[u8], line: usize, column: usize) -> usize {
    let before: usize = text
        .split_inclusive(|&byte| byte == b'\n')
        .take(line.saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    (before + column.saturating_sub(1)).min(text.len())
}

/// One tensor as the header gives it.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The header's object as a list: a map would hide names that appear twice.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entries, M::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let entry = map.next_value()?;
                        entries.push((name, entry));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// What a type is read as, and how it stands in the file.
fn format(dtype: &str) -> Result<(WeightFormat, Stored), String> {
    match dtype {
        "F32" => Ok((WeightFormat::F32, Stored::AsFormat)),
        "F16" => Ok((WeightFormat::F16, Stored::AsFormat)),
        "BF16" => Ok((WeightFormat::BF16, Stored::AsFormat)),
        // Times their scales these are read as BF16, which holds their fractions exactly.
        "F8_E4M3" => Ok((WeightFormat::BF16, Stored::F8E4M3)),
        "F8_E5M2" => Ok((WeightFormat::BF16, Stored::F8E5M2)),
        "I32" => Ok((WeightFormat::F32, Stored::I32)),
        "F64" | "F8_E8M0" | "F4" | "F6_E2M3" | "F6_E3M2" | "I64" | "U64" | "U32" | "I16"
        | "U16" | "I8" | "U8" | "BOOL" | "C64" => Err(format!(
            "{dtype} is not supported (F32, F16, BF16, F8_E4M3, F8_E5M2 and packed I32 are)"
        )),
        other => Err(format!("the type '{other}' is not known")),
    }
}

/// Whether a tensor only repeats what follows from the configuration.
pub(super) fn is_derived(name: &str) -> bool {
    let ends = [
        ".position_ids",
        ".attn.bias",
        ".attn.masked_bias",
        ".attention.bias",
        ".attention.masked_bias",
    ];
    ends.iter().any(|end| name.ends_with(end))
}

/// Turns offsets from the start of the data into offsets from the start of the file, and checks that every tensor
/// lies in the data, as long as its shape says, apart from all others, under its own name.
fn place(
    entries: Vec<(String, Entry)>,
    data_start: usize,
    data_bytes: usize,
    file: usize,
) -> Result<Vec<TensorInfo>, Fault> {
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let fault = |reason: String| Fault::new(format!("tensor '{name}'"), LENGTH_BYTES, reason);
        let (format, stored) = match format(&entry.dtype) {
            Ok(known) => known,
            // Masks and positions, which some files keep beside the weights, are computed.
            Err(_) if is_derived(&name) => continue,
            Err(reason) => return Err(fault(reason)),
        };
        if entry.shape.len() > MAX_DIMENSIONS {
            let reason = format!("has {} dimensions", entry.shape.len());
            return Err(fault(reason));
        }
        // A scalar is a list of one.
        let shape = if entry.shape.is_empty() {
            vec![1]
        } else {
            entry.shape
        };
        let bytes = tensor_bytes(format, &shape).map_err(fault)?;
        let bytes = match stored {
            Stored::AsFormat | Stored::I32 => bytes,
            Stored::F8E4M3 | Stored::F8E5M2 => bytes / format.block_bytes(),
        };
        let (begin, end) = entry.data_offsets;
        if begin > end || end > data_bytes {
            return Err(fault(format!(
                "data_offsets {begin}..{end} do not lie within the {data_bytes} bytes of data"
            )));
        }
        if end - begin != bytes {
            return Err(fault(format!(
                "data_offsets {begin}..{end} hold {} bytes, but {} of shape {:?} takes {bytes}",
                end - begin,
                entry.dtype,
                shape
            )));
        }
        tensors.push(TensorInfo {
            name,
            shape,
            format,
            stored,
            file,
            offset: data_start + begin,
            bytes,
        });
    }
    check_apart(&mut tensors)?;
    Ok(tensors)
}

/// Sorts the tensors by their place and checks that none overlaps another or has its name.
fn check_apart(tensors: &mut [TensorInfo]) -> Result<(), Fault> {
    let fault = |info: &TensorInfo, reason: String| {
        Err(Fault::new(
            format!("tensor '{}'", info.name),
            LENGTH_BYTES,
            reason,
        ))
    };
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return fault(&pair[1], "appears twice".to_owned());
    }
    tensors.sort_by_key(|tensor| tensor.offset);
    for pair in tensors.windows(2) {
        if pair[0].range().end > pair[1].offset {
            let reason = format!("its data overlaps that of tensor '{}'", pair[0].name);
            return fault(&pair[1], reason);
        }
    }
    Ok(())
}
