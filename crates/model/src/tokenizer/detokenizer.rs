//! Turns tokens back into text, one at a time.

use super::Tokenizer;

/// How tokens are turned into text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetokenizeOptions {
    /// Leave control and unknown tokens out. User-defined tokens are text and always appear.
    pub skip_special: bool,
    /// The tokens are the beginning of a text, so that the space which encoding puts there is taken off again.
    /// Set it to false for tokens that continue a text, such as those a model generates after a prompt.
    pub at_start_of_text: bool,
}

impl Default for DetokenizeOptions {
    /// A whole text, without its special tokens.
    fn default() -> Self {
        Self {
            skip_special: true,
            at_start_of_text: true,
        }
    }
}

impl DetokenizeOptions {
    /// The continuation of a text, without special tokens: what a model generates.
    pub fn continuation() -> Self {
        Self {
            at_start_of_text: false,
            ..Self::default()
        }
    }
}

/// Turns a stream of tokens into text that is valid UTF-8 at every step.
///
/// A character that is spread over several tokens appears when its last byte has come. Bytes that can never become
/// a character appear as U+FFFD. All pieces joined are exactly [`Tokenizer::decode`] of all the tokens.
///
/// Holds at most three bytes and a reference to the vocabulary.
#[derive(Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    options: DetokenizeOptions,
    strip_space: bool,
    /// The beginning of a character whose end has not come.
    partial: Vec<u8>,
}

impl Detokenizer {
    /// Starts at no text.
    pub fn new(tokenizer: &Tokenizer, options: DetokenizeOptions) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            options,
            strip_space: options.at_start_of_text && tokenizer.adds_space_prefix(),
            partial: Vec::new(),
        }
    }

    /// Takes the next token; the text that is certain now, often a word, sometimes nothing.
    ///
    /// An id outside the vocabulary (models may have more outputs than tokens) gives no text.
    pub fn push(&mut self, id: u32) -> String {
        let mut out = String::new();
        self.push_to(id, &mut out);
        out
    }

    /// As [`Self::push`], appending to `out`.
    pub fn push_to(&mut self, id: u32, out: &mut String) {
        let special = self.tokenizer.is_special(id);
        if special && self.options.skip_special {
            return;
        }
        let mut bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
        if bytes.is_empty() {
            return;
        }
        if std::mem::take(&mut self.strip_space) && !special {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        if self.partial.is_empty()
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            out.push_str(text);
            return;
        }
        self.partial.extend_from_slice(bytes);
        self.take_complete(out);
    }

    /// Ends the text: what is left of a character that never became whole, as U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.partial);
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Whether bytes are held back that do not yet make a character.
    pub fn has_partial(&self) -> bool {
        !self.partial.is_empty()
    }

    fn take_complete(&mut self, out: &mut String) {
        let mut used = 0;
        loop {
            match std::str::from_utf8(&self.partial[used..]) {
                Ok(text) => {
                    out.push_str(text);
                    used = self.partial.len();
                    break;
                }
                Err(error) => {
                    let valid = used + error.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(&self.partial[used..valid]));
                    used = valid;
                    match error.error_len() {
                        Some(len) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            used += len;
                        }
                        None => break,
                    }
                }
            }
        }
        self.partial.drain(..used);
    }
}
