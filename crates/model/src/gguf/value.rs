//! Metadata values: the 13 types of GGUF.

use super::cursor::{Cursor, Field};
use crate::source::error::Fault;

/// Arrays may lie in arrays this deep.
pub const MAX_ARRAY_DEPTH: usize = 4;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the variants say what they are
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array; all its elements are of one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(StringArray),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Many strings in one allocation: vocabularies have hundreds of thousands of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StringArray {
    text: String,
    ends: Vec<usize>,
}

impl StringArray {
    /// The number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = match index {
            0 => 0,
            _ => self.ends[index - 1],
        };
        Some(&self.text[start..end])
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + '_ {
        (0..self.len()).map(|index| self.get(index).unwrap_or_default())
    }

    /// Appends a string.
    pub fn push(&mut self, string: &str) {
        self.text.push_str(string);
        self.ends.push(self.text.len());
    }
}

impl<S: AsRef<str>> FromIterator<S> for StringArray {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut array = Self::default();
        for string in strings {
            array.push(string.as_ref());
        }
        array
    }
}

impl Value {
    /// A whole number that is not negative, of any integer type.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// A whole number from 0 to `u32::MAX`, of any integer type.
    pub fn as_u32(&self) -> Option<u32> {
        self.as_u64()?.try_into().ok()
    }

    /// A floating-point number; a 64-bit one is rounded.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Self::F32(value) => Some(value),
            Self::F64(value) => Some(value as f32),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(value) => Some(value),
            _ => None,
        }
    }

    /// An array of any type.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Self::Array(value) => Some(value),
            _ => None,
        }
    }

    /// An array of strings.
    pub fn as_strings(&self) -> Option<&StringArray> {
        match self {
            Self::Array(Array::String(value)) => Some(value),
            _ => None,
        }
    }

    /// An array of 32-bit floating-point numbers.
    pub fn as_f32s(&self) -> Option<&[f32]> {
        match self {
            Self::Array(Array::F32(value)) => Some(value),
            _ => None,
        }
    }

    /// An array of signed 32-bit numbers.
    pub fn as_i32s(&self) -> Option<&[i32]> {
        match self {
            Self::Array(Array::I32(value)) => Some(value),
            _ => None,
        }
    }

    /// The name of the type, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::F32(_) => "f32",
            Self::Bool(_) => "bool",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F64(_) => "f64",
        }
    }

    pub(super) fn type_id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }
}

impl Array {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::U16(values) => values.len(),
            Self::I16(values) => values.len(),
            Self::U32(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::String(values) => values.len(),
            Self::Array(values) => values.len(),
            Self::U64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::F64(values) => values.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn type_id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }
}

macro_rules! from {
    ($($type:ty => $variant:ident),+ $(,)?) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::$variant(value)
            }
        }
    )+};
}
from!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool, String => String,
    Array => Array, u64 => U64, i64 => I64, f64 => F64);

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

/// Reads a value: its type id, then its contents.
pub(super) fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, Fault> {
    let field = Field::Value(key);
    let at = cursor.at();
    let type_id = cursor.u32(field)?;
    Ok(match type_id {
        0 => Value::U8(cursor.u8(field)?),
        1 => Value::I8(i8::from_le_bytes(cursor.array(field)?)),
        2 => Value::U16(u16::from_le_bytes(cursor.array(field)?)),
        3 => Value::I16(i16::from_le_bytes(cursor.array(field)?)),
        4 => Value::U32(cursor.u32(field)?),
        5 => Value::I32(i32::from_le_bytes(cursor.array(field)?)),
        6 => Value::F32(f32::from_le_bytes(cursor.array(field)?)),
        7 => {
            let at = cursor.at();
            Value::Bool(bool_from_byte(cursor.u8(field)?, field, at)?)
        }
        8 => Value::String(cursor.string(field, usize::MAX)?.to_owned()),
        9 => Value::Array(read_array(cursor, key, 1)?),
        10 => Value::U64(cursor.u64(field)?),
        11 => Value::I64(i64::from_le_bytes(cursor.array(field)?)),
        12 => Value::F64(f64::from_le_bytes(cursor.array(field)?)),
        _ => {
            return Err(Fault::new(
                field,
                at,
                format!("unknown value type {type_id}"),
            ));
        }
    })
}

/// Reads an array: the type id of the elements, their number, the elements. `depth` is 1 for the outermost.
fn read_array(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<Array, Fault> {
    let field = Field::Value(key);
    let at = cursor.at();
    if depth > MAX_ARRAY_DEPTH {
        let reason = format!("arrays lie in arrays more than {MAX_ARRAY_DEPTH} deep");
        return Err(Fault::new(field, at, reason));
    }
    let type_id = cursor.u32(field)?;
    Ok(match type_id {
        0 => Array::U8(numbers(cursor, field, u8::from_le_bytes)?),
        1 => Array::I8(numbers(cursor, field, i8::from_le_bytes)?),
        2 => Array::U16(numbers(cursor, field, u16::from_le_bytes)?),
        3 => Array::I16(numbers(cursor, field, i16::from_le_bytes)?),
        4 => Array::U32(numbers(cursor, field, u32::from_le_bytes)?),
        5 => Array::I32(numbers(cursor, field, i32::from_le_bytes)?),
        6 => Array::F32(numbers(cursor, field, f32::from_le_bytes)?),
        7 => Array::Bool(read_bools(cursor, field)?),
        8 => Array::String(read_strings(cursor, field)?),
        9 => {
            let count = cursor.count(field, ARRAY_HEADER_BYTES)?;
            // Not reserved: an `Array` in memory is larger than the header of one in the file.
            let mut arrays = Vec::new();
            for _ in 0..count {
                arrays.push(read_array(cursor, key, depth + 1)?);
            }
            Array::Array(arrays)
        }
        10 => Array::U64(numbers(cursor, field, u64::from_le_bytes)?),
        11 => Array::I64(numbers(cursor, field, i64::from_le_bytes)?),
        12 => Array::F64(numbers(cursor, field, f64::from_le_bytes)?),
        _ => {
            return Err(Fault::new(
                field,
                at,
                format!("unknown value type {type_id} of array elements"),
            ));
        }
    })
}

/// A type id and a count.
const ARRAY_HEADER_BYTES: usize = 12;

fn numbers<T, const N: usize>(
    cursor: &mut Cursor<'_>,
    field: Field<'_>,
    decode: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>, Fault> {
    let count = cursor.count(field, N)?;
    let (elements, _) = cursor.take(field, count * N)?.as_chunks::<N>();
    Ok(elements.iter().map(|&element| decode(element)).collect())
}

fn read_bools(cursor: &mut Cursor<'_>, field: Field<'_>) -> Result<Vec<bool>, Fault> {
    let count = cursor.count(field, 1)?;
    let start = cursor.at();
    let bytes = cursor.take(field, count)?;
    let decode = |(i, &byte)| bool_from_byte(byte, field, start + i);
    bytes.iter().enumerate().map(decode).collect()
}

fn bool_from_byte(byte: u8, field: Field<'_>, at: usize) -> Result<bool, Fault> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Fault::new(
            field,
            at,
            format!("a truth value must be 0 or 1, not {byte}"),
        )),
    }
}

fn read_strings(cursor: &mut Cursor<'_>, field: Field<'_>) -> Result<StringArray, Fault> {
    const LENGTH_BYTES: usize = 8;
    let count = cursor.count(field, LENGTH_BYTES)?;
    // One pass to learn how long the text is, so that it is allocated once and exactly.
    let mut ahead = *cursor;
    let mut text_bytes = 0;
    for _ in 0..count {
        text_bytes += ahead.string(field, usize::MAX)?.len();
    }
    let mut strings = StringArray {
        text: String::with_capacity(text_bytes),
        ends: Vec::with_capacity(count),
    };
    for _ in 0..count {
        strings.push(cursor.string(field, usize::MAX)?);
    }
    Ok(strings)
}
