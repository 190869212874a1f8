//! What the next step computes: a pure function from a snapshot to a plan.
//!
//! Continuous batching (Yu et al. 2022, "Orca") with chunked prefill (Agrawal et al. 2023,
//! "Sarathi"): every running sequence that decodes takes one token of the step, what is left of the
//! step's token limit goes to prompts, in order of rank. When blocks run short, old ones sink as far as
//! their quality allows and the step needs; then the sequences of the lowest rank give theirs back and are
//! computed again later. What may sink counts as room from the start: a request is taken in as soon as all
//! fit, sunk.

/// How much earlier a request counts as come for each step of its priority. As nothing comes before the time that it
/// counts for, a request that has waited longer than the largest difference of priorities is before all that come.
pub const PRIORITY_STEP_MS: i64 = 10_000;

/// The place of a request that came at `arrived_ms`: the least first. Waiting needs no bookkeeping: a priority is an
/// earlier arrival.
#[must_use]
pub fn due_ms(arrived_ms: u64, priority: i32) -> i64 {
    let arrived_ms = i64::try_from(arrived_ms).unwrap_or(i64::MAX);
    arrived_ms.saturating_sub(i64::from(priority).saturating_mul(PRIORITY_STEP_MS))
}

/// One sequence, as the scheduler sees it. Slices of these are in order of rank, the first the most
/// important.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Tokens whose keys and values are in the sequence's blocks, or are cached while it waits.
    pub computed_tokens: usize,
    /// Tokens known but not yet computed; one for a sequence that decodes.
    pub pending_tokens: usize,
    /// Blocks that it need not allocate: those that it may write to, those that it shares, and cached ones.
    pub held_blocks: usize,
    /// Bytes that taking its cached blocks takes; none for a sequence that runs.
    pub attach_bytes: u64,
    /// Bytes that preempting the sequence would free, once what may sink has sunk.
    pub freeable_bytes: u64,
    /// Bytes of an old block of it, once that has sunk as far as its quality allows and is trimmed where there is a
    /// sliding window; those of any block if neither may be.
    pub sunk_block_bytes: u64,
}

/// All that a plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// Sequences with blocks.
    pub running: &'a [Candidate],
    /// Sequences without.
    pub waiting: &'a [Candidate],
    /// Bytes that the budget has room for.
    pub free_bytes: u64,
    /// Bytes that there would be room for besides, if blocks of running sequences sank.
    pub sinkable_bytes: u64,
    /// Bytes that must be given back, since the budget shrank.
    pub deficit_bytes: u64,
    /// Bytes of a block as it is written.
    pub block_bytes: u64,
    /// Tokens in a block.
    pub block_tokens: usize,
    /// Newest tokens of a sequence whose blocks stay as they are written; those before them are old.
    pub recent_tokens: usize,
    /// Tokens that a step may compute.
    pub batch_tokens: usize,
    /// Sequences that may run at once; each has one row of logits.
    pub max_running: usize,
}

/// What to do, as indices into the snapshot's slices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Running sequences that give their blocks back and wait.
    pub preempt: Vec<usize>,
    /// How many of the waiting, from the first, begin to run; they follow the running ones in
    /// `chunks`.
    pub admit: usize,
    /// Sequences of this step and the tokens that each computes.
    pub chunks: Vec<(usize, usize)>,
    /// Bytes that must sink for it first.
    pub sink_bytes: u64,
    /// A sequence that can't go on and for which nobody can give way.
    pub starved: Option<usize>,
}

/// Decides the next step.
pub fn plan(snapshot: &Snapshot<'_>) -> Plan {
    let mut planner = Planner::new(snapshot);
    planner.pay_deficit();
    planner.admit();
    planner.decode();
    planner.prefill();
    planner.finish()
}

/// Bytes with which the plan is the same as with any number more, as far as blocks take them: what everything pending
/// takes, and a block for each sequence to go on with.
pub fn bytes_wanted(
    running: &[Candidate],
    waiting: &[Candidate],
    (block_bytes, block_tokens): (u64, usize),
) -> u64 {
    let needed = |c: &Candidate| {
        let total = (c.computed_tokens + c.pending_tokens).div_ceil(block_tokens);
        (total.saturating_sub(c.held_blocks) + 1) as u64 * block_bytes + c.attach_bytes
    };
    running.iter().chain(waiting).map(needed).sum::<u64>() + block_bytes
}

struct Planner<'a> {
    snapshot: &'a Snapshot<'a>,
    /// What may sink is free.
    free_bytes: u64,
    tokens_left: usize,
    preempted: Vec<bool>,
    chunk_tokens: Vec<usize>,
    admit: usize,
}

/// Room that sequences are promised.
#[derive(Clone, Copy, Default)]
struct Promised {
    /// For what is pending, once it has sunk, and for a block each to go on with.
    bytes: u64,
    sequences: u64,
    /// Pending blocks.
    blocks: u64,
    /// What pending blocks gain by sinking: all of them, and one at most. They are written at full size first.
    gain_bytes: u64,
    most_gain_bytes: u64,
}

impl<'a> Planner<'a> {
    fn new(snapshot: &'a Snapshot<'a>) -> Self {
        Self {
            snapshot,
            free_bytes: snapshot.free_bytes + snapshot.sinkable_bytes,
            tokens_left: snapshot.batch_tokens,
            preempted: vec![false; snapshot.running.len()],
            chunk_tokens: vec![0; snapshot.running.len()],
            admit: 0,
        }
    }

    fn candidate(&self, index: usize) -> Candidate {
        let running = self.snapshot.running.len();
        if index < running {
            self.snapshot.running[index]
        } else {
            self.snapshot.waiting[index - running]
        }
    }

    fn pay_deficit(&mut self) {
        let mut deficit = self.snapshot.deficit_bytes;
        while deficit > 0 {
            let Some(victim) = self.victim_after(None) else {
                return;
            };
            self.preempted[victim] = true;
            deficit = deficit.saturating_sub(self.snapshot.running[victim].freeable_bytes);
        }
    }

    /// The running sequence of the lowest rank that comes after `index`, holds blocks and has no part
    /// in this step.
    fn victim_after(&self, index: Option<usize>) -> Option<usize> {
        let first = index.map_or(0, |i| i + 1);
        (first..self.snapshot.running.len()).rev().find(|&i| {
            !self.preempted[i]
                && self.chunk_tokens[i] == 0
                && self.snapshot.running[i].freeable_bytes > 0
        })
    }

    /// Takes in waiting sequences whose whole prompt finds room, sunk as far as it may, beside what those that run
    /// are promised.
    fn admit(&mut self) {
        if self.snapshot.deficit_bytes > 0 {
            return;
        }
        let room = self.free_bytes;
        let mut kept = 0;
        let mut promised = Promised::default();
        for (candidate, preempted) in self.snapshot.running.iter().zip(&self.preempted) {
            if !preempted {
                kept += 1;
                promised = self.promise(promised, candidate);
            }
        }
        for candidate in self.snapshot.waiting {
            let running = kept + self.admit;
            promised = self.promise(promised, candidate);
            // Alone in the machine a sequence begins whatever it needs: it then ends with a reason.
            let now = candidate.attach_bytes + self.written_bytes(promised);
            let fits = self.needed_for(promised) <= room && now <= self.free_bytes;
            let fits = fits || running == 0;
            if running >= self.snapshot.max_running || !fits {
                return;
            }
            self.free_bytes = self.free_bytes.saturating_sub(candidate.attach_bytes);
            self.admit += 1;
            self.chunk_tokens.push(0);
        }
    }

    /// What is promised when `candidate` is, too.
    fn promise(&self, mut promised: Promised, candidate: &Candidate) -> Promised {
        let (hot, sunk) = (self.snapshot.block_bytes, candidate.sunk_block_bytes);
        let total = candidate.computed_tokens + candidate.pending_tokens;
        let new = self.blocks_for(candidate, candidate.pending_tokens) as u64;
        // Of a table of `total` tokens, the blocks `1..old_end` are old.
        let recent = self.snapshot.recent_tokens;
        let old_end = total.saturating_sub(recent) / self.snapshot.block_tokens;
        let sinking = match sunk < hot {
            true => old_end.saturating_sub(candidate.held_blocks.max(1)) as u64,
            false => 0,
        };
        promised.sequences += 1;
        promised.blocks += new;
        promised.bytes += (new - sinking) * hot + sinking * sunk + hot;
        // What was cached sinks like what is computed.
        let old_held = candidate.held_blocks.min(old_end) as u64;
        let new_held = candidate.held_blocks as u64 - old_held;
        promised.bytes += match sunk < hot {
            true => candidate
                .attach_bytes
                .min(old_held * sunk + (new_held + 1) * hot),
            false => candidate.attach_bytes,
        };
        let gain = hot.saturating_sub(sunk);
        promised.gain_bytes += sinking * gain;
        promised.most_gain_bytes = promised.most_gain_bytes.max(gain);
        promised
    }

    /// What is promised, and what one step writes before it sinks.
    fn needed_for(&self, promised: Promised) -> u64 {
        let in_step = self.step_blocks() * promised.most_gain_bytes;
        promised.bytes + promised.gain_bytes.min(in_step)
    }

    /// What those that are promised room may write in this step.
    fn written_bytes(&self, promised: Promised) -> u64 {
        let blocks = promised.blocks.min(self.step_blocks());
        (blocks + promised.sequences) * self.snapshot.block_bytes
    }

    /// Blocks that a step fills at most, beside one for each sequence.
    fn step_blocks(&self) -> u64 {
        let blocks = self
            .snapshot
            .batch_tokens
            .div_ceil(self.snapshot.block_tokens);
        blocks as u64 + 1
    }

    /// Blocks beyond those held that `tokens` more tokens take.
    fn blocks_for(&self, candidate: &Candidate, tokens: usize) -> usize {
        let total = (candidate.computed_tokens + tokens).div_ceil(self.snapshot.block_tokens);
        total.saturating_sub(candidate.held_blocks)
    }

    /// Bytes of these blocks.
    fn bytes_for(&self, candidate: &Candidate, tokens: usize) -> u64 {
        self.blocks_for(candidate, tokens) as u64 * self.snapshot.block_bytes
    }

    fn decode(&mut self) {
        for index in 0..self.snapshot.running.len() {
            if self.snapshot.running[index].pending_tokens == 1 {
                self.take(index);
            }
        }
    }

    fn prefill(&mut self) {
        for index in 0..self.chunk_tokens.len() {
            if self.chunk_tokens[index] == 0 {
                self.take(index);
            }
        }
    }

    /// Gives a sequence as many tokens of the step as there are and as find room.
    fn take(&mut self, index: usize) {
        if self.preempted.get(index).copied().unwrap_or(false) {
            return;
        }
        let candidate = self.candidate(index);
        let mut tokens = candidate.pending_tokens.min(self.tokens_left);
        if tokens == 0 {
            return;
        }
        while self.bytes_for(&candidate, tokens) > self.free_bytes {
            let Some(victim) = self.victim_after(Some(index)) else {
                break;
            };
            self.preempted[victim] = true;
            self.free_bytes += self.snapshot.running[victim].freeable_bytes;
        }
        if self.bytes_for(&candidate, tokens) > self.free_bytes {
            tokens = self.tokens_that_fit(&candidate).min(tokens);
        }
        if tokens == 0 {
            return;
        }
        self.free_bytes -= self.bytes_for(&candidate, tokens);
        self.tokens_left -= tokens;
        self.chunk_tokens[index] = tokens;
    }

    fn tokens_that_fit(&self, candidate: &Candidate) -> usize {
        let free_blocks = (self.free_bytes / self.snapshot.block_bytes) as usize;
        ((candidate.held_blocks + free_blocks) * self.snapshot.block_tokens)
            .saturating_sub(candidate.computed_tokens)
    }

    fn finish(self) -> Plan {
        let indices = |flags: &[bool]| -> Vec<usize> {
            flags
                .iter()
                .enumerate()
                .filter(|&(_, &flag)| flag)
                .map(|(i, _)| i)
                .collect()
        };
        let chunks: Vec<(usize, usize)> = self
            .chunk_tokens
            .iter()
            .copied()
            .enumerate()
            .filter(|&(_, tokens)| tokens > 0)
            .collect();
        let preempt = indices(&self.preempted);
        let first_left = (0..self.chunk_tokens.len())
            .find(|&i| !self.preempted.get(i).copied().unwrap_or(false));
        let starved = if chunks.is_empty() && preempt.is_empty() {
            first_left
        } else {
            None
        };
        Plan {
            preempt,
            admit: self.admit,
            chunks,
            sink_bytes: self.snapshot.sinkable_bytes.saturating_sub(self.free_bytes),
            starved,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waiting_outweighs_any_priority() {
        assert!(
            due_ms(1000, 1) < due_ms(0, 0),
            "a higher priority goes first"
        );
        assert!(due_ms(0, 0) < due_ms(10_001, 1), "but not for ever");
        assert_eq!(due_ms(u64::MAX, i32::MIN), i64::MAX);
    }

    const BLOCK: u64 = 1000;

    /// A sequence that shares no block.
    fn candidate(computed_tokens: usize, pending_tokens: usize) -> Candidate {
        let blocks = computed_tokens.div_ceil(32);
        Candidate {
            computed_tokens,
            pending_tokens,
            held_blocks: blocks,
            attach_bytes: 0,
            freeable_bytes: blocks as u64 * BLOCK,
            sunk_block_bytes: BLOCK,
        }
    }

    fn decoding(computed: usize) -> Candidate {
        candidate(computed, 1)
    }

    fn prompt(tokens: usize) -> Candidate {
        candidate(0, tokens)
    }

    fn snapshot<'a>(
        running: &'a [Candidate],
        waiting: &'a [Candidate],
        free: usize,
    ) -> Snapshot<'a> {
        Snapshot {
            running,
            waiting,
            free_bytes: free as u64 * BLOCK,
            sinkable_bytes: 0,
            deficit_bytes: 0,
            block_bytes: BLOCK,
            block_tokens: 32,
            recent_tokens: 128,
            batch_tokens: 100,
            max_running: 8,
        }
    }

    #[test]
    fn decodes_first_then_fills_the_step_with_prompts() {
        let running = [prompt(500), decoding(40)];
        let plan = plan(&snapshot(&running, &[prompt(10)], 100));
        assert_eq!(
            plan,
            Plan {
                admit: 1,
                chunks: vec![(0, 99), (1, 1)],
                ..Plan::default()
            }
        );
    }

    #[test]
    fn the_lowest_rank_gives_way() {
        let running = [decoding(32), decoding(64), decoding(32)];
        let plan = plan(&snapshot(&running, &[], 0));
        assert_eq!(plan.preempt, [2]);
        assert_eq!(
            plan.chunks,
            [(0, 1)],
            "the one freed block goes to the first"
        );
        assert_eq!(plan.starved, None);
    }

    #[test]
    fn alone_without_room_it_is_starved() {
        assert_eq!(plan(&snapshot(&[decoding(32)], &[], 0)).starved, Some(0));
        assert_eq!(plan(&snapshot(&[], &[prompt(64)], 0)).starved, Some(0));
    }

    #[test]
    fn a_prompt_waits_until_it_fits_whole() {
        let running = [decoding(40)];
        assert_eq!(plan(&snapshot(&running, &[prompt(64)], 3)).admit, 0);
        assert_eq!(plan(&snapshot(&running, &[prompt(64)], 4)).admit, 1);
    }

    #[test]
    fn what_may_sink_is_room() {
        // 16 blocks, of which the blocks 1..12 sink to a quarter.
        let sinking = Candidate {
            sunk_block_bytes: BLOCK / 4,
            ..prompt(512)
        };
        let waiting = [sinking; 2];
        let admitted = |blocks| plan(&snapshot(&[], &waiting, blocks)).admit;
        // 5 at full size, 11 at a quarter, one to go on with, and three quarters of the 5 that a step writes.
        let one = 5.0 + 11.0 / 4.0 + 1.0;
        let two = (2.0 * one + 0.75 * 5.0_f64).ceil() as usize;
        assert_eq!((admitted(two), admitted(two - 1)), (2, 1));
        let running = [Candidate {
            freeable_bytes: 5 * BLOCK + 27 * BLOCK / 4,
            sunk_block_bytes: BLOCK / 4,
            ..decoding(1024)
        }];
        let mut s = snapshot(&running, &waiting[..1], 13);
        assert_eq!(plan(&s).admit, 0);
        s.sinkable_bytes = 27 * BLOCK * 3 / 4;
        let ample = plan(&s);
        assert_eq!(
            (ample.admit, ample.sink_bytes),
            (1, 0),
            "nothing sinks before it must"
        );
        s.free_bytes = 4 * BLOCK;
        let tight = plan(&s);
        // A block to go on in, and 4 for 99 tokens.
        assert_eq!((tight.admit, tight.sink_bytes), (1, BLOCK));
    }

    #[test]
    fn a_shrink_preempts_from_the_end_until_it_is_paid() {
        let running = [decoding(320), decoding(320), decoding(320)];
        let mut s = snapshot(&running, &[], 0);
        s.deficit_bytes = 11 * BLOCK;
        let plan = plan(&s);
        assert_eq!(plan.preempt, [1, 2]);
    }

    fn candidates(
        n: std::ops::Range<usize>,
        running: bool,
    ) -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0_usize..400, 1_usize..400, any::<bool>(), 1..=4_u64).prop_map(
            move |(done, pending, decodes, quarters)| {
                let computed = if running { done } else { 0 };
                let pending = if decodes && running && done > 0 {
                    1
                } else {
                    pending
                };
                Candidate {
                    sunk_block_bytes: BLOCK / 4 * quarters,
                    ..candidate(computed, pending)
                }
            },
        );
        proptest::collection::vec(one, n)
    }

    proptest! {
        #[test]
        fn keeps_its_limits_and_always_makes_progress(
            running in candidates(0..8, true),
            waiting in candidates(0..6, false),
            free in 0_usize..30,
            sinkable_bytes in 0..20 * BLOCK,
        ) {
            let s = Snapshot { sinkable_bytes, ..snapshot(&running, &waiting, free) };
            let plan = plan(&s);
            let all: Vec<Candidate> = running.iter().chain(&waiting).copied().collect();
            let tokens: usize = plan.chunks.iter().map(|&(_, n)| n).sum();
            prop_assert!(tokens <= s.batch_tokens);
            let freed: usize = plan.preempt.iter().map(|&i| running[i].held_blocks).sum();
            let taken: usize = plan.chunks.iter().map(|&(i, n)| {
                (all[i].computed_tokens + n).div_ceil(32) - all[i].computed_tokens.div_ceil(32)
            }).sum();
            let sunk = plan.sink_bytes;
            prop_assert!(sunk <= sinkable_bytes);
            prop_assert!(taken as u64 * BLOCK <= (free + freed) as u64 * BLOCK + sunk, "no more than there is");
            let enough = taken as u64 * BLOCK <= (free + freed) as u64 * BLOCK;
            prop_assert!(sunk == 0 || !enough, "nothing sinks in vain");
            for &(i, n) in &plan.chunks {
                prop_assert!(n >= 1 && n <= all[i].pending_tokens);
                prop_assert!(i < running.len() + plan.admit);
                prop_assert!(!plan.preempt.contains(&i));
            }
            let wanted = (bytes_wanted(&running, &waiting, (BLOCK, 32)) / BLOCK) as usize;
            let ample = super::plan(&snapshot(&running, &waiting, wanted));
            prop_assert_eq!(&ample, &super::plan(&snapshot(&running, &waiting, 10 * wanted)));
            prop_assert!(ample.preempt.is_empty() && ample.starved.is_none());
            if !all.is_empty() {
                prop_assert!(!plan.chunks.is_empty() || plan.starved.is_some() || !plan.preempt.is_empty());
            }
            // Progress: the most important running sequence is never preempted for another.
            prop_assert!(!plan.preempt.contains(&0));
        }
    }
}
