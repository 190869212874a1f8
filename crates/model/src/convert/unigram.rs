//! What GGUF files say of a Unigram vocabulary, out of `tokenizer.json`.

use serde_json::Value as Json;

use crate::gguf::{Array, Value};

pub(super) struct Unigram {
    /// Of every token of the model; of those that are no pieces 0.
    scores: Vec<f32>,
    /// SentencePiece's table of normalization, if there is one.
    charsmap: Vec<u8>,
    /// Whether spaces beyond one are left out.
    removes_extra_spaces: bool,
}

impl Unigram {
    /// Reads it, for a model of `count` tokens.
    ///
    /// # Errors
    /// A normalizer or a splitter that such files have no name for.
    pub fn read(json: &Json, count: usize) -> Result<Self, String> {
        let model = &json["model"];
        if model["byte_fallback"] == Json::Bool(true) {
            return Err("spells unknown characters in bytes, which is not converted".to_owned());
        }
        let mut scores = vec![0.0; count];
        let pieces = model["vocab"].as_array();
        for (score, piece) in scores.iter_mut().zip(pieces.into_iter().flatten()) {
            let given = piece[1].as_f64();
            let given = given.ok_or_else(|| format!("the piece {} has no score", piece[0]))?;
            *score = given as f32;
        }
        let mut unigram = Self {
            scores,
            charsmap: Vec::new(),
            removes_extra_spaces: false,
        };
        for part in parts(&json["normalizer"], "normalizers") {
            unigram.normalizer(part)?;
        }
        for part in parts(&json["pre_tokenizer"], "pretokenizers") {
            match part["type"].as_str() {
                Some("WhitespaceSplit") => unigram.removes_extra_spaces = true,
                Some("Metaspace") => {}
                other => return Err(unknown("pre-tokenizer", other)),
            }
        }
        Ok(unigram)
    }

    /// The entries `tokenizer.ggml.*` of the vocabulary, but for its tokens.
    pub fn put(self, put: &mut impl FnMut(&str, Value)) {
        put("model", Value::from("t5"));
        put("pre", Value::from("default"));
        put("scores", Value::Array(Array::F32(self.scores)));
        let squeezes = self.removes_extra_spaces;
        put("remove_extra_whitespaces", Value::Bool(squeezes));
        if !self.charsmap.is_empty() {
            let table = Array::U8(self.charsmap);
            put("precompiled_charsmap", Value::Array(table));
        }
    }

    fn normalizer(&mut self, part: &Json) -> Result<(), String> {
        match part["type"].as_str() {
            Some("Precompiled") => {
                let text = part["precompiled_charsmap"].as_str().unwrap_or_default();
                let bytes = decode_base64(text);
                self.charsmap = bytes.ok_or("its precompiled_charsmap is not base64")?;
            }
            // Runs of spaces become one; spaces at both ends go.
            Some("Replace") if part["pattern"]["Regex"] == " {2,}" => {
                self.removes_extra_spaces = true;
            }
            Some("Strip") => self.removes_extra_spaces = true,
            other => return Err(unknown("normalizer", other)),
        }
        Ok(())
    }
}

fn unknown(what: &str, name: Option<&str>) -> String {
    let name = name.unwrap_or_default();
    format!("its {what} '{name}' has no name in GGUF files")
}

/// A part of the file, or those of a sequence.
fn parts<'a>(part: &'a Json, list: &str) -> Vec<&'a Json> {
    match part["type"].as_str() {
        Some("Sequence") => part[list].as_array().into_iter().flatten().collect(),
        Some(_) => vec![part],
        None => Vec::new(),
    }
}

/// RFC 4648, with padding or without.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.as_bytes().chunks(4) {
        let mut bits = 0u32;
        for (place, byte) in group.iter().enumerate() {
            let six = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits |= u32::from(six) << (18 - 6 * place);
        }
        let whole = match group.len() {
            4 => 3,
            3 => 2,
            2 => 1,
            _ => return None,
        };
        out.extend_from_slice(&bits.to_be_bytes()[1..=whole]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYmFy", "foobar"),
        ] {
            assert_eq!(decode_base64(text), Some(bytes.into()), "{text}");
        }
        assert_eq!(decode_base64("+/+/"), Some(vec![0xFB, 0xFF, 0xBF]));
        assert!(decode_base64("Z").is_none() && decode_base64("Zg-=").is_none());
    }

    #[test]
    fn what_has_no_name_is_refused() {
        let vocab = json!([["<unk>", 0.0], ["a", -1.5]]);
        let read = |normalizer: Json, splitter: Json| {
            let model = json!({"type": "Unigram", "unk_id": 0, "vocab": vocab});
            let json = json!({"model": model, "normalizer": normalizer, "pre_tokenizer": splitter});
            Unigram::read(&json, 3)
        };
        let metaspace = json!({"type": "Metaspace"});
        let plain = read(Json::Null, metaspace.clone()).unwrap();
        assert_eq!(plain.scores, [0.0, -1.5, 0.0]);
        assert!(!plain.removes_extra_spaces);
        let pair =
            json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]});
        let mapped = json!({"type": "Precompiled", "precompiled_charsmap": "AAE="});
        let mapped = read(mapped, pair).unwrap();
        assert_eq!(
            (mapped.charsmap, mapped.removes_extra_spaces),
            (vec![0, 1], true)
        );
        assert!(
            read(json!({"type": "NFKC"}), Json::Null)
                .err()
                .unwrap()
                .contains("'NFKC'")
        );
        assert!(
            read(Json::Null, json!({"type": "Digits"}))
                .err()
                .unwrap()
                .contains("'Digits'")
        );
    }
}
