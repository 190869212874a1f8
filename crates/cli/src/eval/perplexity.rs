//! `neap eval perplexity`: how well a model guesses a text.
//!
//! As llama.cpp's `perplexity` defines it: the tokens are cut into windows of `--context` tokens, each
//! begins with BOS where the model uses one, and the tokens of the second half of each window are scored,
//! so that every scored token has at least half a window before it. The result is
//! exp(mean negative log likelihood). With `--kv-level` all keys and values are at that level but the first
//! block's and the newest 128 tokens'.

use std::ops::Range;
use std::path::Path;

use indicatif::ProgressBar;
use neap_memory::BlockTable;
use neap_model::adapter::Adapter;
use neap_model::decoder::{Decoder, LogitsWanted, SequenceChunk};
use neap_model::tokenizer::EncodeOptions;
use serde::Serialize;

use crate::adapters;
use crate::args::EvalPerplexityArgs;
use crate::failure::Failure;
use crate::loading::{self, Parts};
use crate::sinker::Sinker;

/// Rows of logits computed at once.
pub(super) const ROWS: usize = 64;

#[derive(Serialize)]
struct Report {
    perplexity: f64,
    /// Of the mean negative log likelihood, carried over to the perplexity.
    standard_error: f64,
    scored_tokens: usize,
    windows: usize,
    window_tokens: usize,
}

pub fn run(args: &EvalPerplexityArgs) -> Result<(), Failure> {
    let text = read_text(&args.file)?;
    let mut parts = loading::load_parts(&args.model, ROWS)?;
    let windows = Windows::of(&parts, &text, args.window)?;
    let mut lane = Lane {
        table: BlockTable::new(&parts.kv),
        sinker: Sinker::new(&parts, parts.level)?,
        adapter: adapters::load(args.lora.as_ref(), &parts)?,
    };
    let bar = ProgressBar::new(windows.len() as u64);
    let mut losses = Vec::new();
    for window in windows.iter() {
        lane.table.clear();
        for step in windows.steps(lane.sinker.is_lossy()) {
            let rows = lane.forward(&mut parts, &window, &step)?;
            losses.extend(losses_of(rows, &window, &step));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = summarize(&losses, windows.len(), windows.tokens_each);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!(
            "perplexity {:.4} ± {:.4} over {} tokens in {} windows of {}",
            report.perplexity,
            report.standard_error,
            report.scored_tokens,
            report.windows,
            report.window_tokens
        );
    }
    Ok(())
}

pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    let bytes = std::fs::read(path)
        .map_err(|why| Failure::new(format!("the text {} can't be read: {why}", path.display())))?;
    String::from_utf8(bytes)
        .map_err(|why| Failure::new(format!("{} is not UTF-8 text: {why}", path.display())))
}

/// A text cut into windows.
pub(super) struct Windows {
    tokens: Vec<u32>,
    bos: Option<u32>,
    /// Tokens of a window.
    pub tokens_each: usize,
    step: usize,
}

/// Tokens of a window that are computed together.
pub(super) struct Step {
    tokens: Range<usize>,
    is_scored: bool,
}

impl Windows {
    /// Cuts `text` into windows of `tokens_each` tokens, or of the model's context if that is less.
    pub fn of(parts: &Parts, text: &str, tokens_each: usize) -> Result<Self, Failure> {
        let tokenizer = loading::tokenizer(&parts.source)?;
        let tokens_each = tokens_each.min(parts.decoder.context_tokens());
        let options = EncodeOptions {
            add_bos: false,
            parse_special: false,
        };
        let tokens = tokenizer.encode(text, options)?;
        if tokens_each < 8 || tokens.len() < tokens_each {
            let n = tokens.len();
            return Err(Failure::new(format!(
                "a window of {tokens_each} tokens is too small, or longer than the text of {n}"
            )));
        }
        Ok(Self {
            tokens,
            bos: tokenizer.bos().filter(|_| tokenizer.adds_bos()),
            tokens_each,
            step: parts.decoder.limits().batch_tokens,
        })
    }

    pub fn len(&self) -> usize {
        self.tokens.len() / self.tokens_each
    }

    pub fn iter(&self) -> impl Iterator<Item = Vec<u32>> {
        self.tokens.chunks_exact(self.tokens_each).map(|window| {
            let mut window = window.to_vec();
            if let Some(bos) = self.bos {
                window[0] = bos;
            }
            window
        })
    }

    /// The steps of a window: the second half is scored. Where blocks sink, the first half is computed in
    /// short steps too, so that what is scored rests on keys and values that themselves come from lossy ones.
    pub fn steps(&self, is_lossy: bool) -> Vec<Step> {
        let half = self.tokens_each / 2;
        let scored = ROWS.min(self.step);
        let first = if is_lossy { scored } else { self.step };
        let steps = |range: Range<usize>, len: usize, is_scored| {
            let end = range.end;
            range.step_by(len).map(move |start| Step {
                tokens: start..(start + len).min(end),
                is_scored,
            })
        };
        // The last token is only a target.
        let last = self.tokens_each - 1;
        steps(0..half, first, false)
            .chain(steps(half..last, scored, true))
            .collect()
    }
}

/// One run through a window.
pub(super) struct Lane {
    pub table: BlockTable,
    pub sinker: Sinker,
    pub adapter: Option<Adapter>,
}

impl Lane {
    /// Computes a step of `window`; the logits of its rows if it is scored, or none.
    pub fn forward<'a>(
        &mut self,
        parts: &'a mut Parts,
        window: &[u32],
        step: &Step,
    ) -> Result<&'a [f32], Failure> {
        let tokens = &window[step.tokens.clone()];
        self.table.reserve(tokens.len())?;
        let logits = if step.is_scored {
            LogitsWanted::All
        } else {
            LogitsWanted::None
        };
        let table = &mut self.table;
        let rows = parts.decoder.forward(&mut [SequenceChunk {
            tokens,
            table,
            logits,
            adapter: self.adapter.as_ref(),
            second_segment: None,
        }])?;
        self.sinker.sink(&mut self.table);
        Ok(rows)
    }
}

/// The negative log likelihood of each token that follows one of the step's.
pub(super) fn losses_of(rows: &[f32], window: &[u32], step: &Step) -> impl Iterator<Item = f64> {
    let targets = &window[step.tokens.start + 1..=step.tokens.end];
    let vocab = rows.len() / step.tokens.len();
    rows.chunks_exact(vocab.max(1))
        .zip(targets)
        .map(|(row, &id)| loss(row, id))
}

pub(super) fn loss(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    f64::from(max) + sum.ln() - f64::from(logits[id as usize])
}

fn summarize(losses: &[f64], windows: usize, window_tokens: usize) -> Report {
    let n = losses.len() as f64;
    let mean = losses.iter().sum::<f64>() / n;
    let variance = losses.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let perplexity = mean.exp();
    Report {
        perplexity,
        standard_error: perplexity * (variance / n).sqrt(),
        scored_tokens: losses.len(),
        windows,
        window_tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uniform_guess_has_the_perplexity_of_the_vocabulary() {
        let losses = vec![loss(&[0.5; 100], 7); 50];
        let report = summarize(&losses, 1, 100);
        assert!((report.perplexity - 100.0).abs() < 1e-3 && report.standard_error < 1e-9);
        assert!(loss(&[0.0, 20.0], 1) < 1e-6);
    }
}
