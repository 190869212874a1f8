//! A checked reader over bytes that nobody vouches for.

use std::fmt;

use crate::source::error::Fault;

/// The part of the file that is being read, for error messages.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field<'a> {
    /// A field of the fixed header.
    Header(&'static str),
    /// The key of the metadata entry with this number.
    Key(u64),
    /// The value under this key.
    Value(&'a str),
    /// The name of the tensor with this number.
    TensorName(u64),
    /// Something about the tensor with this name.
    Tensor(&'a str, &'static str),
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(what) => f.write_str(what),
            Self::Key(number) => write!(f, "key of metadata entry {number}"),
            Self::Value(key) => write!(f, "metadata '{key}'"),
            Self::TensorName(number) => write!(f, "name of tensor {number}"),
            Self::Tensor(name, what) => write!(f, "{what} of tensor '{name}'"),
        }
    }
}

/// Reads little-endian values one after the other; every read is checked against the end.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

macro_rules! read_number {
    ($($name:ident: $type:ty),+) => {$(
        pub(super) fn $name(&mut self, field: Field<'_>) -> Result<$type, Fault> {
            Ok(<$type>::from_le_bytes(self.array(field)?))
        }
    )+};
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn fault(&self, field: Field<'_>, reason: impl Into<String>) -> Fault {
        Fault::new(field, self.at, reason)
    }

    pub(super) fn take(&mut self, field: Field<'_>, len: usize) -> Result<&'a [u8], Fault> {
        if len > self.left() {
            let reason = format!("needs {len} bytes, but the file ends after {}", self.left());
            return Err(self.fault(field, reason));
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, field: Field<'_>) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }

    read_number!(u8: u8, u32: u32, u64: u64);

    /// A count of things that take at least `min_bytes` each: refused if the bytes left cannot hold them, so that it
    /// may be used to reserve memory.
    pub(super) fn count(&mut self, field: Field<'_>, min_bytes: usize) -> Result<usize, Fault> {
        let at = self.at;
        let count = self.u64(field)?;
        let most = self.left() / min_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(Fault::new(
                field,
                at,
                format!(
                    "says {count}, but the {} bytes left hold at most {most}",
                    self.left()
                ),
            )),
        }
    }

    /// A string: its length in 8 bytes, then UTF-8 text of at most `max_bytes`.
    pub(super) fn string(&mut self, field: Field<'_>, max_bytes: usize) -> Result<&'a str, Fault> {
        let at = self.at;
        let len = self.count(field, 1)?;
        if len > max_bytes {
            let reason = format!("is {len} bytes long; at most {max_bytes} are allowed");
            return Err(Fault::new(field, at, reason));
        }
        let start = self.at;
        let bytes = self.take(field, len)?;
        std::str::from_utf8(bytes)
            .map_err(|error| Fault::new(field, start + error.valid_up_to(), "is not UTF-8"))
    }
}
