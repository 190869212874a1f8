//! One conversation with a server: its turns one after the other, timed.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::record::Sample;
use super::workload::{Conversation, Turn, text};
use crate::http::{Answer, Target};

/// What every conversation of a run shares.
pub struct Talk {
    pub target: Target,
    pub model: String,
    /// Words that make one token, on average.
    pub words_per_token: f64,
    /// Tokens of the common beginnings.
    pub prefix_tokens: usize,
    /// Go on past the end that the model would make.
    pub ignore_eos: bool,
    pub seed: u64,
}

/// What a conversation has come to.
pub struct Open<'a> {
    talk: &'a Talk,
    index: usize,
    messages: Vec<Value>,
    /// Of the turns so far.
    known_tokens: u64,
}

impl<'a> Open<'a> {
    /// A conversation of which nothing has been said.
    pub fn new(talk: &'a Talk, index: usize, conversation: &Conversation) -> Self {
        let mut messages = Vec::new();
        if talk.prefix_tokens > 0 {
            messages.push(json!({"role": "system", "content": talk.prefix(conversation.prefix)}));
        }
        Self {
            talk,
            index,
            messages,
            known_tokens: 0,
        }
    }

    /// Asks and listens to the end.
    pub fn ask(&mut self, number: usize, turn: &Turn) -> Sample {
        let words = self.talk.words(turn.prompt_tokens);
        let seed = self.talk.seed ^ ((self.index as u64) << 20 | number as u64 | 1 << 60);
        let said = text(seed, words);
        self.messages.push(json!({"role": "user", "content": said}));
        let body = json!({
            "model": self.talk.model,
            "messages": self.messages,
            "max_tokens": turn.answer_tokens,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
            "ignore_eos": self.talk.ignore_eos,
        });
        let begin = Instant::now();
        let mut sample = Sample {
            turn: number,
            known_tokens: self.known_tokens,
            ..Sample::default()
        };
        let answer = match listen(&self.talk.target, &body.to_string(), begin, &mut sample) {
            Ok(answer) => answer,
            Err(why) => {
                sample.error = Some(why);
                String::new()
            }
        };
        sample.whole_ms = ms(begin.elapsed());
        self.known_tokens = sample.prompt_tokens + sample.answer_tokens;
        self.messages
            .push(json!({"role": "assistant", "content": answer}));
        sample
    }
}

impl Talk {
    fn words(&self, tokens: usize) -> usize {
        ((tokens as f64 * self.words_per_token) as usize).max(1)
    }

    fn prefix(&self, which: usize) -> String {
        text(
            self.seed ^ (1 << 61) ^ which as u64,
            self.words(self.prefix_tokens),
        )
    }

    /// Sends every common beginning once, so that the server has seen it.
    pub fn warm(&self, prefixes: usize) -> Result<(), String> {
        for which in 0..prefixes {
            let body = json!({
                "model": self.model,
                "messages": [
                    {"role": "system", "content": self.prefix(which)},
                    {"role": "user", "content": "begin"},
                ],
                "max_tokens": 1,
                "temperature": 0,
            });
            let path = "/v1/chat/completions";
            let answer = self.target.whole("POST", path, Some(&body.to_string()));
            match answer.map_err(|why| why.to_string())? {
                (200, _) => {}
                (status, body) => return Err(refusal(status, &body)),
            }
        }
        Ok(())
    }

    /// Measures how many tokens the server makes of words, where it has a `/tokenize`.
    pub fn calibrate(&mut self) {
        const WORDS: usize = 1000;
        let sample = text(self.seed, WORDS);
        // vLLM and Neap read the first name, llama.cpp the second.
        let body = json!({"model": self.model, "prompt": sample, "content": sample}).to_string();
        let Ok((200, answer)) = self.target.whole("POST", "/tokenize", Some(&body)) else {
            return;
        };
        let tokens = serde_json::from_str::<Value>(&answer)
            .ok()
            .and_then(|a| Some(a.get("tokens")?.as_array()?.len()));
        if let Some(tokens @ 1..) = tokens {
            self.words_per_token = WORDS as f64 / tokens as f64;
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn refusal(status: u16, body: &str) -> String {
    let message = serde_json::from_str::<Value>(body)
        .ok()
        .and_then(|b| Some(b.pointer("/error/message")?.as_str()?.to_owned()));
    let text = message.unwrap_or_else(|| body.chars().take(200).collect());
    format!("{status}: {text}")
}

/// Sends a request and times its stream; gives the text.
fn listen(
    target: &Target,
    body: &str,
    begin: Instant,
    sample: &mut Sample,
) -> Result<String, String> {
    let failed = |why: std::io::Error| why.to_string();
    let mut answer: Answer = target
        .send("POST", "/v1/chat/completions", Some(body))
        .map_err(failed)?;
    if answer.status != 200 {
        let body = answer.rest().map_err(failed)?;
        return Err(refusal(answer.status, &body));
    }
    let mut text = String::new();
    let mut last: Option<Instant> = None;
    let mut pieces = 0_u64;
    while let Some(line) = answer.next_line().map_err(failed)? {
        let Some(data) = line.strip_prefix("data:").map(str::trim) else {
            continue;
        };
        if data == "[DONE]" {
            if sample.answer_tokens == 0 {
                sample.answer_tokens = pieces;
            }
            return Ok(text);
        }
        let event: Value = serde_json::from_str(data).map_err(|why| why.to_string())?;
        if event.get("error").is_some() {
            return Err(refusal(200, data));
        }
        if let Some(usage) = event.get("usage").filter(|u| u.is_object()) {
            let count = |at: &str| usage.pointer(at).and_then(Value::as_u64).unwrap_or(0);
            sample.prompt_tokens = count("/prompt_tokens");
            sample.answer_tokens = count("/completion_tokens");
            sample.cached_tokens = count("/prompt_tokens_details/cached_tokens");
        }
        let said = event
            .pointer("/choices/0/delta/content")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if !said.is_empty() {
            let now = Instant::now();
            match last.replace(now) {
                None => sample.first_token_ms = ms(now - begin),
                Some(before) => sample.between_ms.push(ms(now - before)),
            }
            pieces += 1;
            text.push_str(said);
        }
    }
    Err("the stream ended without [DONE]".into())
}
