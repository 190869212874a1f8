//! How the tokens of a `tokenizer.json` are spelt, read from its decoder.

use hashbrown::HashMap;
use serde_json::Value;

use super::bpe::{byte_alphabet, decode_bytes};

/// What the text of a token in the file contributes to a decoded text.
pub(crate) struct Spelling {
    steps: Vec<Step>,
    /// Tokens like `<0x0A>` are single bytes.
    pub byte_fallback: bool,
    /// Decoding takes a space off the beginning of a text.
    pub strips_space: bool,
}

enum Step {
    /// GPT-2's alphabet of bytes.
    Bytes(HashMap<char, u8>),
    Replace {
        from: String,
        to: String,
    },
    /// WordPiece: a space before every token that has not this prefix.
    Words {
        prefix: String,
    },
}

impl Spelling {
    /// Reads a decoder; the error names one that is not known.
    pub fn read(decoder: Option<&Value>) -> Result<Self, String> {
        let mut spelling = Self {
            steps: Vec::new(),
            byte_fallback: false,
            strips_space: false,
        };
        match decoder {
            Some(decoder) if !decoder.is_null() => spelling.add(decoder, 0)?,
            // Without a decoder, tokens are words.
            _ => spelling.add_words(String::new()),
        }
        Ok(spelling)
    }

    fn add(&mut self, decoder: &Value, depth: usize) -> Result<(), String> {
        let text = |field: &str| decoder.get(field).and_then(Value::as_str);
        let kind = text("type").ok_or("decoder.type: missing")?;
        match kind {
            "Sequence" if depth < 4 => {
                let parts = decoder.get("decoders").and_then(Value::as_array);
                for part in parts.into_iter().flatten() {
                    self.add(part, depth + 1)?;
                }
            }
            "ByteLevel" => self.steps.push(Step::Bytes(byte_alphabet())),
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => {}
            "Replace" => {
                let from = decoder.pointer("/pattern/String").and_then(Value::as_str);
                let from = from.ok_or("decoder.pattern: only plain strings are supported")?;
                self.replace(from, text("content").unwrap_or_default());
            }
            "Metaspace" => {
                self.replace(text("replacement").unwrap_or("\u{2581}"), " ");
                let never = text("prepend_scheme") == Some("never")
                    || decoder.get("add_prefix_space") == Some(&Value::Bool(false));
                self.strips_space |= !never;
            }
            "Strip" => {
                let start = decoder.get("start").and_then(Value::as_u64).unwrap_or(0);
                self.strips_space |= text("content") == Some(" ") && start > 0;
            }
            "WordPiece" => self.add_words(text("prefix").unwrap_or("##").to_owned()),
            "BPEDecoder" => self.replace(text("suffix").unwrap_or("</w>"), " "),
            other => return Err(format!("decoder.type: {other:?} is not supported")),
        }
        Ok(())
    }

    fn add_words(&mut self, prefix: String) {
        self.steps.push(Step::Words { prefix });
        self.strips_space = true;
    }

    fn replace(&mut self, from: &str, to: &str) {
        if !from.is_empty() {
            self.steps.push(Step::Replace {
                from: from.to_owned(),
                to: to.to_owned(),
            });
        }
    }

    /// The bytes that a token spelt `text` contributes.
    pub fn surface(&self, text: &str) -> Vec<u8> {
        let mut text = text.to_owned();
        for step in &self.steps {
            match step {
                Step::Bytes(alphabet) => {
                    return decode_bytes(text.as_bytes(), alphabet)
                        .unwrap_or_else(|| text.into_bytes());
                }
                Step::Replace { from, to } => text = text.replace(from, to),
                Step::Words { prefix } => {
                    text = match text.strip_prefix(prefix.as_str()) {
                        Some(rest) if !prefix.is_empty() => rest.to_owned(),
                        _ => format!(" {text}"),
                    }
                }
            }
        }
        text.into_bytes()
    }
}
