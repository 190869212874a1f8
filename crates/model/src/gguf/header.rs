//! The header of a GGUF file: from the magic to the start of the tensor data.
//!
//! ```text
//! | "GGUF" | version u32 | tensors u64 | entries u64 | entries × (key, type, value) | tensors × info | padding | data
//! info = | name | dimensions u32 | dimensions × u64, innermost first | type u32 | offset from the data u64 |
//! ```

use neap_kernels::format::WeightFormat;

use super::cursor::{Cursor, Field};
use super::ggml_type;
use super::value::{Value, read_value};
use crate::source::error::{Fault, git_lfs_pointer};
use crate::source::tensor::{NameIndex, Stored, TensorInfo, tensor_bytes};

/// The offset of tensor data is a multiple of this unless the file says otherwise.
pub(super) const DEFAULT_ALIGNMENT: usize = 32;
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
const MAX_KEY_BYTES: usize = 65_535; // the specification's limit
const MAX_TENSOR_NAME_BYTES: usize = 1024; // 64 in the specification, more in the wild
pub(super) const MAX_DIMENSIONS: u32 = 4;
pub(super) const MAX_ALIGNMENT: usize = 1 << 20;
/// Key length, a key of one byte, type, a value of one byte.
const MIN_ENTRY_BYTES: usize = 8 + 1 + 4 + 1;
/// Name length, a name of one byte, number of dimensions, one dimension, type, offset.
const MIN_INFO_BYTES: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// What a header says, checked against the length of the file.
#[derive(Debug)]
pub(super) struct Header {
    pub version: u32,
    pub metadata: Vec<(String, Value)>,
    pub metadata_index: NameIndex,
    pub tensors: Vec<TensorInfo>,
    pub alignment: usize,
    /// Where the header ends, before the padding.
    pub end: usize,
}

impl Header {
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        let found = self.metadata_index.find(|i| &self.metadata[i].0, key)?;
        Some(&self.metadata[found].1)
    }
}

/// Reads and checks the header of the file whose contents are `bytes`; `file` is its number in a split model.
pub(super) fn parse(bytes: &[u8], file: usize) -> Result<Header, Fault> {
    if let Some(reason) = git_lfs_pointer(bytes) {
        return Err(Fault::new("magic", 0, reason));
    }
    let mut cursor = Cursor::new(bytes);
    let version = read_version(&mut cursor)?;
    let tensor_count_at = cursor.at();
    let tensor_count = cursor.u64(Field::Header("tensor count"))?;
    let entry_count = cursor.count(Field::Header("metadata count"), MIN_ENTRY_BYTES)?;
    if tensor_count > (cursor.left() / MIN_INFO_BYTES) as u64 {
        return Err(Fault::new(
            "tensor count",
            tensor_count_at,
            format!(
                "says {tensor_count}, but the {} bytes left hold at most {}",
                cursor.left(),
                cursor.left() / MIN_INFO_BYTES
            ),
        ));
    }
    let mut header = read_metadata(&mut cursor, entry_count)?;
    header.version = version;
    let mut infos = Vec::new();
    for number in 0..tensor_count {
        infos.push(read_info(&mut cursor, number)?);
    }
    header.end = cursor.at();
    header.tensors = place(infos, &header, bytes.len(), file)?;
    Ok(header)
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, Fault> {
    let magic: [u8; 4] = cursor.array(Field::Header("magic"))?;
    if magic != MAGIC {
        let what = match &magic {
            b"lmgg" | b"fmgg" | b"tjgg" | b"algg" => {
                "is an old GGML file; convert it to GGUF first"
            }
            _ => "is not a GGUF file: it does not start with \"GGUF\"",
        };
        return Err(Fault::new("magic", 0, what));
    }
    let at = cursor.at();
    let version = cursor.u32(Field::Header("version"))?;
    let reason = match version {
        2 | 3 => return Ok(version),
        1 => "GGUF version 1 is not supported (2 and 3 are); convert the file again".to_owned(),
        _ if version != 0 && version & 0xffff == 0 => {
            "is a big-endian GGUF file; only little-endian ones are supported".to_owned()
        }
        _ => format!("GGUF version {version} is not supported (2 and 3 are)"),
    };
    Err(Fault::new("version", at, reason))
}

fn read_metadata(cursor: &mut Cursor<'_>, count: usize) -> Result<Header, Fault> {
    let mut alignment = DEFAULT_ALIGNMENT;
    let mut metadata = Vec::new();
    let mut offsets = Vec::new();
    for number in 0..count {
        let at = cursor.at();
        let field = Field::Key(number as u64);
        let key = cursor.string(field, MAX_KEY_BYTES)?;
        if key.is_empty() {
            return Err(Fault::new(field, at, "is empty"));
        }
        let value = read_value(cursor, key)?;
        if key == ALIGNMENT_KEY {
            alignment = read_alignment(&value)
                .map_err(|reason| Fault::new(Field::Value(key), at, reason))?;
        }
        metadata.push((key.to_owned(), value));
        offsets.push(at);
    }
    match NameIndex::build(|i| &metadata[i].0, metadata.len()) {
        Ok(metadata_index) => Ok(Header {
            version: 0,
            metadata,
            metadata_index,
            tensors: Vec::new(),
            alignment,
            end: 0,
        }),
        Err(again) => Err(Fault::new(
            Field::Value(&metadata[again].0),
            offsets[again],
            "the key appears twice",
        )),
    }
}

fn read_alignment(value: &Value) -> Result<usize, String> {
    match value.as_u32().map(|value| value as usize) {
        Some(value) if value.is_power_of_two() && value <= MAX_ALIGNMENT => Ok(value),
        _ => Err(format!(
            "must be a power of two up to {MAX_ALIGNMENT}, not {value:?}"
        )),
    }
}

/// A tensor info as read; `offset` still counts from the start of the data.
struct RawInfo<'a> {
    name: &'a str,
    shape: Vec<usize>,
    format: WeightFormat,
    offset: u64,
    bytes: usize,
    /// Where the info lies in the file.
    at: usize,
}

fn read_info<'a>(cursor: &mut Cursor<'a>, number: u64) -> Result<RawInfo<'a>, Fault> {
    let at = cursor.at();
    let name = cursor.string(Field::TensorName(number), MAX_TENSOR_NAME_BYTES)?;
    if name.is_empty() {
        return Err(Fault::new(Field::TensorName(number), at, "is empty"));
    }
    let dims_at = cursor.at();
    let dims_field = Field::Tensor(name, "dimensions");
    let dims = cursor.u32(dims_field)?;
    if dims == 0 || dims > MAX_DIMENSIONS {
        let reason = format!("there must be 1 to {MAX_DIMENSIONS}, not {dims}");
        return Err(Fault::new(dims_field, dims_at, reason));
    }
    let mut shape = Vec::with_capacity(dims as usize);
    for _ in 0..dims {
        let at = cursor.at();
        let dim = cursor.u64(dims_field)?;
        let dim = usize::try_from(dim)
            .map_err(|_| Fault::new(dims_field, at, format!("{dim} is too large")))?;
        shape.push(dim);
    }
    shape.reverse();
    let type_at = cursor.at();
    let type_id = cursor.u32(Field::Tensor(name, "type"))?;
    let format = ggml_type::format(type_id)
        .map_err(|reason| Fault::new(Field::Tensor(name, "type"), type_at, reason))?;
    let bytes =
        tensor_bytes(format, &shape).map_err(|reason| Fault::new(dims_field, dims_at, reason))?;
    let offset = cursor.u64(Field::Tensor(name, "offset"))?;
    Ok(RawInfo {
        name,
        shape,
        format,
        offset,
        bytes,
        at,
    })
}

/// Turns offsets from the start of the data into offsets from the start of the file, and checks that every tensor
/// lies in the file, aligned, apart from all others, under its own name.
fn place(
    infos: Vec<RawInfo<'_>>,
    header: &Header,
    file_bytes: usize,
    file: usize,
) -> Result<Vec<TensorInfo>, Fault> {
    if let Err(again) = NameIndex::build(|i| infos[i].name, infos.len()) {
        let info = &infos[again];
        return Err(Fault::new(
            Field::Tensor(info.name, "name"),
            info.at,
            "another tensor has it too",
        ));
    }
    let data_start = header.end.next_multiple_of(header.alignment) as u64;
    let mut tensors = Vec::with_capacity(infos.len());
    for info in &infos {
        let fault =
            |reason: String| Fault::new(Field::Tensor(info.name, "offset"), info.at, reason);
        if info.offset % header.alignment as u64 != 0 {
            return Err(fault(format!(
                "{} is no multiple of the alignment, {}",
                info.offset, header.alignment
            )));
        }
        let end = data_start
            .checked_add(info.offset)
            .and_then(|start| start.checked_add(info.bytes as u64));
        if end.is_none_or(|end| end > file_bytes as u64) {
            return Err(fault(format!(
                "its {} bytes from {} of the data on reach past the end of the file ({file_bytes} bytes, data from {data_start} on)",
                info.bytes, info.offset
            )));
        }
        tensors.push(TensorInfo {
            name: info.name.to_owned(),
            shape: info.shape.clone(),
            format: info.format,
            stored: Stored::AsFormat,
            file,
            offset: (data_start + info.offset) as usize,
            bytes: info.bytes,
        });
    }
    let mut by_offset: Vec<usize> = (0..tensors.len()).collect();
    by_offset.sort_by_key(|&i| (tensors[i].offset, i));
    for pair in by_offset.windows(2) {
        let (before, after) = (&tensors[pair[0]], &tensors[pair[1]]);
        if before.offset + before.bytes > after.offset {
            return Err(Fault::new(
                Field::Tensor(&after.name, "offset"),
                infos[pair[1]].at,
                format!("it overlaps tensor '{}'", before.name),
            ));
        }
    }
    Ok(tensors)
}
