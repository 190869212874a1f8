//! The figures at the end of a generation.

use neap_memory::Budget;
use neap_memory::resident::peak_rss_bytes;

use crate::bytes::show;
use crate::generate::Outcome;

/// Prints tokens, speeds, time to first token and memory to stderr.
pub fn print(outcome: &Outcome, seed: u64, budget: &Budget) {
    let usage = &outcome.usage;
    eprintln!();
    eprintln!("finished:             {}", outcome.reason);
    eprintln!(
        "prompt:               {} tokens ({} from cache)",
        usage.prompt_tokens, usage.cached_tokens
    );
    eprintln!("new:                  {} tokens", usage.new_tokens);
    eprintln!(
        "time to first token:  {:.1} ms",
        outcome.first_token.as_secs_f64() * 1e3
    );
    eprintln!(
        "prefill:              {:.1} tokens/s",
        outcome.prefill_tokens_per_s()
    );
    if let Some(speed) = outcome.decode_tokens_per_s() {
        eprintln!("decode:               {speed:.1} tokens/s");
    }
    let peak = peak_rss_bytes().map_or_else(|| "unknown".to_owned(), show);
    eprintln!("peak memory:          {peak}");
    eprintln!(
        "budget:               {} of {} charged",
        show(budget.charged()),
        show(budget.limit())
    );
    eprintln!("seed:                 {seed}");
}
