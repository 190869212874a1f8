//! Adapters that the command line names.

use std::path::PathBuf;

use neap_engine::Engine;
use neap_model::adapter::{Adapter, AdapterError, AdapterFile};
use neap_model::decoder::CpuDecoder;
use neap_model::source::ModelSource;

use crate::failure::Failure;
use crate::loading::Parts;

/// An adapter and what requests call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedAdapter {
    pub name: String,
    pub path: PathBuf,
}

/// `NAME=PATH`, or a path whose last part is the name.
pub fn parse(text: &str) -> Result<NamedAdapter, String> {
    let (name, path) = match text.split_once('=') {
        Some((name, path)) => (name.to_owned(), PathBuf::from(path)),
        None => {
            let path = PathBuf::from(text);
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into());
            (name.unwrap_or_default(), path)
        }
    };
    match name.is_empty() || path.as_os_str().is_empty() {
        true => Err(format!("{text:?} is not NAME=PATH, or a path")),
        false => Ok(NamedAdapter { name, path }),
    }
}

/// Adds adapters to an engine, for the model in `source`.
pub fn add(
    engine: &mut Engine<CpuDecoder>,
    source: &ModelSource,
    adapters: &[NamedAdapter],
) -> Result<(), Failure> {
    for adapter in adapters {
        let file = AdapterFile::open(&adapter.path, source).map_err(|why| named(adapter, &why))?;
        engine.add_adapter(&adapter.name, file)?;
    }
    Ok(())
}

/// The weights of an adapter for a model that is loaded, without an engine.
pub fn load(lora: Option<&NamedAdapter>, parts: &Parts) -> Result<Option<Adapter>, Failure> {
    let load = |lora: &NamedAdapter| {
        AdapterFile::open(&lora.path, &parts.source)
            .and_then(|file| file.load(&parts.budget))
            .map_err(|why| named(lora, &why))
    };
    lora.map(load).transpose()
}

fn named(adapter: &NamedAdapter, why: &AdapterError) -> Failure {
    Failure::new(format!("--lora {}: {why}", adapter.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_have_names_and_paths() {
        let parsed = |text| parse(text).map(|a| (a.name, a.path.display().to_string()));
        let named = |name: &str, path: &str| Ok((name.to_owned(), path.to_owned()));
        assert_eq!(parsed("sql=a/b"), named("sql", "a/b"));
        assert_eq!(parsed("a/b.gguf"), named("b", "a/b.gguf"));
        assert_eq!(parsed("x=a=b"), named("x", "a=b"));
        assert!(parsed("=a").is_err() && parsed("a=").is_err() && parsed("").is_err());
    }
}
