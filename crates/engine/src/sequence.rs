//! One generation while it is in the engine.

use std::time::Duration;

use neap_memory::cache::{Asked, Forecast, Incoming, KvCache};
use neap_memory::{Block, BlockTable, Budget, KvQuality, Level, Namespace};
use neap_model::tokenizer::{DetokenizeOptions, Detokenizer, Tokenizer};

use crate::engine::AdapterId;
use crate::fairness::Waiting;
use crate::grammar::Grammar;
use crate::request::{Event, FinishReason, Request, RequestId, Usage};
use crate::sampling::{self, Sampler};
use crate::schedule::{self, Candidate};
use crate::stop::{StopMatcher, StopState};

/// Blocks that are loaded in a step where no thread loads them, as in simulations.
const BLOCKS_A_STEP: usize = 4;

/// Pairs of a new token and one that it attended to, by the level of the latter: what share of the attention
/// went to which level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttendedTokens {
    /// As the model wrote them.
    pub hot: u64,
    /// At int8.
    pub int8: u64,
    /// At int4.
    pub int4: u64,
}

impl AttendedTokens {
    /// At every level together.
    #[must_use]
    pub fn pairs(&self) -> u64 {
        self.hot + self.int8 + self.int4
    }

    fn add(&mut self, level: Level, tokens: u64) {
        match level {
            Level::Int8 => self.int8 += tokens,
            Level::Int4 => self.int4 += tokens,
            _ => self.hot += tokens,
        }
    }
}

pub(crate) struct Sequence {
    pub id: RequestId,
    pub table: BlockTable,
    pub usage: Usage,
    /// The end of its known prefix, while that is loaded.
    pub incoming: Option<Incoming>,
    /// What is added to its products.
    pub adapter: Option<AdapterId>,
    /// Blocks, counted from the first, that the prefix cache may hold too.
    cached_blocks: usize,
    /// Blocks, counted from the first, that have sunk to the level asked for, or could not.
    sunk_blocks: usize,
    was_preempted: bool,
    /// Steps in which blocks were brought up for the sequence while it waited.
    pub promotions: u32,
    /// Blocks that the remote level reads for the sequence.
    asked: Option<Asked>,
    has_asked: bool,
    /// When it counts as come; see [`schedule::due_ms`].
    due_ms: i64,
    grammar: Option<Grammar>,
    namespace: Namespace,
    request: Request,
    /// Prompt, then answer.
    tokens: Vec<u32>,
    sampler: Sampler,
    stop: StopMatcher,
    detokenizer: Option<Detokenizer>,
}

/// What a sequence is called, and its blocks.
pub(crate) struct Named {
    pub id: RequestId,
    pub namespace: Namespace,
    pub adapter: Option<AdapterId>,
}

impl Sequence {
    pub fn new(
        named: Named,
        mut request: Request,
        table: BlockTable,
        tokenizer: Option<&Tokenizer>,
        now_ms: u64,
    ) -> Self {
        let options = DetokenizeOptions {
            skip_special: !request.show_special,
            ..DetokenizeOptions::continuation()
        };
        Self {
            id: named.id,
            table,
            usage: Usage {
                prompt_tokens: request.prompt.len(),
                ..Usage::default()
            },
            incoming: None,
            adapter: named.adapter,
            cached_blocks: 0,
            sunk_blocks: 0,
            was_preempted: false,
            promotions: 0,
            asked: None,
            has_asked: false,
            due_ms: schedule::due_ms(now_ms, request.priority),
            grammar: request.grammar.take(),
            namespace: named.namespace,
            tokens: request.prompt.clone(),
            sampler: Sampler::new(request.sampling.clone()),
            stop: StopMatcher::new(&request.stop_strings),
            detokenizer: tokenizer.map(|t| t.detokenizer(options)),
            request,
        }
    }

    /// The order of arrival, in which a priority counts as an earlier one.
    pub fn rank(&self) -> (i64, RequestId) {
        (self.due_ms, self.id)
    }

    /// Whose it is.
    pub fn tenant(&self) -> &str {
        &self.request.tenant
    }

    /// The sequence as it waits for its turn among tenants.
    pub fn queued(&self) -> Waiting<'_> {
        Waiting {
            tenant: self.tenant(),
            rank: (self.due_ms, self.id.0),
            cost_tokens: self.tokens.len() as u64,
        }
    }

    /// Its deadline has passed.
    pub fn is_late(&self, now_ms: u64) -> bool {
        self.request.deadline_ms.is_some_and(|end| end <= now_ms)
    }

    /// The sequence as the scheduler sees it while it runs.
    pub fn running_candidate(&self, cache: &KvCache) -> Candidate {
        let block_tokens = self.table.block_tokens();
        let computed_tokens = self.table.len_tokens();
        let blocks = self.table.blocks();
        // A shared block that is not full is copied before it is written.
        let partial =
            (!computed_tokens.is_multiple_of(block_tokens)).then(|| computed_tokens / block_tokens);
        let copied = partial.is_some_and(|index| blocks[index].is_shared());
        let sunk_bytes = self.sunk_block_bytes(cache);
        let sinkable = self.table.sinkable_blocks();
        let is_freeable = |(index, block): &(usize, &Block)| {
            block.claims() <= if *index < self.cached_blocks { 2 } else { 1 }
        };
        let once_sunk = |(index, block): (usize, &Block)| match sinkable.contains(&index) {
            true => block.charged_bytes().min(sunk_bytes),
            false => block.charged_bytes(),
        };
        let own = blocks.iter().enumerate().filter(is_freeable);
        let incoming_bytes = self.incoming.as_ref().map_or(0, Incoming::freeable_bytes);
        Candidate {
            computed_tokens,
            pending_tokens: self.pending_tokens(cache),
            held_blocks: blocks.len() - usize::from(copied),
            attach_bytes: 0,
            freeable_bytes: own.map(once_sunk).sum::<u64>() + incoming_bytes,
            sunk_block_bytes: self.old_block_bytes(cache),
        }
    }

    /// Bytes of one of its old blocks, once that has sunk as far as the quality allows while the sequence runs.
    fn sunk_block_bytes(&self, cache: &KvCache) -> u64 {
        cache.charged_bytes_at(self.quality().lowest(false))
    }

    /// The same once it is trimmed besides, where there is a window.
    fn old_block_bytes(&self, cache: &KvCache) -> u64 {
        cache.charged_head_bytes_at(self.quality().lowest(false))
    }

    /// Bytes that there would be room for if its old blocks sank; its part of those that it shares.
    pub fn sinkable_bytes(&self, cache: &KvCache) -> u64 {
        let sunk_bytes = self.sunk_block_bytes(cache);
        let blocks = self.table.sinkable_blocks();
        let gain = |block: &Block| {
            let users = block.claims().saturating_sub(1) as u64;
            let gain = block.charged_bytes().saturating_sub(sunk_bytes);
            gain.checked_div(users).unwrap_or(0)
        };
        self.table.blocks()[blocks].iter().map(gain).sum()
    }

    /// Tokens to be computed: up to where it meets what is being loaded, or to the end.
    fn pending_tokens(&self, cache: &KvCache) -> usize {
        let computed = self.table.len_tokens();
        let meeting = |incoming| cache.meeting_tokens(incoming, computed);
        let end = self.incoming.as_ref().and_then(meeting);
        end.unwrap_or(self.tokens.len()).saturating_sub(computed)
    }

    /// Tokens that a chunk of `tokens` lacks to what is pending, within what was forecast to be attached.
    pub fn uncovered_tokens(&self, cache: &KvCache, tokens: usize) -> usize {
        match self.incoming {
            Some(_) => self.pending_tokens(cache).saturating_sub(tokens),
            None => 0,
        }
    }

    /// Whether the next `tokens` tokens are all that is known.
    pub fn ends_with(&self, tokens: usize) -> bool {
        self.table.len_tokens() + tokens == self.tokens.len()
    }

    /// The sequence as the scheduler sees it while it waits and the cache holds `hit` of it.
    pub fn waiting_candidate(&self, hit: Forecast, cache: &KvCache) -> Candidate {
        Candidate {
            computed_tokens: hit.tokens,
            pending_tokens: self.tokens.len() - hit.tokens,
            held_blocks: hit.tokens / self.table.block_tokens(),
            attach_bytes: hit.attach_bytes,
            freeable_bytes: 0,
            sunk_block_bytes: self.old_block_bytes(cache),
        }
    }

    /// What the cache holds of the sequence.
    pub fn forecast(&self, cache: &KvCache) -> Forecast {
        cache.forecast(&self.namespace, &self.tokens[..self.tokens.len() - 1])
    }

    /// Brings a part of what the cache holds of the sequence up, while it waits. Whether there is more to bring.
    pub fn promote(&mut self, cache: &mut KvCache, keep_free_bytes: u64) -> bool {
        let known = &self.tokens[..self.tokens.len() - 1];
        self.promotions += 1;
        cache.promote(&self.namespace, known, keep_free_bytes)
    }

    /// Asks the remote level for what the cache does not hold, once, and enters what has come of it, for which it waits no
    /// longer than `patience`. Whether there may come more.
    pub fn fetch(&mut self, cache: &mut KvCache, now_ms: u64, patience: Duration) -> bool {
        let known = &self.tokens[..self.tokens.len() - 1];
        let is_new = !std::mem::replace(&mut self.has_asked, true);
        // A slow one is read from its end while its beginning is computed.
        if is_new && !cache.would_meet(&self.namespace, known, now_ms) {
            self.asked = cache.ask_remote(&self.namespace, known, now_ms);
        }
        let asked = self.asked.as_mut();
        if !asked.is_some_and(|asked| cache.take_remote(asked, now_ms, patience)) {
            self.asked = None;
        }
        self.is_fetching()
    }

    /// The remote level was asked, or need not be.
    pub fn has_asked(&self) -> bool {
        self.has_asked
    }

    /// Blocks may come yet.
    pub fn is_fetching(&self) -> bool {
        self.asked.is_some()
    }

    /// Takes over what the cache holds of the sequence, or what is at hand of it while the rest is loaded.
    pub fn attach(&mut self, cache: &mut KvCache, now_ms: u64) {
        // The last token must be computed: its logits choose the next.
        let known = &self.tokens[..self.tokens.len() - 1];
        self.incoming = cache.attach_or_load(&self.namespace, known, &mut self.table, now_ms);
        self.cached_blocks = self.table.len_blocks();
        self.count_found(self.table.len_tokens());
    }

    fn count_found(&mut self, tokens: usize) {
        if self.was_preempted {
            self.usage.recomputed_tokens -= tokens.min(self.usage.recomputed_tokens);
        } else {
            self.usage.cached_tokens += tokens;
        }
    }

    /// Attaches what was loaded, if the sequence has come to it.
    pub fn attach_incoming(&mut self, cache: &mut KvCache, now_ms: u64) {
        let Some(mut incoming) = self.incoming.take() else {
            return;
        };
        let before = self.table.len_tokens();
        if cache.attach_incoming(&mut incoming, &mut self.table, BLOCKS_A_STEP) {
            self.incoming = Some(incoming);
        }
        self.count_found(self.table.len_tokens() - before);
        self.share(cache, now_ms);
    }

    /// Shares the full blocks with the cache, so that others need not compute them.
    pub fn share(&mut self, cache: &mut KvCache, now_ms: u64) {
        let full = self.table.len_full_blocks();
        if full > self.cached_blocks {
            let tokens = full * self.table.block_tokens();
            cache.insert(
                &self.namespace,
                &self.tokens[..tokens],
                &mut self.table,
                now_ms,
            );
            self.cached_blocks = full;
        }
    }

    /// Lets the blocks that were shared, and are old enough, sink to `level` as far as the quality allows.
    pub fn sink(&mut self, cache: &mut KvCache, level: Level) {
        let blocks = self.table.sinkable_blocks();
        let (first, end) = (self.sunk_blocks.max(blocks.start), blocks.end);
        if first < end {
            let tokens = &self.tokens[..end * self.table.block_tokens()];
            cache.sink(&self.namespace, tokens, &mut self.table, first..end, level);
            self.sunk_blocks = end;
        }
    }

    /// How low the sequence's blocks may sink.
    pub fn quality(&self) -> KvQuality {
        self.namespace.quality()
    }

    /// Whether they may sink at all.
    pub fn is_lossy(&self) -> bool {
        self.quality() > KvQuality::Exact
    }

    /// Adds to `sums` what computing the next `tokens` tokens attends to, in pairs of tokens.
    pub fn count_attended(&self, tokens: usize, sums: &mut AttendedTokens) {
        let (block_tokens, before) = (self.table.block_tokens(), self.table.len_tokens());
        for (index, block) in self.table.blocks().iter().enumerate() {
            let held = before.saturating_sub(index * block_tokens);
            sums.add(block.level(), (held.min(block_tokens) * tokens) as u64);
        }
        sums.add(Level::Hot, (tokens * (tokens + 1) / 2) as u64);
    }

    /// Leaves everything computed to the cache.
    pub fn leave_to(&mut self, cache: &mut KvCache, now_ms: u64) {
        let computed = self.table.len_tokens();
        if computed > 0 {
            cache.insert(
                &self.namespace,
                &self.tokens[..computed],
                &mut self.table,
                now_ms,
            );
        }
    }

    /// Tokens that both sequences begin with, if they may share blocks.
    pub fn common_prefix(&self, other: &Self) -> usize {
        if self.namespace != other.namespace {
            return 0;
        }
        self.tokens
            .iter()
            .zip(&other.tokens)
            .take_while(|(a, b)| a == b)
            .count()
    }

    /// Tokens of the prompt are yet to be computed.
    pub fn is_in_prefill(&self) -> bool {
        self.tokens.len() - self.table.len_tokens() > 1
    }

    /// Splits the sequence into what a forward pass needs of it: the next `n` tokens and the table.
    pub fn chunk(&mut self, n: usize) -> (&[u32], &mut BlockTable) {
        let start = self.table.len_tokens();
        (&self.tokens[start..start + n], &mut self.table)
    }

    /// Leaves everything computed to the cache and gives all blocks up; what the cache has to evict
    /// meanwhile is computed again later.
    pub fn preempt(&mut self, cache: &mut KvCache, now_ms: u64) {
        self.leave_to(cache, now_ms);
        self.usage.recomputed_tokens += self.table.len_tokens();
        self.was_preempted = true;
        self.incoming = None;
        self.table.clear();
        self.cached_blocks = 0;
        self.sunk_blocks = 0;
    }

    /// Chooses the next token and says what it means: events, and the reason if it was the last.
    pub fn next_token(
        &mut self,
        logits: &mut [f32],
        limits: &Limits<'_>,
        events: &mut Vec<Event>,
    ) -> Option<FinishReason> {
        let raw = self.request.top_logprobs.map(|top| (top, logits.to_vec()));
        if let Some(grammar) = &mut self.grammar
            && let Err(why) = grammar.mask(logits)
        {
            return Some(FinishReason::GrammarFailed(why.to_string()));
        }
        let forced = self.request.forced.get(self.usage.new_tokens).copied();
        let id = forced.unwrap_or_else(|| self.sampler.sample(logits, &self.tokens));
        let logprobs = raw.map_or_else(Vec::new, |(top, raw)| sampling::logprobs(&raw, id, top));
        self.usage.new_tokens += 1;
        if forced.is_none() && self.ends_text(id, limits) {
            return Some(FinishReason::EndOfText(id));
        }
        if let Some(grammar) = &mut self.grammar
            && let Err(why) = grammar.push(id)
        {
            return Some(FinishReason::GrammarFailed(why.to_string()));
        }
        self.tokens.push(id);
        let piece = self
            .detokenizer
            .as_mut()
            .map_or_else(String::new, |d| d.push(id));
        let (text, stopped) = match self.stop.push(&piece) {
            StopState::Continue(text) => (text, None),
            StopState::Stopped(text, which) => (
                text,
                Some(FinishReason::StopString(self.stop.stop(which).to_owned())),
            ),
        };
        events.push(Event::Token {
            request: self.id,
            id,
            text,
            logprobs,
        });
        stopped
            .or_else(|| self.grammar_complete())
            .or_else(|| self.limit_reached(limits))
    }

    /// Charges what the grammar takes now; the reason to end if there is no room for it.
    pub fn pay_for_grammar(
        &self,
        budget: &Budget,
        make_room: impl FnMut(u64),
    ) -> Option<FinishReason> {
        let why = self.grammar.as_ref()?.pay(budget, make_room).err()?;
        Some(FinishReason::OutOfBudget {
            needed_bytes: why.needed,
            available_bytes: why.available,
        })
    }

    fn grammar_complete(&self) -> Option<FinishReason> {
        let is_complete = self.grammar.as_ref().is_some_and(Grammar::is_complete);
        is_complete.then_some(FinishReason::GrammarComplete)
    }

    fn ends_text(&self, id: u32, limits: &Limits<'_>) -> bool {
        let by_model = !self.request.ignore_stop_ids && limits.stop_ids.contains(&id);
        by_model || self.request.stop_ids.contains(&id)
    }

    fn limit_reached(&self, limits: &Limits<'_>) -> Option<FinishReason> {
        let forced = Some(self.request.forced.len()).filter(|&tokens| tokens > 0);
        let most = forced.or(self.request.max_new_tokens);
        if most.is_some_and(|most| self.usage.new_tokens >= most) {
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
        Event::Finished {
            request: self.id,
            reason,
            text,
            usage: self.usage,
        }
    }
}

/// What bounds every generation of an engine.
pub(crate) struct Limits<'a> {
    pub context_tokens: usize,
    pub stop_ids: &'a [u32],
}
