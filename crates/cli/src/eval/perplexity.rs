//! `neap eval perplexity`: how well a model guesses a text.
//!
//! As llama.cpp's `perplexity` defines it: the tokens are cut into windows of `--context` tokens, each
//! begins with BOS where the model uses one, and the tokens of the second half of each window are scored,
//! so that every scored token has at least half a window before it. The result is
//! exp(mean negative log likelihood).

use indicatif::ProgressBar;
use neap_memory::BlockTable;
use neap_model::decoder::{Decoder, LogitsWanted, SequenceChunk};
use neap_model::tokenizer::{EncodeOptions, Tokenizer};
use serde::Serialize;

use crate::args::EvalPerplexityArgs;
use crate::failure::Failure;
use crate::loading::{self, Parts};

/// Rows of logits computed at once.
const ROWS: usize = 64;

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
    let bytes = std::fs::read(&args.file).map_err(|why| {
        Failure::new(format!(
            "the text {} can't be read: {why}",
            args.file.display()
        ))
    })?;
    let text = String::from_utf8(bytes)
        .map_err(|why| Failure::new(format!("{} is not UTF-8 text: {why}", args.file.display())))?;
    let mut parts = loading::load_parts(&args.model, ROWS)?;
    let tokenizer = loading::tokenizer(&parts.source)?;
    let window = args.window.min(parts.decoder.context_tokens());
    let tokens = tokenizer.encode(
        &text,
        EncodeOptions {
            add_bos: false,
            parse_special: false,
        },
    )?;
    if window < 8 || tokens.len() < window {
        let n = tokens.len();
        return Err(Failure::new(format!(
            "a window of {window} tokens is too small, or longer than the text of {n}"
        )));
    }
    let bar = ProgressBar::new((tokens.len() / window) as u64);
    let mut losses = Vec::new();
    for tokens in tokens.chunks_exact(window) {
        score(&mut parts, &tokenizer, tokens, &mut losses)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = summarize(&losses, tokens.len() / window, window);
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

/// Appends the negative log likelihood of each token of the window's second half.
fn score(
    parts: &mut Parts,
    tokenizer: &Tokenizer,
    window: &[u32],
    losses: &mut Vec<f64>,
) -> Result<(), Failure> {
    let mut tokens = window.to_vec();
    if tokenizer.adds_bos()
        && let Some(bos) = tokenizer.bos()
    {
        tokens[0] = bos;
    }
    let mut table = BlockTable::new(&parts.kv);
    table.reserve(tokens.len())?;
    let vocab = parts.decoder.vocab_size();
    let first = tokens.len() / 2;
    let step = parts.decoder.limits().batch_tokens;
    for chunk in tokens[..first].chunks(step) {
        let logits = LogitsWanted::None;
        parts.decoder.forward(&mut [SequenceChunk {
            tokens: chunk,
            table: &mut table,
            logits,
        }])?;
    }
    // The last token is only a target.
    for start in (first..tokens.len() - 1).step_by(ROWS.min(step)) {
        let end = (start + ROWS.min(step)).min(tokens.len() - 1);
        let logits = LogitsWanted::All;
        let chunk = SequenceChunk {
            tokens: &tokens[start..end],
            table: &mut table,
            logits,
        };
        let rows = parts.decoder.forward(&mut [chunk])?;
        losses.extend(
            rows.chunks_exact(vocab)
                .zip(&tokens[start + 1..=end])
                .map(|(row, &id)| loss(row, id)),
        );
    }
    Ok(())
}

fn loss(logits: &[f32], id: u32) -> f64 {
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
