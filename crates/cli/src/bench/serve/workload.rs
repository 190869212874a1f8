//! What is asked, and when: conversations that arrive at random, or as a trace says.

use neap_sim::trace::Request;

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

/// What a trace says: every request is a conversation of one turn, `speed` times as fast as it was.
pub fn of_trace(trace: &[Request], speed: f64) -> Vec<Conversation> {
    let first_ms = trace.first().map_or(0, |request| request.at_ms);
    let tokens = |tokens: u64| usize::try_from(tokens).unwrap_or(usize::MAX);
    let conversation = |request: &Request| Conversation {
        at_s: (request.at_ms - first_ms) as f64 / 1000.0 / speed,
        prefix: 0,
        turns: vec![Turn {
            prompt_tokens: tokens(request.input_tokens),
            answer_tokens: tokens(request.output_tokens).max(1),
            pause_s: 0.0,
        }],
    };
    trace.iter().map(conversation).collect()
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
    fn a_trace_is_one_turn_for_each_request() {
        let request = |at_ms, input_tokens, output_tokens| Request {
            at_ms,
            input_tokens,
            output_tokens,
            blocks: Vec::new(),
        };
        let trace = [request(27_000, 6955, 52), request(30_000, 10, 0)];
        let made = of_trace(&trace, 2.0);
        assert_eq!((made[0].at_s, made[1].at_s), (0.0, 1.5));
        assert_eq!(made[0].turns[0].prompt_tokens, 6955);
        assert_eq!(made[1].turns[0].answer_tokens, 1);
    }
}
