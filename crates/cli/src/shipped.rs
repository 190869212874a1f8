//! The small model inside the program.

use neap_model::gguf::GgufFile;
use neap_model::source::{ModelFileError, ModelSource};

/// How it is called where a path would stand.
pub const NAME: &str = "neap-tiny (the model inside neap)";

static BYTES: &[u8] = include_bytes!("../../../models/neap-tiny.gguf");

/// Opens it.
pub fn source() -> Result<ModelSource, ModelFileError> {
    ModelSource::from_gguf(gguf()?)
}

/// Its file.
pub fn gguf() -> Result<GgufFile, ModelFileError> {
    GgufFile::from_static(NAME, BYTES)
}
