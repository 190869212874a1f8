//! How a query and a document become one prompt for a decoder that judges them.

use crate::config::Architecture;
use crate::gguf::Value;
use crate::source::ModelSource;

/// The metadata of GGUF files that has it.
pub(crate) const GGUF_KEY: &str = "tokenizer.chat_template.rerank";

const QUERY: &str = "{query}";
const DOCUMENT: &str = "{document}";

/// What Qwen3-Reranker was trained with, as its card has it. Folders do not carry it.
const QWEN3: &str = concat!(
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. ",
    "Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n",
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n",
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
);

/// A prompt with places for a query and a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairPrompt {
    template: String,
}

impl PairPrompt {
    /// What a decoder's files say, or what models of its kind were trained with.
    pub fn of(source: &ModelSource) -> Option<Self> {
        let config = source.config();
        let said = source.gguf().and_then(|file| file.metadata(GGUF_KEY));
        let template = match said.and_then(Value::as_str) {
            Some(said) => said,
            None if config.causal && config.architecture == Architecture::Qwen3 => QWEN3,
            None => return None,
        };
        Some(Self {
            template: template.to_owned(),
        })
    }

    /// The prompt with its places, `{query}` and `{document}`.
    pub fn template(&self) -> &str {
        &self.template
    }

    /// The prompt for these two. Encode it with special tokens on.
    pub fn text(&self, query: &str, document: &str) -> String {
        let mut out = String::with_capacity(self.template.len() + query.len() + document.len());
        let mut rest = self.template.as_str();
        // Piece by piece: what stands in a query is no place.
        loop {
            let places = [(QUERY, query), (DOCUMENT, document)];
            let found = places.map(|(place, text)| Some((rest.find(place)?, place, text)));
            let Some((at, place, text)) = found.into_iter().flatten().min() else {
                return out + rest;
            };
            out.push_str(&rest[..at]);
            out.push_str(text);
            rest = &rest[at + place.len()..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_template_alone() {
        let prompt = PairPrompt {
            template: "Q {query} D {document}.".to_owned(),
        };
        assert_eq!(prompt.text("a", "b"), "Q a D b.");
        assert_eq!(
            prompt.text("{document}", "{query}"),
            "Q {document} D {query}."
        );
        let other = PairPrompt {
            template: "{document}|{query}".to_owned(),
        };
        assert_eq!(other.text("a", "b"), "b|a");
    }
}
