//! One request, well behaved or not.

use std::io::Write;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bench::serve::workload::{Random, text};
use crate::http::Target;

const PATH: &str = "/v1/chat/completions";
/// Questions that are asked again and again: their answers are known after the first time.
const QUESTIONS: usize = 48;
/// Beginnings that questions have in common.
const BEGINNINGS: u64 = 4;

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads its answer to the end.
    Plain,
    /// The same, but slowly.
    Slow,
    /// Leaves in the middle.
    Cancel,
    /// Asks, reads nothing, and leaves after a while.
    Deaf,
    /// Sends what no server should trip over.
    Malformed,
}

impl Kind {
    /// Of a hundred, ten cancel, five are slow, two deaf and ten malformed.
    pub fn draw(random: &mut Random) -> Self {
        match random.next() % 100 {
            0..10 => Self::Cancel,
            10..15 => Self::Slow,
            15..17 => Self::Deaf,
            17..27 => Self::Malformed,
            _ => Self::Plain,
        }
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered to the end, as expected; tokens of the answer.
    Done(u64),
    /// The client left, or there was nothing to be answered.
    Left,
    /// Refused before it was admitted, with this status.
    Refused(u16),
    /// It was admitted and failed, or the server did.
    Failed(String),
}

/// The questions and the server.
pub struct Questions {
    pub target: Target,
    bodies: Vec<String>,
    answers: Vec<OnceLock<String>>,
}

impl Questions {
    /// Questions to `model`, of up to about 500 tokens with answers of up to 112.
    pub fn new(target: Target, model: &str, seed: u64) -> Self {
        let body = |index: usize| {
            let number = index as u64;
            let beginning = text(seed ^ 1 << 40 ^ (number % BEGINNINGS), 150);
            let question = text(seed ^ 1 << 41 ^ number, 20 + (index * 37) % 200);
            let body = json!({
                "model": model,
                "messages": [
                    {"role": "system", "content": beginning},
                    {"role": "user", "content": question},
                ],
                "max_tokens": 16 + (index % 5) * 24,
                "temperature": 0,
                "ignore_eos": true,
                "stream": true,
                "stream_options": {"include_usage": true},
            });
            body.to_string()
        };
        Self {
            target,
            bodies: (0..QUESTIONS).map(body).collect(),
            answers: (0..QUESTIONS).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Asks one of them, chosen by `random`, as a client of this kind does.
    pub fn ask(&self, kind: Kind, random: &mut Random) -> Outcome {
        let index = random.next() as usize % QUESTIONS;
        let asked = match kind {
            Kind::Malformed => return self.malformed(index, random),
            Kind::Deaf => return self.deaf(index),
            Kind::Plain => self.listen(index, usize::MAX, Duration::ZERO),
            Kind::Slow => self.listen(index, usize::MAX, Duration::from_millis(40)),
            Kind::Cancel => self.listen(index, random.next() as usize % 24, Duration::ZERO),
        };
        asked.unwrap_or_else(Outcome::Failed)
    }

    /// Reads `most_lines` of the answer, with a pause after each; one that is read whole must be what it was the
    /// first time.
    fn listen(&self, index: usize, most_lines: usize, pause: Duration) -> Result<Outcome, String> {
        let failed = |why: std::io::Error| why.to_string();
        let body = Some(self.bodies[index].as_str());
        let mut answer = self.target.send("POST", PATH, body).map_err(failed)?;
        if answer.status != 200 {
            let why = answer.rest().map_err(failed)?;
            return match answer.status {
                429 => Ok(Outcome::Refused(429)),
                status => Err(format!("{status}: {why}")),
            };
        }
        let mut said = String::new();
        let mut tokens = 0;
        for _ in 0..most_lines {
            let Some(line) = answer.next_line().map_err(failed)? else {
                return Err("a stream ended without [DONE]".into());
            };
            std::thread::sleep(pause);
            let Some(data) = line.strip_prefix("data:").map(str::trim) else {
                continue;
            };
            if data == "[DONE]" {
                let before = self.answers[index].get_or_init(|| said.clone());
                return if *before == said {
                    Ok(Outcome::Done(tokens))
                } else {
                    Err(format!("question {index} had another answer before"))
                };
            }
            tokens = piece(data, &mut said)?.unwrap_or(tokens);
        }
        Ok(Outcome::Left)
    }

    fn deaf(&self, index: usize) -> Outcome {
        let body = &self.bodies[index];
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let said = self.target.connect().and_then(|mut stream| {
            stream.write_all(head.as_bytes())?;
            stream.write_all(body.as_bytes())?;
            Ok(stream)
        });
        match said {
            Ok(stream) => {
                std::thread::sleep(Duration::from_secs(2));
                drop(stream);
                Outcome::Left
            }
            Err(why) => Outcome::Failed(why.to_string()),
        }
    }

    fn malformed(&self, index: usize, random: &mut Random) -> Outcome {
        let body = &self.bodies[index];
        let at = random.next() as usize % body.len();
        let raw = |bytes: &str| {
            let sent = self.target.connect().map(|mut stream| {
                // The server may have hung up already.
                let _ = stream.write_all(bytes.as_bytes());
            });
            sent.map_or_else(|why| Outcome::Failed(why.to_string()), |()| Outcome::Left)
        };
        let body = match random.next() % 7 {
            0 => return raw("NOT HTTP AT ALL\r\n\r\n"),
            1 => {
                let length = body.len();
                let begun = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}");
                return raw(&format!("{begun}\r\n\r\n{}", &body[..at]));
            }
            2 => body[..at].to_owned(),
            3 => format!("{}\u{1}{}", &body[..at], &body[at + 1..]),
            4 => "[".repeat(100_000),
            5 => json!({"messages": 5, "max_tokens": "x"}).to_string(),
            _ => json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e300, "n": -1})
                .to_string(),
        };
        match self.target.whole("POST", PATH, Some(&body)) {
            Ok((200..=499, _)) => Outcome::Left,
            Ok((status, body)) => Outcome::Failed(format!("{status} for a malformed body: {body}")),
            Err(why) => Outcome::Failed(format!("a malformed body: {why}")),
        }
    }
}

/// Takes one event in; gives the tokens of the answer where it tells them.
fn piece(data: &str, said: &mut String) -> Result<Option<u64>, String> {
    let event: Value = serde_json::from_str(data).map_err(|why| why.to_string())?;
    if event.get("error").is_some() {
        return Err(data.to_owned());
    }
    let content = event.pointer("/choices/0/delta/content");
    said.push_str(content.and_then(Value::as_str).unwrap_or_default());
    Ok(event
        .pointer("/usage/completion_tokens")
        .and_then(Value::as_u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_in() {
        let mut said = String::new();
        let event = r#"{"choices":[{"delta":{"content":"ab"}}]}"#;
        assert_eq!(piece(event, &mut said), Ok(None));
        let usage = r#"{"choices":[],"usage":{"completion_tokens":7}}"#;
        assert_eq!(piece(usage, &mut said), Ok(Some(7)));
        assert_eq!(said, "ab");
        assert!(piece(r#"{"error":{"message":"x"}}"#, &mut said).is_err());
    }

    #[test]
    fn most_clients_behave() {
        let mut random = Random::new(3);
        let kinds: Vec<Kind> = (0..1000).map(|_| Kind::draw(&mut random)).collect();
        let plain = kinds.iter().filter(|kind| **kind == Kind::Plain).count();
        assert!((650..800).contains(&plain), "{plain}");
        assert!(kinds.contains(&Kind::Deaf) && kinds.contains(&Kind::Malformed));
    }
}
