//! One generation while it is in the engine.

use neap_memory::BlockTable;
use neap_model::tokenizer::{DetokenizeOptions, Detokenizer, Tokenizer};

use crate::request::{Event, FinishReason, Request, RequestId, Usage};
use crate::sampling::{self, Sampler};
use crate::schedule::Candidate;
use crate::stop::{StopMatcher, StopState};

pub(crate) struct Sequence {
    pub id: RequestId,
    pub table: BlockTable,
    pub usage: Usage,
    request: Request,
    /// Prompt, then answer.
    tokens: Vec<u32>,
    sampler: Sampler,
    stop: StopMatcher,
    detokenizer: Option<Detokenizer>,
}

impl Sequence {
    pub fn new(id: RequestId, request: Request, table: BlockTable, tokenizer: Option<&Tokenizer>) -> Self {
        let options = DetokenizeOptions { skip_special: !request.show_special, ..DetokenizeOptions::continuation() };
        Self {
            id,
            table,
            usage: Usage { prompt_tokens: request.prompt.len(), ..Usage::default() },
            tokens: request.prompt.clone(),
            sampler: Sampler::new(request.sampling.clone()),
            stop: StopMatcher::new(&request.stop_strings),
            detokenizer: tokenizer.map(|t| t.detokenizer(options)),
            request,
        }
    }

    /// Larger priority first, then the order of arrival.
    pub fn rank(&self) -> (std::cmp::Reverse<i32>, RequestId) {
        (std::cmp::Reverse(self.request.priority), self.id)
    }

    pub fn candidate(&self) -> Candidate {
        Candidate {
            computed_tokens: self.table.len_tokens(),
            pending_tokens: self.tokens.len() - self.table.len_tokens(),
            held_blocks: self.table.len_blocks(),
        }
    }

    /// Splits the sequence into what a forward pass needs of it: the next `n` tokens and the table.
    pub fn chunk(&mut self, n: usize) -> (&[u32], &mut BlockTable) {
        let start = self.table.len_tokens();
        (&self.tokens[start..start + n], &mut self.table)
    }

    /// Gives all blocks back; everything is computed again later.
    pub fn preempt(&mut self) {
        self.usage.recomputed_tokens += self.table.len_tokens();
        self.table.clear();
    }

    /// Chooses the next token and says what it means: events, and the reason if it was the last.
    pub fn next_token(&mut self, logits: &mut [f32], limits: &Limits<'_>, events: &mut Vec<Event>) -> Option<FinishReason> {
        let raw = self.request.top_logprobs.map(|top| (top, logits.to_vec()));
        let id = self.sampler.sample(logits, &self.tokens);
        let logprobs = raw.map_or_else(Vec::new, |(top, raw)| sampling::logprobs(&raw, id, top));
        self.usage.new_tokens += 1;
        if self.ends_text(id, limits) {
            return Some(FinishReason::EndOfText(id));
        }
        self.tokens.push(id);
        let piece = self.detokenizer.as_mut().map_or_else(String::new, |d| d.push(id));
        let (text, stopped) = match self.stop.push(&piece) {
            StopState::Continue(text) => (text, None),
            StopState::Stopped(text, which) => {
                (text, Some(FinishReason::StopString(self.stop.stop(which).to_owned())))
            }
        };
        events.push(Event::Token { request: self.id, id, text, logprobs });
        stopped.or_else(|| self.limit_reached(limits))
    }

    fn ends_text(&self, id: u32, limits: &Limits<'_>) -> bool {
        let by_model = !self.request.ignore_stop_ids && limits.stop_ids.contains(&id);
        by_model || self.request.stop_ids.contains(&id)
    }

    fn limit_reached(&self, limits: &Limits<'_>) -> Option<FinishReason> {
        if self.request.max_new_tokens.is_some_and(|max| self.usage.new_tokens >= max) {
            Some(FinishReason::Length)
        } else if self.tokens.len() >= limits.context_tokens {
            Some(FinishReason::ContextFull)
        } else {
            None
        }
    }

    /// The last event; text that was held back for a stop string that did not come is given out.
    pub fn finished(mut self, reason: FinishReason) -> Event {
        let mut text = String::new();
        if !matches!(reason, FinishReason::StopString(_)) {
            if let Some(detokenizer) = &mut self.detokenizer
                && let StopState::Continue(tail) = self.stop.push(&detokenizer.finish())
            {
                text.push_str(&tail);
            }
            text.push_str(&self.stop.finish());
        }
        Event::Finished { request: self.id, reason, text, usage: self.usage }
    }
}

/// What bounds every generation of an engine.
pub(crate) struct Limits<'a> {
    pub context_tokens: usize,
    pub stop_ids: &'a [u32],
}
