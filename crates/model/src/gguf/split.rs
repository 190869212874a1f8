//! Models split over several files: `name-00001-of-00003.gguf`.

use std::path::{Path, PathBuf};

use super::header::Header;
use crate::source::error::ModelFileError;

const NUMBER_KEY: &str = "split.no";
const COUNT_KEY: &str = "split.count";
const TENSORS_KEY: &str = "split.tensors.count";

/// Where a file stands in a split model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// From 0.
    pub number: u32,
    /// At least 2.
    pub count: u32,
    /// Tensors in all files together, if the file says.
    pub tensors: Option<u64>,
}

/// Reads the `split.*` entries; none if the file is whole.
pub(super) fn read(header: &Header, path: &Path) -> Result<Option<Split>, ModelFileError> {
    let number = |key: &str| match header.value(key) {
        None => Ok(None),
        Some(value) => value.as_u32().map(Some).ok_or_else(|| {
            ModelFileError::config(path, key, "must be a whole number that is not negative")
        }),
    };
    let Some(count @ 2..) = number(COUNT_KEY)? else {
        return Ok(None);
    };
    let split = Split {
        number: number(NUMBER_KEY)?.unwrap_or(0),
        count,
        tensors: number(TENSORS_KEY)?.map(u64::from),
    };
    if split.number >= count {
        let reason = format!(
            "is {}, but there are only {count} files, from 0",
            split.number
        );
        return Err(ModelFileError::config(path, NUMBER_KEY, reason));
    }
    Ok(Some(split))
}

/// The paths of all files of the split model to which `path` belongs, in order.
pub(super) fn paths(path: &Path, split: Split) -> Result<Vec<PathBuf>, ModelFileError> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let suffix = suffix(split.number, split.count);
    let Some(prefix) = name.strip_suffix(&suffix) else {
        let reason = format!(
            "the file is one of {} and its name must end in '{suffix}' for the others to be found",
            split.count
        );
        return Err(ModelFileError::config(path, COUNT_KEY, reason));
    };
    // Lazily, so that a count of billions costs nothing before the first missing file is met.
    let mut paths = Vec::new();
    for number in 0..split.count {
        let part = path.with_file_name(format!("{prefix}{}", self::suffix(number, split.count)));
        if !part.is_file() {
            let reason = format!(
                "file {} of {}, {}, is missing",
                number + 1,
                split.count,
                part.display()
            );
            return Err(ModelFileError::config(path, COUNT_KEY, reason));
        }
        paths.push(part);
    }
    Ok(paths)
}

fn suffix(number: u32, count: u32) -> String {
    format!("-{:05}-of-{count:05}.gguf", u64::from(number) + 1)
}

/// Checks that a part is the part that its name says, of the same model.
pub(super) fn check_part(
    path: &Path,
    header: &Header,
    number: usize,
    whole: Split,
) -> Result<(), ModelFileError> {
    match read(header, path)? {
        Some(part) if part.number as usize == number && part.count == whole.count => Ok(()),
        Some(part) => Err(ModelFileError::config(
            path,
            NUMBER_KEY,
            format!(
                "is file {} of {}, where file {} of {} is expected",
                u64::from(part.number) + 1,
                part.count,
                number + 1,
                whole.count
            ),
        )),
        None => Err(ModelFileError::config(
            path,
            COUNT_KEY,
            "is missing: the file is not part of a split model",
        )),
    }
}

/// Checks the number of tensors in all files together.
pub(super) fn check_total(path: &Path, whole: Split, tensors: usize) -> Result<(), ModelFileError> {
    match whole.tensors {
        Some(expected) if expected != tensors as u64 => Err(ModelFileError::config(
            path,
            TENSORS_KEY,
            format!("says {expected}, but the files hold {tensors}"),
        )),
        _ => Ok(()),
    }
}
