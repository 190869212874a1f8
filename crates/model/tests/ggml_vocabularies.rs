//! The vocabulary-only GGUF files that llama.cpp publishes tokenize its test strings as it says.
//!
//! They are not in this repository (76 MB). Set `NEAP_GGML_VOCABULARIES` to a folder that holds `ggml-vocab-*.gguf`
//! with their `.inp` and `.out` files (llama.cpp's folder `models`); without it the test says so and does nothing.

use std::path::{Path, PathBuf};

use neap_model::gguf::GgufFile;
use neap_model::tokenizer::{DetokenizeOptions, EncodeOptions, Tokenizer, TokenizerError};

const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// The number of strings that came out differently.
fn check(path: &Path) -> Result<usize, String> {
    let file = GgufFile::open(path).map_err(|error| error.to_string())?;
    let tokenizer = match Tokenizer::from_gguf(&file) {
        // One of the files is older than the key, and its architecture does not tell the splitter.
        Err(TokenizerError::Missing { field }) if field == "tokenizer.ggml.pre" => {
            println!("{}: refused, {field} is missing", path.display());
            return Ok(0);
        }
        other => other.map_err(|error| error.to_string())?,
    };
    let Ok(input) = std::fs::read_to_string(with_suffix(path, ".inp")) else {
        println!("{}: loaded, no test strings", path.display());
        return Ok(0);
    };
    let output = std::fs::read_to_string(with_suffix(path, ".out")).unwrap();
    let options = EncodeOptions {
        add_bos: false,
        parse_special: false,
    };
    let lines: Vec<&str> = output.lines().collect();
    let mut texts: Vec<&str> = input.split(SEPARATOR).collect();
    if texts.len() == lines.len() + 1 && texts.last() == Some(&"") {
        texts.pop(); // Some of the files end with a separator.
    }
    assert_eq!(texts.len(), lines.len(), "{}", path.display());
    let mut different = 0;
    for (text, line) in texts.iter().zip(lines) {
        let expected: Vec<u32> = line
            .split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect();
        let ids = tokenizer.encode(text, options).unwrap();
        if ids != expected {
            different += 1;
            let spell = |ids: &[u32]| -> Vec<String> {
                let text = |id: &u32| tokenizer.token_text(*id).unwrap_or_default();
                ids.iter().map(text).collect()
            };
            let (got, wanted) = (spell(&ids), spell(&expected));
            println!("{}: {text:?}\n  {got:?}\n  {wanted:?}", path.display());
        }
        let decoded = tokenizer.decode(&ids, DetokenizeOptions::default());
        if tokenizer.model() != "bert" && decoded != *text {
            different += 1;
            println!("{}: {text:?} decodes to {decoded:?}", path.display());
        }
    }
    println!(
        "{}: {} strings, {different} different",
        path.display(),
        texts.len()
    );
    Ok(different)
}

#[test]
fn published_vocabularies_tokenize_as_published() {
    let Ok(folder) = std::env::var("NEAP_GGML_VOCABULARIES") else {
        println!("skipped: NEAP_GGML_VOCABULARIES is not set");
        return;
    };
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "gguf")
        })
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    let mut failures = Vec::new();
    for path in paths {
        match check(&path) {
            Ok(0) => {}
            Ok(count) => failures.push(format!("{}: {count} different", path.display())),
            Err(error) => failures.push(format!("{}: {error}", path.display())),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
