//! What is asked, and when: conversations that arrive at random, or as a trace says.

use std::path::Path;

/// One conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// Seconds from the beginning until its first turn is sent, whatever became of those before.
    pub at_s: f64,
    /// Which of the common beginnings it has.
    pub prefix: usize,
    /// Its turns.
    pub turns: Vec<Turn>,
}

/// One question of a conversation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// Tokens of the question, about.
    pub prompt_tokens: usize,
    /// Tokens of the answer at most.
    pub answer_tokens: usize,
    /// Seconds between the last answer and this question.
    pub pause_s: f64,
}

/// Random numbers from a seed: SplitMix64 (Steele et al. 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The time until the next of events that come at random, `mean` on average.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        let unit = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        -mean * (1.0 - unit).ln()
    }
}

/// Of a made-up workload.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub conversations: usize,
    /// Conversations that begin each second on average; `None`: all at once.
    pub rate: Option<f64>,
    pub turns: usize,
    pub pause_s: f64,
    pub first_tokens: usize,
    pub next_tokens: usize,
    pub answer_tokens: usize,
    pub prefixes: usize,
    pub seed: u64,
}

impl Shape {
    /// The conversations, in order of arrival: a Poisson process.
    pub fn make(&self) -> Vec<Conversation> {
        let mut random = Random::new(self.seed);
        let mut at_s = 0.0;
        let conversation = |index: usize| {
            if let (Some(rate), 1..) = (self.rate, index) {
                at_s += random.exponential(1.0 / rate);
            }
            let turns = (0..self.turns).map(|turn| Turn {
                prompt_tokens: if turn == 0 {
                    self.first_tokens
                } else {
                    self.next_tokens
                },
                answer_tokens: self.answer_tokens,
                pause_s: match self.pause_s {
                    0.0 => 0.0,
                    mean => random.exponential(mean),
                },
            });
            let turns = turns.collect();
            Conversation {
                at_s,
                prefix: index % self.prefixes.max(1),
                turns,
            }
        };
        (0..self.conversations).map(conversation).collect()
    }
}

/// Reads a trace: lines of JSON (`timestamp` in milliseconds, `input_length`, `output_length`, as Mooncake's traces
/// have it) or of commas with a head (`TIMESTAMP,ContextTokens,GeneratedTokens`, as Azure's have it; or seconds).
pub fn read_trace(path: &Path, speed: f64) -> Result<Vec<Conversation>, String> {
    let text = std::fs::read_to_string(path).map_err(|why| format!("{}: {why}", path.display()))?;
    let is_csv = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    let skipped = usize::from(is_csv);
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate().skip(skipped) {
        if line.trim().is_empty() {
            continue;
        }
        let row = if is_csv {
            csv_row(line)
        } else {
            json_row(line)
        };
        rows.push(row.ok_or_else(|| {
            format!(
                "{}, line {}: not a time and two lengths",
                path.display(),
                number + 1
            )
        })?);
    }
    let first_s = rows.iter().map(|r| r.0).fold(f64::INFINITY, f64::min);
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let conversations = rows
        .into_iter()
        .map(|(at_s, prompt_tokens, answer_tokens)| Conversation {
            at_s: (at_s - first_s) / speed,
            prefix: 0,
            turns: vec![Turn {
                prompt_tokens,
                answer_tokens: answer_tokens.max(1),
                pause_s: 0.0,
            }],
        });
    Ok(conversations.collect())
}

fn json_row(line: &str) -> Option<(f64, usize, usize)> {
    let row: serde_json::Value = serde_json::from_str(line).ok()?;
    let length = |name: &str| usize::try_from(row.get(name)?.as_u64()?).ok();
    let at_s = row.get("timestamp")?.as_f64()? / 1000.0;
    Some((at_s, length("input_length")?, length("output_length")?))
}

fn csv_row(line: &str) -> Option<(f64, usize, usize)> {
    let mut cells = line.split(',').map(str::trim);
    let (at, input, output) = (cells.next()?, cells.next()?, cells.next()?);
    let at_s = at.parse().ok().or_else(|| clock_s(at))?;
    Some((at_s, input.parse().ok()?, output.parse().ok()?))
}

/// `2023-11-16 18:17:03.9799600`: seconds within its month, which is as long as traces are.
fn clock_s(text: &str) -> Option<f64> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let day: f64 = date.rsplit('-').next()?.parse().ok()?;
    let mut parts = time.trim_end_matches('Z').split(':');
    let (h, m, s): (f64, f64, f64) = (
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
        parts.next()?.split('+').next()?.parse().ok()?,
    );
    Some(((day * 24.0 + h) * 60.0 + m) * 60.0 + s)
}

/// Words that most vocabularies have as one token.
const WORDS: [&str; 48] = [
    "time", "water", "house", "light", "paper", "green", "night", "small", "world", "young",
    "river", "table", "stone", "music", "train", "white", "north", "bread", "cloud", "horse",
    "field", "glass", "heart", "smile", "storm", "plant", "clock", "chair", "beach", "voice",
    "road", "tree", "bird", "fish", "ship", "door", "hand", "book", "fire", "snow", "moon", "star",
    "wind", "rain", "gold", "lake", "hill", "song",
];

/// About `words` words, which differ from seed to seed.
pub fn text(seed: u64, words: usize) -> String {
    let mut random = Random::new(seed);
    let mut text = String::with_capacity(words * 6);
    for _ in 0..words {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(WORDS[random.next() as usize % WORDS.len()]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        conversations: 4000,
        rate: Some(8.0),
        turns: 2,
        pause_s: 0.0,
        first_tokens: 100,
        next_tokens: 10,
        answer_tokens: 5,
        prefixes: 3,
        seed: 1,
    };

    #[test]
    fn arrivals_are_poisson() {
        let made = SHAPE.make();
        let gaps: Vec<f64> = made.windows(2).map(|w| w[1].at_s - w[0].at_s).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Of 4000 exponential times: mean and deviation within six standard errors.
        assert!((mean - 0.125).abs() < 6.0 * 0.125 / 63.0, "{mean}");
        assert!((variance.sqrt() - 0.125).abs() < 0.025, "{variance}");
        assert_eq!(made[5].prefix, 2);
        assert_eq!(made[0].turns[1].prompt_tokens, 10);
        let at_once = Shape {
            rate: None,
            ..SHAPE
        }
        .make();
        assert!(at_once.iter().all(|c| c.at_s == 0.0));
        assert_eq!(made, SHAPE.make(), "a seed is a workload");
    }

    #[test]
    fn reads_traces_of_both_kinds() {
        let row = json_row(
            r#"{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46]}"#,
        );
        assert_eq!(row, Some((27.482, 6955, 52)));
        let azure = csv_row("2023-11-16 18:17:03.5,4808,10").unwrap();
        assert_eq!(
            azure,
            (((16.0 * 24.0 + 18.0) * 60.0 + 17.0) * 60.0 + 3.5, 4808, 10)
        );
        assert_eq!(csv_row("1.5, 10, 20"), Some((1.5, 10, 20)));
        assert_eq!(csv_row("x,1,2"), None);
        assert_eq!(json_row("{}"), None);
    }
}
