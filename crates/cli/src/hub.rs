//! Models of a hub by their names, `OWNER/NAME[:FILE]`, and the cache of them that Hugging Face's own tools share:
//!
//! ```text
//! models--OWNER--NAME/blobs/ETAG              contents, by checksum
//! models--OWNER--NAME/refs/REVISION           the commit that a branch or tag was at
//! models--OWNER--NAME/snapshots/COMMIT/FILE   links to blobs
//! ```

pub mod download;
pub mod listing;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Where models are, if nothing else is said.
pub const HUB: &str = "https://huggingface.co";
/// The revision that is meant if none is named.
pub const MAIN: &str = "main";
/// Longest part of a name.
const MAX_NAME_BYTES: usize = 96;

/// A model of the hub, or one file of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    pub owner: String,
    pub name: String,
    /// A file's path within, or a part of its name, such as `Q4_K_M`.
    pub file: Option<String>,
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}

impl ModelName {
    /// Reads `OWNER/NAME[:FILE]`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is not OWNER/NAME, or OWNER/NAME:FILE");
        let (model, file) = match text.split_once(':') {
            Some((model, file)) => (model, Some(file)),
            None => (text, None),
        };
        let (owner, name) = model.split_once('/').ok_or_else(refused)?;
        let file_is_plain = file.is_none_or(is_plain_path);
        if !is_plain_name(owner) || !is_plain_name(name) || !file_is_plain {
            return Err(refused());
        }
        Ok(Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            file: file.map(str::to_owned),
        })
    }

    /// `OWNER/NAME`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

/// A part of a model's name: also a folder's name on every system.
fn is_plain_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.starts_with('.')
        && !name.contains("--")
        && name.chars().all(is_plain)
}

/// A path that stays within its folder, on every system.
pub fn is_plain_path(path: &str) -> bool {
    let is_plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .chars()
                .all(|c| !c.is_control() && !r#"\:*?"<>|"#.contains(c))
    };
    path.len() <= 512 && path.split('/').all(is_plain)
}

/// The cache of models.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The one in `folder`, or in the usual place.
    pub fn new(folder: Option<&Path>) -> Result<Self, Failure> {
        let usual = || Some(std::env::home_dir()?.join(".cache/huggingface/hub"));
        let root = folder.map(Path::to_owned).or_else(usual);
        let root = root.ok_or_else(|| {
            Failure::new("there is no home directory to keep models in: give --cache")
        })?;
        Ok(Self { root })
    }

    pub fn folder(&self, model: &ModelName) -> PathBuf {
        let name = format!("models--{}--{}", model.owner, model.name);
        self.root.join(name)
    }

    /// The folder of the commit that `revision` was at when it was last asked for, or of the commit itself.
    pub fn snapshot(&self, model: &ModelName, revision: &str) -> Option<PathBuf> {
        let folder = self.folder(model);
        let commit = std::fs::read_to_string(folder.join("refs").join(revision));
        let commit = commit.unwrap_or_else(|_| revision.to_owned());
        let commit = commit.trim();
        let snapshot = is_plain_name(commit).then(|| folder.join("snapshots").join(commit))?;
        snapshot.is_dir().then_some(snapshot)
    }
}

/// What `--model` means: a path, or where no such path is, a model of the cache.
pub fn find(model: &Path) -> Result<PathBuf, Failure> {
    if model.exists() {
        return Ok(model.to_owned());
    }
    let Some(named) = model.to_str().and_then(|text| ModelName::parse(text).ok()) else {
        // Whoever opens it says what is wrong.
        return Ok(model.to_owned());
    };
    let cache = Cache::new(None)?;
    let Some(snapshot) = cache.snapshot(&named, MAIN) else {
        return Err(Failure::new(format!(
            "there is no file {named}, nor a model of this name in {}: `neap pull {named}` gets it",
            cache.root.display()
        )));
    };
    in_snapshot(&named, &snapshot)
}

/// The file to open of a model, or the folder.
pub fn in_snapshot(model: &ModelName, snapshot: &Path) -> Result<PathBuf, Failure> {
    let names = files_below(snapshot);
    if model.file.is_none() && names.iter().any(|name| name == "config.json") {
        let weights = |name: &String| name.ends_with(".safetensors");
        if names.iter().any(weights) {
            return Ok(snapshot.to_owned());
        }
    }
    let chosen = listing::choose_gguf(&names, model.file.as_deref());
    match chosen.map(|files| files.into_iter().next()) {
        Ok(Some(first)) => Ok(snapshot.join(first)),
        Ok(None) | Err(_) if names.is_empty() => Err(Failure::new(format!(
            "nothing of {model} is in {}: `neap pull {model}` gets it",
            snapshot.display()
        ))),
        Ok(None) => Err(Failure::new(format!(
            "{} holds no model that neap reads",
            snapshot.display()
        ))),
        Err(why) => Err(Failure::new(format!(
            "{model} is not in {}: {why}; `neap pull {model}` gets it",
            snapshot.display()
        ))),
    }
}

/// Names of files within a folder, with `/` between folders, sorted.
fn files_below(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        for entry in entries {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let path = entry.path();
            if path.is_dir() {
                folders.push((path, format!("{name}/")));
            } else if path.is_file() {
                // Not a link to a blob that is gone.
                names.push(name);
            }
        }
    }
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let name = |text| ModelName::parse(text).map(|m| (m.repository(), m.file));
        let named =
            |model: &str, file: Option<&str>| Ok((model.to_owned(), file.map(str::to_owned)));
        assert_eq!(name("a/b.c-d"), named("a/b.c-d", None));
        assert_eq!(name("a/b:x/y.gguf"), named("a/b", Some("x/y.gguf")));
        for bad in [
            "a", "a/", "/b", "a/b/c", "../b", "a/..", "a/b:", "a/b:../c", "a/b:/c", "a/b:c//d",
            "a--x/b", "a/b\\c", "a/b:c\\d",
        ] {
            assert!(ModelName::parse(bad).is_err(), "{bad}");
        }
    }
}
