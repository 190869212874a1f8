//! What the next step computes: a pure function from a snapshot to a plan.
//!
//! Continuous batching (Yu et al. 2022, "Orca") with chunked prefill (Agrawal et al. 2023,
//! "Sarathi"): every running sequence that decodes takes one token of the step, what is left of the
//! step's token limit goes to prompts, in order of rank. When blocks run short, the sequences of the
//! lowest rank give theirs back and are computed again later.

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
    /// Tokens whose keys and values are in the sequence's blocks.
    pub computed_tokens: usize,
    /// Tokens known but not yet computed; one for a sequence that decodes.
    pub pending_tokens: usize,
    /// Blocks that need no more room: those that the sequence may write to, and those that it shares.
    pub held_blocks: usize,
    /// Blocks that preempting the sequence would free.
    pub freeable_blocks: usize,
}

/// All that a plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// Sequences with blocks.
    pub running: &'a [Candidate],
    /// Sequences without.
    pub waiting: &'a [Candidate],
    /// Blocks that the budget has room for.
    pub free_blocks: usize,
    /// Blocks that must be given back, since the budget shrank.
    pub deficit_blocks: usize,
    /// Tokens in a block.
    pub block_tokens: usize,
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

/// Blocks with which the plan is the same as with any number more: what everything pending takes, and a block
/// for each sequence to go on with.
pub fn blocks_wanted(running: &[Candidate], waiting: &[Candidate], block_tokens: usize) -> usize {
    let needed = |c: &Candidate| {
        let total = (c.computed_tokens + c.pending_tokens).div_ceil(block_tokens);
        total.saturating_sub(c.held_blocks) + 1
    };
    running.iter().chain(waiting).map(needed).sum::<usize>() + 1
}

struct Planner<'a> {
    snapshot: &'a Snapshot<'a>,
    free_blocks: usize,
    tokens_left: usize,
    preempted: Vec<bool>,
    chunk_tokens: Vec<usize>,
    admit: usize,
}

impl<'a> Planner<'a> {
    fn new(snapshot: &'a Snapshot<'a>) -> Self {
        Self {
            snapshot,
            free_blocks: snapshot.free_blocks,
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
        let mut deficit = self.snapshot.deficit_blocks;
        while deficit > 0 {
            let Some(victim) = self.victim_after(None) else {
                return;
            };
            self.preempted[victim] = true;
            deficit = deficit.saturating_sub(self.snapshot.running[victim].freeable_blocks);
        }
    }

    /// The running sequence of the lowest rank that comes after `index`, holds blocks and has no part
    /// in this step.
    fn victim_after(&self, index: Option<usize>) -> Option<usize> {
        let first = index.map_or(0, |i| i + 1);
        (first..self.snapshot.running.len()).rev().find(|&i| {
            !self.preempted[i]
                && self.chunk_tokens[i] == 0
                && self.snapshot.running[i].freeable_blocks > 0
        })
    }

    /// Takes in waiting sequences whose whole prompt finds room beside a block for each that runs.
    fn admit(&mut self) {
        if self.snapshot.deficit_blocks > 0 {
            return;
        }
        let kept = self.preempted.iter().filter(|&&p| !p).count();
        let mut spare = self
            .free_blocks
            .saturating_sub(kept + self.unfinished_prompt_blocks());
        for candidate in self.snapshot.waiting {
            let running = kept + self.admit;
            let needed = self.blocks_for(candidate, candidate.pending_tokens);
            // Alone in the machine a sequence begins whatever it needs: it then ends with a reason.
            let fits = needed < spare || running == 0;
            if running >= self.snapshot.max_running || !fits {
                return;
            }
            spare = spare.saturating_sub(needed + 1);
            self.admit += 1;
            self.chunk_tokens.push(0);
        }
    }

    fn unfinished_prompt_blocks(&self) -> usize {
        let unfinished = |c: &&Candidate| c.pending_tokens > 1;
        let needed = |c: &Candidate| self.blocks_for(c, c.pending_tokens);
        self.snapshot
            .running
            .iter()
            .filter(unfinished)
            .map(needed)
            .sum()
    }

    /// Blocks beyond those held that `tokens` more tokens take.
    fn blocks_for(&self, candidate: &Candidate, tokens: usize) -> usize {
        let total = (candidate.computed_tokens + tokens).div_ceil(self.snapshot.block_tokens);
        total.saturating_sub(candidate.held_blocks)
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
        while self.blocks_for(&candidate, tokens) > self.free_blocks {
            let Some(victim) = self.victim_after(Some(index)) else {
                break;
            };
            self.preempted[victim] = true;
            self.free_blocks += self.snapshot.running[victim].freeable_blocks;
        }
        let needed = self.blocks_for(&candidate, tokens);
        if needed > self.free_blocks {
            tokens = self.tokens_that_fit(&candidate).min(tokens);
        }
        if tokens == 0 {
            return;
        }
        self.free_blocks -= self.blocks_for(&candidate, tokens);
        self.tokens_left -= tokens;
        self.chunk_tokens[index] = tokens;
    }

    fn tokens_that_fit(&self, candidate: &Candidate) -> usize {
        ((candidate.held_blocks + self.free_blocks) * self.snapshot.block_tokens)
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

    /// A sequence that shares no block.
    fn candidate(computed_tokens: usize, pending_tokens: usize) -> Candidate {
        let blocks = computed_tokens.div_ceil(32);
        Candidate {
            computed_tokens,
            pending_tokens,
            held_blocks: blocks,
            freeable_blocks: blocks,
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
            free_blocks: free,
            deficit_blocks: 0,
            block_tokens: 32,
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
    fn a_shrink_preempts_from_the_end_until_it_is_paid() {
        let running = [decoding(320), decoding(320), decoding(320)];
        let mut s = snapshot(&running, &[], 0);
        s.deficit_blocks = 11;
        let plan = plan(&s);
        assert_eq!(plan.preempt, [1, 2]);
    }

    fn candidates(
        n: std::ops::Range<usize>,
        running: bool,
    ) -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0_usize..200, 1_usize..200, any::<bool>()).prop_map(
            move |(done, pending, decodes)| {
                let computed = if running { done } else { 0 };
                let pending = if decodes && running && done > 0 {
                    1
                } else {
                    pending
                };
                candidate(computed, pending)
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
        ) {
            let s = snapshot(&running, &waiting, free);
            let plan = plan(&s);
            let all: Vec<Candidate> = running.iter().chain(&waiting).copied().collect();
            let tokens: usize = plan.chunks.iter().map(|&(_, n)| n).sum();
            prop_assert!(tokens <= s.batch_tokens);
            let freed: usize = plan.preempt.iter().map(|&i| running[i].freeable_blocks).sum();
            let taken: usize = plan.chunks.iter().map(|&(i, n)| {
                (all[i].computed_tokens + n).div_ceil(32) - all[i].computed_tokens.div_ceil(32)
            }).sum();
            prop_assert!(taken <= free + freed);
            for &(i, n) in &plan.chunks {
                prop_assert!(n >= 1 && n <= all[i].pending_tokens);
                prop_assert!(i < running.len() + plan.admit);
                prop_assert!(!plan.preempt.contains(&i));
            }
            let wanted = blocks_wanted(&running, &waiting, 32);
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
