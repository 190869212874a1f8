//! The engine: takes requests in, computes steps, gives tokens out.
//!
//! No threads, clocks or I/O of its own: whoever drives it calls [`Engine::step`] until it is idle.

mod adapters;
mod incoming;
mod pace;
mod pressed;
mod speed;
mod weights;
mod window;

use std::time::Duration;

use neap_memory::cache::{CacheStats, KvCache};
use neap_memory::governor::Occasion;
use neap_memory::{BlockTable, Budget, ChargeKind, Fingerprint, KvPool, KvQuality, Level};
use neap_model::decoder::{Decoder, LogitsWanted, SequenceChunk};
use neap_model::tokenizer::Tokenizer;

pub(crate) use adapters::AdapterId;
use adapters::Adapters;
pub use adapters::{AdapterNameTaken, AdapterState};
use pace::Pace;
pub use pressed::PRESSED_PAUSE;
use speed::Speed;

use crate::fairness::Shares;
use crate::request::{AdmissionError, Event, FinishReason, Request, RequestId};
use crate::schedule::{self, Candidate, Plan, Snapshot};
use crate::sequence::{AttendedTokens, Limits, Named, Sequence};

/// Waiting requests that are looked at beyond those that find a place, for one that need not wait for a prefix.
const LOOK_PAST: usize = 32;
/// Waiting requests that the remote level reads for at once.
const MOST_FETCHING: usize = 4;
/// How long one step waits for the remote level where nothing else is to be done: what happens meanwhile waits too.
const FETCH_PATIENCE: Duration = Duration::from_millis(5);

/// One part in so many of the budget sinks at once at least where blocks of running sequences must sink: finding
/// them costs the same whether few or many sink.
const SUNK_AHEAD_SHARE: u64 = 128;

/// Limits of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// Tokens that one step computes at most, over all sequences.
    pub batch_tokens: usize,
    /// Milliseconds that a step should take at most; the batch is made smaller for it where the caller's clock
    /// shows that it must be. None: as long as it takes.
    pub step_ms: Option<u64>,
    /// Sequences that run at once at most.
    pub max_running: usize,
    /// The model and everything else that the contents of a block depend on.
    pub fingerprint: Fingerprint,
    /// Keeps tenants from guessing the names of each other's cached blocks: random.
    pub secret: [u8; 32],
    /// How low keys and values may sink when room is short.
    pub quality: KvQuality,
    /// The level that old blocks of running sequences sink to at once, as far as their quality allows;
    /// [`Level::Hot`]: when room is short.
    pub level: Level,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            batch_tokens: 512,
            step_ms: None,
            max_running: 32,
            fingerprint: Fingerprint::of_parts(&[]),
            secret: [0; 32],
            quality: KvQuality::Exact,
            level: Level::Hot,
        }
    }
}

/// Many generations on one decoder inside one budget.
pub struct Engine<D> {
    decoder: D,
    tokenizer: Option<Tokenizer>,
    stop_ids: Vec<u32>,
    budget: Budget,
    kv: KvPool,
    cache: KvCache,
    config: EngineConfig,
    /// Both in order of rank.
    running: Vec<Sequence>,
    waiting: Vec<Sequence>,
    shares: Shares,
    adapters: Adapters,
    next_id: u64,
    is_pressed: bool,
    steps: u64,
    preemptions: u64,
    attended: AttendedTokens,
    pace: Pace,
    speed: Speed,
    /// When weights were let go of last.
    weights_released_ms: Option<u64>,
    /// The caller's clock at the last step.
    now_ms: u64,
}

impl<D: Decoder> Engine<D> {
    /// `cache` must be over blocks of the decoder's size. Without a tokenizer, events carry no text
    /// and only `Request::stop_ids` end a generation.
    ///
    /// # Panics
    /// If a limit of `config` is zero or over the decoder's.
    pub fn new(
        decoder: D,
        tokenizer: Option<Tokenizer>,
        cache: KvCache,
        config: EngineConfig,
    ) -> Self {
        let limits = decoder.limits();
        assert!(
            (1..=limits.batch_tokens).contains(&config.batch_tokens),
            "batch_tokens out of range"
        );
        assert!(
            (1..=limits.logit_rows).contains(&config.max_running),
            "max_running out of range"
        );
        let stop_ids = tokenizer
            .as_ref()
            .map_or_else(Vec::new, |t| t.stop_ids().to_vec());
        let kv = cache.pool().clone();
        Self {
            decoder,
            tokenizer,
            stop_ids,
            budget: kv.budget().clone(),
            kv,
            cache,
            config,
            running: Vec::new(),
            waiting: Vec::new(),
            shares: Shares::default(),
            adapters: Adapters::default(),
            next_id: 0,
            is_pressed: false,
            steps: 0,
            preemptions: 0,
            attended: AttendedTokens::default(),
            pace: Pace::new(config.step_ms),
            speed: Speed::default(),
            weights_released_ms: None,
            now_ms: 0,
        }
    }

    /// Takes a request in, or says why it can never run. It waits until there is room.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, AdmissionError> {
        self.check(&request)?;
        let adapter = self.adapter_of(&request)?;
        let namespace = self.namespace_of(&request)?;
        if let Some(grammar) = &request.grammar {
            let paid = grammar.pay(&self.budget, room_in(&mut self.cache, self.now_ms));
            paid.map_err(|why| AdmissionError::GrammarDoesNotFit {
                needed_bytes: why.needed,
                available_bytes: why.available,
            })?;
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        // What only the disk level knows, from before a restart, is forecast from now on.
        let known = &request.prompt[..request.prompt.len() - 1];
        self.cache.adopt(&namespace, known, self.now_ms);
        let table = BlockTable::new(&self.kv);
        let present = self.running.iter().chain(&self.waiting);
        self.shares
            .enter(&request.tenant, present.map(Sequence::tenant));
        let tokenizer = self.tokenizer.as_ref();
        let named = Named {
            id,
            namespace,
            adapter,
        };
        let sequence = Sequence::new(named, request, table, tokenizer, self.now_ms);
        self.enqueue(sequence);
        Ok(id)
    }

    fn check(&self, request: &Request) -> Result<(), AdmissionError> {
        let prompt_tokens = request.prompt.len();
        if prompt_tokens == 0 {
            return Err(AdmissionError::EmptyPrompt);
        }
        let vocab_size = self.decoder.vocab_size();
        let mut tokens = request.prompt.iter().chain(&request.forced);
        if let Some(position) = tokens.position(|&id| id as usize >= vocab_size) {
            let prompt = request.prompt.get(position);
            return Err(AdmissionError::UnknownToken {
                id: *prompt.unwrap_or_else(|| &request.forced[position - prompt_tokens]),
                position,
                vocab_size,
            });
        }
        let context_tokens = self.decoder.context_tokens();
        if prompt_tokens >= context_tokens {
            return Err(AdmissionError::PromptTooLong {
                prompt_tokens,
                context_tokens,
            });
        }
        request.sampling.validate(vocab_size)?;
        // The last new token is never computed: its keys and values take no room.
        let new_tokens = request.max_new_tokens.unwrap_or(1).saturating_sub(1);
        let tokens = (prompt_tokens + new_tokens).min(context_tokens);
        self.check_fits(tokens, self.quality_of(request.quality))
    }

    /// The quality that a request gets: what it asks for, but no lower than the engine's.
    fn quality_of(&self, asked: Option<KvQuality>) -> KvQuality {
        let allowed = self.config.quality;
        asked.map_or(allowed, |asked| asked.min(allowed))
    }

    fn check_fits(&self, tokens: usize, quality: KvQuality) -> Result<(), AdmissionError> {
        let ages = self.ages(quality);
        let blocks = tokens.div_ceil(self.kv.block_tokens()) as u64;
        let needed_bytes = window::bytes_of(blocks, &ages);
        let other = self
            .budget
            .charged()
            .saturating_sub(self.budget.snapshot().of_kind(ChargeKind::Kv));
        // What does not fit while something presses from outside waits until that is over.
        let limit_bytes = self.budget.allowed();
        // Weights give way before a request fails.
        let free_bytes = limit_bytes.saturating_sub(other)
            + self.decoder.releasable_weight_bytes()
            + self.releasable_adapter_bytes();
        if needed_bytes <= free_bytes {
            return Ok(());
        }
        let fitting_tokens = window::blocks_in(free_bytes, &ages) as usize * self.kv.block_tokens();
        Err(AdmissionError::DoesNotFit {
            tokens,
            needed_bytes,
            free_bytes,
            limit_bytes,
            fitting_tokens,
        })
    }

    fn enqueue(&mut self, sequence: Sequence) {
        let at = self
            .waiting
            .partition_point(|other| other.rank() < sequence.rank());
        self.waiting.insert(at, sequence);
    }

    /// Takes a request back; what it computed stays in the prefix cache while there is room. `None`
    /// if it is not here.
    pub fn cancel(&mut self, id: RequestId) -> Option<Event> {
        for queue in [&mut self.running, &mut self.waiting] {
            if let Some(at) = queue.iter().position(|s| s.id == id) {
                let mut sequence = queue.remove(at);
                sequence.leave_to(&mut self.cache, self.now_ms);
                return Some(sequence.finished(FinishReason::Cancelled));
            }
        }
        None
    }

    /// Figures of the prefix cache.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// Lets every cached block in RAM go that no running sequence uses: to disk, if there is a disk level.
    pub fn clear_cache(&mut self) {
        self.cache.free(u64::MAX, Occasion::Shrink, self.now_ms);
    }

    /// The prefix cache, to be looked at.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// Sequences that gave their blocks up for others so far.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// What was attended to at which level so far.
    pub fn attended(&self) -> AttendedTokens {
        self.attended
    }

    /// The prefix cache, for what goes beyond running: sessions, decisions, costs.
    pub fn cache_mut(&mut self) -> &mut KvCache {
        &mut self.cache
    }

    /// Checks the laws of budget, blocks, tables and cache.
    ///
    /// # Errors
    /// A description of the first law that is broken.
    pub fn check_conservation(&self) -> Result<(), String> {
        self.kv.check_conservation()?;
        self.cache.check_conservation()?;
        self.running
            .iter()
            .try_for_each(|s| s.table.check_conservation())
    }

    /// Nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Sequences that hold blocks, and those that wait.
    pub fn load(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// Steps computed so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The decoder.
    pub fn decoder(&self) -> &D {
        &self.decoder
    }

    /// The blocks.
    pub fn kv(&self) -> &KvPool {
        &self.kv
    }

    /// The budget.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// What an engine does that has nothing to compute: pays for a budget that shrank, and uses one that grew.
    /// To be called now and then while [`Engine::is_idle`].
    pub fn rest(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.cache.shrink(now_ms);
        self.balance_weights(0);
    }

    /// Gives back about `bytes` of the prefix cache without losing any of it: to disk, or packed where there is none.
    /// For an engine that has had nothing to do for a while; 0 when nothing more can be given.
    pub fn sink_unused(&mut self, bytes: u64, now_ms: u64) -> u64 {
        self.now_ms = now_ms;
        self.cache.sink_unused(bytes, now_ms)
    }

    /// Holds as little as it can: cached blocks go to disk, or are let go of where there is none, weights are read
    /// from their file at each use. For an idle engine whose place another is to take; one that goes on takes its
    /// weights back by and by.
    pub fn make_way(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.clear_cache();
        self.release_weights(u64::MAX);
    }

    /// Changes [`EngineConfig::step_ms`].
    pub fn set_step_ms(&mut self, step_ms: Option<u64>) {
        self.config.step_ms = step_ms;
        self.pace.set_target(step_ms);
    }

    /// Computes one batch and gives what came of it. An idle engine gives nothing. `now_ms` is the
    /// caller's clock: it never falls, and only differences count.
    pub fn step(&mut self, now_ms: u64) -> Vec<Event> {
        self.now_ms = now_ms;
        let mut events = Vec::new();
        if self.is_idle() {
            self.is_pressed = false;
            return events;
        }
        self.pace.begin(now_ms);
        self.speed.begin(now_ms, &mut self.cache);
        self.expire(&mut events);
        self.attach_incoming();
        let mut plan = self.plan();
        if plan.starved.is_some() && self.let_incoming_go() {
            plan = self.plan();
        }
        if plan.starved.is_some() && self.release_weights_for_blocks() {
            plan = self.plan();
        }
        self.look_for_pressure(plan.starved.is_some());
        match plan.starved {
            Some(_) if self.is_pressed => return events,
            Some(index) => {
                self.starve(index, &mut events);
                return events;
            }
            None => self.steps += 1,
        }
        let chunks = self.rearrange(&plan);
        let chunks = self.reserve(chunks);
        let chunks = self.load_adapters(chunks, &mut events);
        let before = self.attended.pairs();
        self.compute(&chunks, &mut events);
        if !self.is_idle() {
            let tokens = chunks.iter().map(|c| c.1).sum();
            self.pace.computed(now_ms, tokens);
            let work = (tokens as u64, self.attended.pairs() - before);
            self.speed.computed(now_ms, work, &self.cache);
        }
        events
    }

    /// Ends what is past its deadline.
    fn expire(&mut self, events: &mut Vec<Event>) {
        for queue in [&mut self.running, &mut self.waiting] {
            for mut late in queue.extract_if(.., |s| s.is_late(self.now_ms)) {
                late.leave_to(&mut self.cache, self.now_ms);
                events.push(late.finished(FinishReason::DeadlineExceeded));
            }
        }
    }

    fn plan(&mut self) -> Plan {
        self.fetch_ahead();
        self.pay_for_shrink();
        let running = self.running_candidates();
        let waiting = match self.promote_ahead(&running) {
            true => Vec::new(),
            false => self.admissible(),
        };
        let wanted_bytes = schedule::bytes_wanted(&running, &waiting, self.block_size());
        self.trim(wanted_bytes);
        self.balance_weights(wanted_bytes);
        let short = wanted_bytes.saturating_sub(self.free_bytes_up_to(wanted_bytes));
        let sinkable_bytes = match short {
            0 => 0,
            _ => self.sinkable_bytes(),
        };
        let mut plan = self.plan_within(&waiting, wanted_bytes, sinkable_bytes);
        if plan.sink_bytes > 0 && self.sink_running(plan.sink_bytes) < plan.sink_bytes {
            // Not everything sank: who needs it has to wait, or others give way.
            plan = self.plan_within(&waiting, wanted_bytes, 0);
        }
        tracing::trace!(?plan, "planned a step");
        plan
    }

    /// Plans with what is free of the `wanted_bytes`, and `sinkable_bytes` besides.
    fn plan_within(&self, waiting: &[Candidate], wanted_bytes: u64, sinkable_bytes: u64) -> Plan {
        let (block_bytes, block_tokens) = self.block_size();
        schedule::plan(&Snapshot {
            running: &self.running_candidates(),
            waiting,
            free_bytes: self.free_bytes_up_to(wanted_bytes),
            sinkable_bytes,
            deficit_bytes: self.budget.excess(),
            block_bytes,
            block_tokens,
            recent_tokens: self.recent_tokens(),
            batch_tokens: self.pace.limit(self.config.batch_tokens),
            max_running: self.config.max_running,
        })
    }

    /// Bytes and tokens of a block.
    fn block_size(&self) -> (u64, usize) {
        (self.kv.charged_block_bytes(), self.kv.block_tokens())
    }

    /// What the budget and the cache have room for, counted until `wanted_bytes` are found.
    fn free_bytes_up_to(&self, wanted_bytes: u64) -> u64 {
        let available = self.budget.available();
        let missing = wanted_bytes.saturating_sub(available);
        available + self.cache.freeable_bytes_up_to(missing)
    }

    fn running_candidates(&self) -> Vec<Candidate> {
        self.running
            .iter()
            .map(|sequence| sequence.running_candidate(&self.cache))
            .collect()
    }

    /// What old blocks of running sequences would give if they sank.
    fn sinkable_bytes(&self) -> u64 {
        let lossy = self.running.iter().filter(|s| s.is_lossy());
        lossy.map(|s| s.sinkable_bytes(&self.cache)).sum()
    }

    /// Lets old blocks of running sequences sink for `bytes`, and a little ahead. Returns what that gave.
    fn sink_running(&mut self, bytes: u64) -> u64 {
        let ahead = self.budget.limit() / SUNK_AHEAD_SHARE;
        let mut lossy = lossy_tables(&mut self.running);
        self.cache
            .sink_running(bytes.max(ahead), self.now_ms, &mut lossy)
    }

    /// Pays for a budget that shrank with cached blocks and, where these are not enough, lets old blocks of running
    /// sequences sink. Sequences are preempted for what is missing still.
    fn pay_for_shrink(&mut self) {
        if self.budget.excess() > 0 {
            self.let_incoming_go();
            self.trim(0);
            let mut lossy = lossy_tables(&mut self.running);
            self.cache.shrink_with(self.now_ms, &mut lossy);
        }
    }

    /// Has the remote level read for those who wait first, and takes what has come; who runs does not wait for it.
    fn fetch_ahead(&mut self) {
        let mut patience = match self.running.is_empty() {
            true => FETCH_PATIENCE,
            false => Duration::ZERO,
        };
        for index in 0..self.waiting.len().min(MOST_FETCHING) {
            let (before, rest) = self.waiting.split_at_mut(index);
            let sequence = &mut rest[0];
            // What is on its way for another one is not asked for twice.
            let worth_asking = || {
                let found = sequence.forecast(&self.cache).tokens + self.kv.block_tokens();
                let mut fetching = before.iter().filter(|other| other.is_fetching());
                !fetching.any(|other| sequence.common_prefix(other) > found)
            };
            if (sequence.has_asked() || worth_asking())
                && sequence.fetch(&mut self.cache, self.now_ms, patience)
            {
                patience = Duration::ZERO;
            }
        }
    }

    /// Brings blocks of the first that waits up, a few in each step, so that those that run do not wait for all of
    /// them at once. Whether there are more to bring.
    fn promote_ahead(&mut self, running: &[Candidate]) -> bool {
        /// Others may sink again what was brought up: this comes to an end.
        const MOST_STEPS: u32 = 64;
        let (block_bytes, block_tokens) = self.block_size();
        let Some(first) = self.waiting.first_mut() else {
            return false;
        };
        if running.is_empty() || first.promotions >= MOST_STEPS {
            return false;
        }
        let kept_free_bytes = running.len() as u64 * block_bytes
            + schedule::bytes_wanted(running, &[], (block_bytes, block_tokens));
        first.promote(&mut self.cache, kept_free_bytes)
    }

    /// Those whose turn it is, moved to the front of the waiting. Who would compute a prefix that another computes
    /// already waits to share it, and lets others pass meanwhile.
    fn admissible(&mut self) -> Vec<Candidate> {
        let places = self.config.max_running.saturating_sub(self.running.len());
        if places == 0 || self.waiting.is_empty() {
            return Vec::new();
        }
        self.order_waiting();
        let mut candidates = Vec::new();
        let mut chosen = vec![false; self.waiting.len()];
        let looked_at = self.waiting.iter().take(places + LOOK_PAST).enumerate();
        for (index, sequence) in looked_at {
            let hit = sequence.forecast(&self.cache);
            let mut ahead = self
                .running
                .iter()
                .filter(|s| s.is_in_prefill())
                .chain(&self.waiting[..index]);
            let worth_waiting = hit.tokens + self.kv.block_tokens();
            if !sequence.is_fetching()
                && !ahead.any(|other| sequence.common_prefix(other) > worth_waiting)
            {
                candidates.push(sequence.waiting_candidate(hit, &self.cache));
                chosen[index] = true;
            }
            if candidates.len() == places {
                break;
            }
        }
        let mut chosen = chosen.into_iter();
        let mut rest = Vec::new();
        let passed_over = |_: &mut Sequence| chosen.next() != Some(true);
        rest.extend(self.waiting.extract_if(.., passed_over));
        self.waiting.append(&mut rest);
        candidates
    }

    /// Puts those who wait in the order of their turns.
    fn order_waiting(&mut self) {
        let queued: Vec<_> = self.waiting.iter().map(Sequence::queued).collect();
        let order = self.shares.order(&queued);
        let mut places: Vec<Option<Sequence>> = self.waiting.drain(..).map(Some).collect();
        let ordered = order.into_iter().filter_map(|index| places[index].take());
        self.waiting.extend(ordered);
    }

    fn starve(&mut self, index: usize, events: &mut Vec<Event>) {
        let queue = if self.running.is_empty() {
            &mut self.waiting
        } else {
            &mut self.running
        };
        let sequence = queue.remove(index);
        let reason = FinishReason::OutOfBudget {
            needed_bytes: self.kv.charged_block_bytes(),
            available_bytes: self.budget.available(),
        };
        events.push(sequence.finished(reason));
    }

    /// Carries out admissions and preemptions; gives the chunks as ids, since indices change.
    fn rearrange(&mut self, plan: &Plan) -> Vec<(RequestId, usize)> {
        let ran = self.running.len();
        for mut sequence in self.waiting.drain(..plan.admit) {
            sequence.attach(&mut self.cache, self.now_ms);
            self.running.push(sequence);
        }
        let mut spare = self.pace.limit(self.config.batch_tokens);
        spare = spare.saturating_sub(plan.chunks.iter().map(|c| c.1).sum());
        let mut chunks = Vec::with_capacity(plan.chunks.len());
        for &(index, tokens) in &plan.chunks {
            // What was forecast to be attached and is computed instead has room.
            let more = match index < ran {
                true => 0,
                false => self.running[index].uncovered_tokens(&self.cache, tokens),
            };
            let more = more.min(spare);
            spare -= more;
            chunks.push((self.running[index].id, tokens + more));
        }
        for &index in plan.preempt.iter().rev() {
            let mut sequence = self.running.remove(index);
            tracing::debug!(
                request = sequence.id.0,
                tokens = sequence.table.len_tokens(),
                "preempted"
            );
            sequence.preempt(&mut self.cache, self.now_ms);
            self.preemptions += 1;
            self.enqueue(sequence);
        }
        self.running.sort_by_key(Sequence::rank);
        chunks
    }

    /// Room for every chunk; one that finds none after all (the budget changed meanwhile) sits this
    /// step out.
    fn reserve(&mut self, chunks: Vec<(RequestId, usize)>) -> Vec<(usize, usize)> {
        let mut reserved = Vec::with_capacity(chunks.len());
        for (index, sequence) in self.running.iter_mut().enumerate() {
            let Some(&(_, tokens)) = chunks.iter().find(|(id, _)| *id == sequence.id) else {
                continue;
            };
            let candidate = sequence.running_candidate(&self.cache);
            // The cache may have given more than was forecast.
            let tokens = tokens.min(candidate.pending_tokens);
            let blocks = (candidate.computed_tokens + tokens).div_ceil(self.kv.block_tokens());
            let new = blocks.saturating_sub(candidate.held_blocks) as u64;
            let missing =
                (new * self.kv.charged_block_bytes()).saturating_sub(self.budget.available());
            if missing > 0 {
                self.cache.free(missing, Occasion::Admission, self.now_ms);
            }
            match sequence.table.reserve(tokens) {
                Ok(()) => reserved.push((index, tokens)),
                Err(why) => tracing::debug!(request = sequence.id.0, %why, "no room in this step"),
            }
        }
        reserved
    }

    fn compute(&mut self, chunks: &[(usize, usize)], events: &mut Vec<Event>) {
        let mut attended = self.attended;
        let (mut batch, parts) = batch_of(&mut self.running, chunks, &self.adapters, &mut attended);
        if batch.is_empty() {
            return;
        }
        self.attended = attended;
        let vocab_size = self.decoder.vocab_size();
        let limits = Limits {
            context_tokens: self.decoder.context_tokens(),
            stop_ids: &self.stop_ids,
        };
        let mut finished: Vec<(usize, FinishReason)> = Vec::new();
        match self.decoder.forward(&mut batch) {
            Ok(logits) => {
                let mut rows = logits.chunks_exact_mut(vocab_size);
                for Part {
                    index,
                    tokens,
                    wanted,
                } in parts
                {
                    let work = tokens as u64 + u64::from(wanted);
                    self.shares.charge(self.running[index].tenant(), work);
                    // Before the table goes on, so that those who wait for this prefix find it.
                    let sequence = &mut self.running[index];
                    sequence.share(&mut self.cache, self.now_ms);
                    sequence.sink(&mut self.cache, self.config.level);
                    if !wanted {
                        continue;
                    }
                    let row = rows
                        .next()
                        .expect("one row of logits for each sequence that wants one");
                    let sequence = &mut self.running[index];
                    let reason = sequence.next_token(row, &limits, events);
                    let make_room = room_in(&mut self.cache, self.now_ms);
                    let reason =
                        reason.or_else(|| sequence.pay_for_grammar(&self.budget, make_room));
                    finished.extend(reason.map(|reason| (index, reason)));
                }
            }
            Err(why) => {
                tracing::error!(%why, "the forward pass failed");
                finished.extend(
                    chunks
                        .iter()
                        .map(|&(i, _)| (i, FinishReason::Failed(why.to_string()))),
                );
            }
        }
        finished.sort_by_key(|&(index, _)| index);
        for (index, reason) in finished.into_iter().rev() {
            let mut sequence = self.running.remove(index);
            sequence.leave_to(&mut self.cache, self.now_ms);
            events.push(sequence.finished(reason));
        }
    }
}

/// Has cached blocks give way for what is not a block.
fn room_in(cache: &mut KvCache, now_ms: u64) -> impl FnMut(u64) + '_ {
    move |bytes| {
        cache.free(bytes, Occasion::Admission, now_ms);
    }
}

/// The tables of those whose blocks may sink.
fn lossy_tables(running: &mut [Sequence]) -> Vec<&mut BlockTable> {
    let lossy = running.iter_mut().filter(|s| s.is_lossy());
    lossy.map(|s| &mut s.table).collect()
}

/// What a chunk of a batch is of.
struct Part {
    /// Of the sequence among those that run.
    index: usize,
    tokens: usize,
    /// Whether it ends with a token to be chosen.
    wanted: bool,
}

/// The chunks as the decoder takes them: those of one adapter follow each other.
fn batch_of<'a>(
    running: &'a mut [Sequence],
    chunks: &[(usize, usize)],
    adapters: &'a Adapters,
    attended: &mut AttendedTokens,
) -> (Vec<SequenceChunk<'a>>, Vec<Part>) {
    let mut batch = Vec::with_capacity(chunks.len());
    let mut next = chunks.iter().peekable();
    for (index, sequence) in running.iter_mut().enumerate() {
        let Some(&&(chunk_index, tokens)) = next.peek() else {
            break;
        };
        if chunk_index != index {
            continue;
        }
        next.next();
        let wanted = sequence.ends_with(tokens);
        sequence.count_attended(tokens, attended);
        let part = Part {
            index,
            tokens,
            wanted,
        };
        let adapter = sequence.adapter;
        let (tokens, table) = sequence.chunk(tokens);
        let chunk = SequenceChunk {
            tokens,
            table,
            logits: match wanted {
                true => LogitsWanted::Last,
                false => LogitsWanted::None,
            },
            adapter: adapter.map(|id| adapters.loaded(id)),
            second_segment: None,
        };
        batch.push((adapter, chunk, part));
    }
    batch.sort_by_key(|(adapter, ..)| *adapter);
    batch
        .into_iter()
        .map(|(_, chunk, part)| (chunk, part))
        .unzip()
}
