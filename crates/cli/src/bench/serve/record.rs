//! What came of it, in figures.

use serde::Serialize;

/// How one request went.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Which turn of its conversation, from 0.
    pub turn: usize,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// From sending to the first token, in milliseconds.
    pub first_token_ms: f64,
    /// From each token to the next.
    pub between_ms: Vec<f64>,
    /// From sending to the end.
    pub whole_ms: f64,
    /// As the server counts them.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub answer_tokens: u64,
    /// Tokens of the conversation before this turn.
    pub known_tokens: u64,
}

/// Share of a conversation that must come from the server's cache for it to count as ready.
const READY_SHARE: f64 = 0.9;

/// What a request must keep to count as good.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Goals {
    /// Time to first token at most.
    pub ttft_ms: f64,
    /// Mean time from token to token at most.
    pub itl_ms: f64,
}

impl Sample {
    /// The conversation goes on, and the server had nearly all of it ready.
    fn is_ready(&self) -> bool {
        self.error.is_none()
            && self.known_tokens > 0
            && self.cached_tokens as f64 >= READY_SHARE * self.known_tokens as f64
    }

    fn is_good(&self, goals: Goals) -> bool {
        let tokens = self.between_ms.len().max(1) as f64;
        let mean_ms = self.between_ms.iter().sum::<f64>() / tokens;
        self.error.is_none() && self.first_token_ms <= goals.ttft_ms && mean_ms <= goals.itl_ms
    }
}

/// Spread of a time.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq)]
pub struct Spread {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Spread {
    /// By the nearest rank.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let rank = (part * values.len() as f64).ceil() as usize;
            values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

/// Of one turn of all conversations, or of all.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub requests: usize,
    pub failed: usize,
    /// Requests that kept the goals.
    pub good: usize,
    /// Requests whose conversation the server had ready, but for a tenth.
    pub ready: usize,
    pub ttft_ms: Spread,
    pub itl_ms: Spread,
    pub request_ms: Spread,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub answer_tokens: u64,
}

impl Figures {
    pub fn of<'a>(samples: impl Iterator<Item = &'a Sample> + Clone, goals: Goals) -> Self {
        let done = samples.clone().filter(|s| s.error.is_none());
        let sum = |of: fn(&Sample) -> u64| done.clone().map(of).sum();
        Self {
            requests: samples.clone().count(),
            failed: samples.clone().filter(|s| s.error.is_some()).count(),
            good: samples.clone().filter(|s| s.is_good(goals)).count(),
            ready: samples.filter(|s| s.is_ready()).count(),
            ttft_ms: Spread::of(done.clone().map(|s| s.first_token_ms)),
            itl_ms: Spread::of(done.clone().flat_map(|s| s.between_ms.iter().copied())),
            request_ms: Spread::of(done.clone().map(|s| s.whole_ms)),
            prompt_tokens: sum(|s| s.prompt_tokens),
            cached_tokens: sum(|s| s.cached_tokens),
            answer_tokens: sum(|s| s.answer_tokens),
        }
    }
}

/// Resident memory of a process meanwhile, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Resident {
    pub before: u64,
    pub peak: u64,
    /// Some seconds after the last answer.
    pub after: u64,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    pub model: String,
    pub wall_s: f64,
    pub goals: Goals,
    /// Good requests each second.
    pub goodput_per_s: f64,
    /// Produced each second.
    pub answer_tokens_per_s: f64,
    pub all: Figures,
    /// One for each turn.
    pub turns: Vec<Figures>,
    pub rss: Option<Resident>,
    /// The first few, each once.
    pub errors: Vec<String>,
}

/// Errors that are told at most.
const ERRORS_TOLD: usize = 5;

impl Record {
    pub fn of(
        model: &str,
        samples: &[Sample],
        wall_s: f64,
        goals: Goals,
        rss: Option<Resident>,
    ) -> Self {
        let all = Figures::of(samples.iter(), goals);
        let turns = samples.iter().map(|s| s.turn + 1).max().unwrap_or(0);
        let mut errors: Vec<String> = samples.iter().filter_map(|s| s.error.clone()).collect();
        errors.sort();
        errors.dedup();
        errors.truncate(ERRORS_TOLD);
        Self {
            model: model.to_owned(),
            wall_s,
            goals,
            goodput_per_s: all.good as f64 / wall_s,
            answer_tokens_per_s: all.answer_tokens as f64 / wall_s,
            turns: (0..turns)
                .map(|turn| Figures::of(samples.iter().filter(|s| s.turn == turn), goals))
                .collect(),
            all,
            rss,
            errors,
        }
    }

    /// For people.
    pub fn print(&self) {
        println!(
            "{}: {:.1} s, goodput {:.2} requests/s (first token within {} ms, then {} ms a token), {:.1} tokens/s",
            self.model,
            self.wall_s,
            self.goodput_per_s,
            self.goals.ttft_ms,
            self.goals.itl_ms,
            self.answer_tokens_per_s
        );
        println!(
            "{:>6} {:>8} {:>7} {:>6} {:>6} {:>9} {:>9} {:>10} {:>10} {:>10} {:>10} {:>11}",
            "turn",
            "requests",
            "failed",
            "good",
            "ready",
            "prompt",
            "cached",
            "ttft p50",
            "ttft p99",
            "itl p50",
            "itl p99",
            "request p99"
        );
        for (turn, figures) in self.turns.iter().enumerate() {
            print_row(&(turn + 1).to_string(), figures);
        }
        print_row("all", &self.all);
        if let Some(rss) = &self.rss {
            let show = crate::bytes::show;
            println!(
                "RSS: {} before, {} at most, {} after",
                show(rss.before),
                show(rss.peak),
                show(rss.after)
            );
        }
        for error in &self.errors {
            println!("error: {error}");
        }
    }
}

fn print_row(name: &str, f: &Figures) {
    println!(
        "{name:>6} {:>8} {:>7} {:>6} {:>6} {:>9} {:>9} {:>10.1} {:>10.1} {:>10.2} {:>10.2} {:>11.1}",
        f.requests,
        f.failed,
        f.good,
        f.ready,
        f.prompt_tokens,
        f.cached_tokens,
        f.ttft_ms.p50,
        f.ttft_ms.p99,
        f.itl_ms.p50,
        f.itl_ms.p99,
        f.request_ms.p99
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_takes_the_nearest_rank() {
        let spread = Spread::of((1..=200).map(f64::from));
        assert_eq!((spread.p50, spread.p99, spread.max), (100.0, 198.0, 200.0));
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn a_good_request_keeps_both_goals() {
        let goals = Goals {
            ttft_ms: 100.0,
            itl_ms: 10.0,
        };
        let sample = |first_token_ms, between: f64, error: Option<&str>| Sample {
            first_token_ms,
            between_ms: vec![between; 4],
            error: error.map(str::to_owned),
            ..Sample::default()
        };
        let samples = [
            sample(100.0, 10.0, None),
            sample(101.0, 1.0, None),
            sample(1.0, 11.0, None),
            sample(1.0, 1.0, Some("refused")),
        ];
        let record = Record::of("m", &samples, 2.0, goals, None);
        assert_eq!((record.all.good, record.all.failed), (1, 1));
        assert_eq!(record.goodput_per_s, 0.5);
        assert_eq!(record.errors, ["refused"]);
        assert_eq!(record.all.ready, 0, "nothing was known before");
        let back = |cached_tokens| Sample {
            known_tokens: 1000,
            cached_tokens,
            ..sample(1.0, 1.0, None)
        };
        let figures = Figures::of([back(900), back(899)].iter(), goals);
        assert_eq!(figures.ready, 1);
    }
}
