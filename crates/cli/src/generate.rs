//! Drives the engine for one generation and measures it.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use neap_engine::{AdmissionError, Engine, Event, FinishReason, PRESSED_PAUSE, Request, Usage};
use neap_model::decoder::Decoder;

use crate::interrupt;

/// How a generation went.
pub struct Outcome {
    pub reason: FinishReason,
    pub usage: Usage,
    /// From submission to the first token.
    pub first_token: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// The whole text produced.
    pub text: String,
    /// The tokens produced.
    pub tokens: Vec<u32>,
}

impl Outcome {
    /// Tokens of the prompt a second, the first new token's choice included.
    pub fn prefill_tokens_per_s(&self) -> f64 {
        let computed = self.usage.prompt_tokens - self.usage.cached_tokens;
        computed as f64 / self.first_token.as_secs_f64()
    }

    /// New tokens a second after the first.
    pub fn decode_tokens_per_s(&self) -> Option<f64> {
        let tokens = self.usage.new_tokens.checked_sub(1).filter(|&n| n > 0)?;
        Some(tokens as f64 / self.decode.as_secs_f64())
    }
}

/// Runs `request` alone to its end, or until Ctrl-C or until `on_text` refuses a piece of text. Once
/// the request is taken in, `on_text` is given `echo` first.
pub fn generate<D: Decoder>(
    engine: &mut Engine<D>,
    request: Request,
    echo: &str,
    mut on_text: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<Outcome, AdmissionError> {
    let start = Instant::now();
    let id = engine.submit(request)?;
    if on_text(echo).is_err() {
        interrupt::press();
    }
    let mut first = None;
    let mut last = start;
    let mut text = String::new();
    let mut tokens = Vec::new();
    loop {
        let mut events = engine.step(clock_ms());
        if engine.is_pressed() {
            std::thread::sleep(PRESSED_PAUSE);
        }
        if interrupt::pressed() {
            events.extend(engine.cancel(id));
        }
        for event in events {
            let (piece, finished) = match event {
                Event::Token { text, id, .. } => {
                    tokens.push(id);
                    last = Instant::now();
                    first.get_or_insert(last);
                    (text, None)
                }
                Event::Finished {
                    text,
                    reason,
                    usage,
                    ..
                } => (text, Some((reason, usage))),
            };
            text.push_str(&piece);
            if on_text(&piece).is_err() && finished.is_none() {
                // Whoever read the text has gone: the same as a Ctrl-C.
                interrupt::press();
            }
            if let Some((reason, usage)) = finished {
                let first = first.unwrap_or_else(Instant::now);
                return Ok(Outcome {
                    reason,
                    usage,
                    first_token: first - start,
                    decode: last.saturating_duration_since(first),
                    text,
                    tokens,
                });
            }
        }
    }
}

/// The wall clock when the program first asked, and going on steadily from there: milliseconds since
/// 1970 that never fall.
pub fn clock_ms() -> u64 {
    static START: OnceLock<(u64, Instant)> = OnceLock::new();
    let (wall_ms, start) = START.get_or_init(|| {
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        (since_1970.as_millis() as u64, Instant::now())
    });
    wall_ms + start.elapsed().as_millis() as u64
}
