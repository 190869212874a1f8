//! Which of several continuations a model finds likeliest.

use neap_memory::BlockTable;
use neap_model::adapter::Adapter;
use neap_model::decoder::{Decoder, LogitsWanted, SequenceChunk};
use neap_model::tokenizer::{EncodeOptions, Tokenizer};

use super::perplexity::{ROWS, loss};
use crate::adapters::{self, NamedAdapter};
use crate::args::ModelArgs;
use crate::failure::Failure;
use crate::loading::{self, Parts};

/// A model, and what it read last: what the next text begins with too is not computed again.
pub(super) struct Scorer {
    parts: Parts,
    adapter: Option<Adapter>,
    tokenizer: Tokenizer,
    table: BlockTable,
    /// The tokens in the table.
    held: Vec<u32>,
    per_token: bool,
}

impl Scorer {
    pub fn new(
        model: &ModelArgs,
        lora: Option<&NamedAdapter>,
        per_token: bool,
    ) -> Result<Self, Failure> {
        let parts = loading::load_parts(model, ROWS)?;
        Ok(Self {
            tokenizer: loading::tokenizer(&parts.source)?,
            table: BlockTable::new(&parts.kv),
            adapter: adapters::load(lora, &parts)?,
            held: Vec::new(),
            parts,
            per_token,
        })
    }

    /// The place of the likeliest of `labels` after `prompt` and a space: by the sum of their tokens' log likelihoods,
    /// or the mean. Of equals the first.
    pub fn choose(&mut self, prompt: &str, labels: &[String]) -> Result<usize, Failure> {
        let options = EncodeOptions {
            add_bos: true,
            parse_special: true,
        };
        let encode = |text: &str| self.tokenizer.encode(text, options);
        let whole = labels
            .iter()
            .map(|label| encode(&format!("{prompt} {label}")))
            .collect::<Result<Vec<_>, _>>()?;
        // A label may flow together with the prompt's end: what is scored begins where the texts begin to differ from the
        // prompt, for all labels at the same token.
        let prompt = encode(prompt)?;
        let start = whole
            .iter()
            .map(|text| common(text, &prompt).min(text.len() - 1))
            .min()
            .unwrap_or(0);
        if start == 0 {
            return Err(Failure::new(
                "a prompt has at least one token before its label",
            ));
        }
        let (mut best, mut least) = (0, f64::INFINITY);
        for (place, text) in whole.iter().enumerate() {
            let loss = self.loss_from(text, start)?;
            if loss < least {
                (best, least) = (place, loss);
            }
        }
        Ok(best)
    }

    /// The negative log likelihood of the tokens of `text` from `start` on.
    fn loss_from(&mut self, text: &[u32], start: usize) -> Result<f64, Failure> {
        let scored = text.len() - start;
        let room = self.parts.decoder.context_tokens();
        if scored > ROWS || text.len() > room {
            return Err(Failure::new(format!(
                "a text of {} tokens with a label of {scored}: the model has room for {room}, a label for {ROWS}",
                text.len()
            )));
        }
        // The token before the first that is scored gives its distribution, so it is computed in any case.
        let known = common(text, &self.held).min(start - 1);
        self.table.truncate(known);
        self.held.truncate(known);
        let step = self.parts.decoder.limits().batch_tokens;
        for chunk in text[known..start - 1].chunks(step) {
            self.forward(chunk, LogitsWanted::None)?;
        }
        let rows = self.forward(&text[start - 1..text.len() - 1], LogitsWanted::All)?;
        let vocab = rows.len() / scored;
        let losses = rows.chunks_exact(vocab).zip(&text[start..]);
        let sum: f64 = losses.map(|(row, &id)| loss(row, id)).sum();
        Ok(if self.per_token {
            sum / scored as f64
        } else {
            sum
        })
    }

    fn forward(&mut self, tokens: &[u32], logits: LogitsWanted) -> Result<&[f32], Failure> {
        self.table.reserve(tokens.len())?;
        self.held.extend_from_slice(tokens);
        let table = &mut self.table;
        let rows = self.parts.decoder.forward(&mut [SequenceChunk {
            tokens,
            table,
            logits,
            adapter: self.adapter.as_ref(),
            second_segment: None,
        }])?;
        Ok(rows)
    }
}

/// Tokens that both begin with.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
