//! Texts to learn from: JSON lines and CoNLL files.

use neap_model::chat::{ChatError, ChatMessage, ChatTemplate, RenderOptions};
use neap_model::tokenizer::{EncodeOptions, Tokenizer, TokenizerError};
use serde::Deserialize;

use crate::conll;

/// Tokens, and which of them are to be learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The text.
    pub tokens: Vec<u32>,
    /// Runs of tokens that are to be learned, in order; none begins at 0, and none is empty.
    runs: Vec<(usize, usize)>,
}

impl Example {
    /// The places of the tokens that are to be learned.
    pub(crate) fn learned(&self) -> impl Iterator<Item = usize> {
        self.runs.iter().flat_map(|&(first, end)| first..end)
    }

    /// How many tokens are to be learned.
    pub fn learned_tokens(&self) -> usize {
        self.learned().count()
    }

    /// Cut to so many tokens; nothing if none of those is to be learned.
    fn cut(mut self, most: usize) -> Option<Self> {
        self.tokens.truncate(most);
        self.runs.retain_mut(|(first, end)| {
            *end = (*end).min(most);
            *first < *end
        });
        (!self.runs.is_empty()).then_some(self)
    }
}

/// Why a text makes no examples.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct TextError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// A line of a JSON file: one of three forms.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    /// A conversation, of which what the assistant says is learned.
    Messages { messages: Vec<ChatMessage> },
    /// A completion that is learned, and what stands before it.
    Completion { prompt: String, completion: String },
    /// A text that is learned whole.
    Text { text: String },
}

/// Turns files into examples.
pub struct Reader<'a> {
    /// The model's.
    pub tokenizer: &'a Tokenizer,
    /// How conversations are written.
    pub template: &'a ChatTemplate,
    /// Longer examples are cut.
    pub max_tokens: usize,
    /// Examples of which nothing was left to be learned.
    pub left_out: usize,
}

impl Reader<'_> {
    /// Examples of JSON lines: `{"prompt": …, "completion": …}`, `{"messages": […]}` or `{"text": …}`.
    ///
    /// # Errors
    /// With the line that is at fault.
    pub fn json_lines(&mut self, text: &str) -> Result<Vec<Example>, TextError> {
        let mut examples = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            let refuse = |reason: String| TextError {
                line: number,
                reason,
            };
            let line: Line = serde_json::from_str(line).map_err(|why| {
                refuse(format!(
                    "no JSON object with text, with prompt and completion, or with messages ({why})"
                ))
            })?;
            let example = match line {
                Line::Messages { messages } => self.conversation(&messages),
                Line::Completion { prompt, completion } => self.completion(&prompt, &completion),
                Line::Text { text } => self.completion("", &text),
            };
            self.take(example.map_err(refuse)?, &mut examples);
        }
        Ok(examples)
    }

    /// Examples of a CoNLL file, as `neap eval ner` asks: for each token `prompt`, with `{text}` for its sentence and
    /// `{word}` for itself, and its tag. Of the tokens outside of all entities one in `outside_one_in` is taken.
    ///
    /// # Errors
    /// With the line that is at fault.
    pub fn conll(
        &mut self,
        text: &str,
        prompt: &str,
        outside_one_in: usize,
    ) -> Result<Vec<Example>, TextError> {
        let (mut examples, mut outside) = (Vec::new(), 0);
        for sentence in conll::sentences(text)? {
            let prompt = prompt.replace("{text}", &sentence.tokens.join(" "));
            for (line, (word, tag)) in
                (sentence.line..).zip(sentence.tokens.iter().zip(&sentence.tags))
            {
                if tag == "O" {
                    outside += 1;
                    if outside % outside_one_in.max(1) != 0 {
                        continue;
                    }
                }
                let prompt = prompt.replace("{word}", word);
                let example = self.continuation(&prompt, &format!(" {tag}"), false);
                let example = example.map_err(|reason| TextError { line, reason })?;
                self.take(example, &mut examples);
            }
        }
        Ok(examples)
    }

    fn take(&mut self, example: Example, examples: &mut Vec<Example>) {
        match example.cut(self.max_tokens) {
            Some(example) => examples.push(example),
            None => self.left_out += 1,
        }
    }

    fn completion(&self, prompt: &str, completion: &str) -> Result<Example, String> {
        self.continuation(prompt, completion, true)
    }

    /// What follows `prompt` is learned, with the end of the text if `ends`. The two are encoded as one text: what is
    /// learned begins with the first token that the prompt alone has not.
    fn continuation(&self, prompt: &str, rest: &str, ends: bool) -> Result<Example, String> {
        let encode = |text: &str| self.encode(text, true);
        let (before, mut tokens) = (encode(prompt)?, encode(&format!("{prompt}{rest}"))?);
        let same = before
            .iter()
            .zip(&tokens)
            .take_while(|(a, b)| a == b)
            .count();
        let first = same.clamp(1, tokens.len().max(1));
        if ends {
            tokens.extend(self.tokenizer.eos());
        }
        let runs = vec![(first, tokens.len())];
        Ok(Example { tokens, runs })
    }

    /// What the assistant says is learned: from where the template lets it begin to the end of its message.
    fn conversation(&self, messages: &[ChatMessage]) -> Result<Example, String> {
        let render = |count: usize, add_generation_prompt: bool| {
            let options = RenderOptions {
                add_generation_prompt,
                ..RenderOptions::default()
            };
            let text = self.template.render(&messages[..count], &options);
            text.map_err(|why: ChatError| why.to_string())
        };
        let (mut tokens, mut runs, mut done) = (Vec::new(), Vec::new(), String::new());
        for (place, message) in messages.iter().enumerate() {
            if message.role != "assistant" {
                continue;
            }
            let (before, after) = (render(place, true)?, render(place + 1, false)?);
            let pieces = before
                .strip_prefix(done.as_str())
                .zip(after.strip_prefix(before.as_str()));
            let Some((between, said)) = pieces else {
                return Err(
                    "the chat template writes earlier messages anew, so it is not known what \
                     the assistant says where"
                        .into(),
                );
            };
            tokens.extend(self.encode(between, tokens.is_empty())?);
            let first = tokens.len();
            tokens.extend(self.encode(said, tokens.is_empty())?);
            runs.push((first.max(1), tokens.len()));
            done = after;
        }
        if runs.is_empty() {
            return Err("the assistant says nothing".into());
        }
        Ok(Example { tokens, runs })
    }

    fn encode(&self, text: &str, add_bos: bool) -> Result<Vec<u32>, String> {
        let options = EncodeOptions {
            add_bos,
            parse_special: true,
        };
        let tokens = self.tokenizer.encode(text, options);
        tokens.map_err(|why: TokenizerError| why.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_not_learned() {
        let example = Example {
            tokens: vec![1, 2, 3, 4, 5, 6],
            runs: vec![(1, 2), (4, 6)],
        };
        let cut = example.clone().cut(5).unwrap();
        assert_eq!(
            (cut.tokens.len(), cut.learned().collect::<Vec<_>>()),
            (5, vec![1, 4])
        );
        let cut = example.clone().cut(4).unwrap();
        assert_eq!(cut.learned_tokens(), 1);
        assert!(example.cut(1).is_none());
    }
}
