//! Block tables: the ordered blocks of one sequence.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::budget::OverBudget;
use crate::codec::BlockCodec;
use crate::level::Level;
use crate::pool::{Block, KvPool};

#[cfg(test)]
mod tests;

/// The newest tokens of a running sequence, whose blocks stay hot: most attention goes to them, and to the
/// first block (the attention sinks of Xiao et al. 2023), which stays hot too.
pub const RECENT_TOKENS: usize = 128;

/// One block of a table as attention reads it.
#[derive(Clone, Copy, Debug)]
pub struct BlockView<'a> {
    /// How to read the bytes.
    pub level: Level,
    /// The bytes of the block.
    pub bytes: &'a [u8],
}

/// The ordered blocks of one sequence: token `t` lives in slot `t % block_tokens` of block
/// `t / block_tokens`.
///
/// ```text
/// 0 ………………………………………… len_tokens ………………………… capacity_tokens
/// [ written, immutable when the block is full )[ reserved, zero until written )
/// ```
///
/// A step is: [`reserve`](Self::reserve) room for the new tokens, write them through
/// [`block_mut`](Self::block_mut), then [`advance`](Self::advance).
///
/// ```
/// use neap_memory::{BlockTable, Budget, KvPool};
/// let budget = Budget::new(1 << 20);
/// let pool = KvPool::new(&budget, 4096, 32);
/// let mut table = BlockTable::new(&pool);
/// table.reserve(40)?;
/// table.block_mut(0)[0] = 1;
/// table.advance(40);
/// let mut branch = table.fork();              // shares both blocks
/// branch.reserve(1)?;                         // copies the partial one before it is written
/// branch.block_mut(1)[9] = 2;
/// assert_eq!(table.block(1)[9], 0);
/// assert_eq!(pool.stats().held_blocks, 3);
/// # Ok::<(), neap_memory::OverBudget>(())
/// ```
#[derive(Debug)]
pub struct BlockTable {
    pool: KvPool,
    blocks: Vec<Block>,
    len_tokens: usize,
    attached_tokens: usize,
}

impl BlockTable {
    /// An empty table whose blocks come from `pool`.
    #[must_use]
    pub fn new(pool: &KvPool) -> Self {
        Self {
            pool: pool.clone(),
            blocks: Vec::new(),
            len_tokens: 0,
            attached_tokens: 0,
        }
    }

    /// Tokens that were [attached](Self::attach), not computed.
    #[must_use]
    pub fn attached_tokens(&self) -> usize {
        self.attached_tokens
    }

    /// The pool its blocks come from.
    #[must_use]
    pub fn pool(&self) -> &KvPool {
        &self.pool
    }

    /// Tokens written.
    #[must_use]
    pub fn len_tokens(&self) -> usize {
        self.len_tokens
    }

    /// Whether no token is written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len_tokens == 0
    }

    /// Tokens for which there is room: written and reserved.
    #[must_use]
    pub fn capacity_tokens(&self) -> usize {
        self.blocks.len() * self.pool.block_tokens()
    }

    /// Number of blocks, reserved ones included.
    #[must_use]
    pub fn len_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Tokens of one block.
    #[must_use]
    pub fn block_tokens(&self) -> usize {
        self.pool.block_tokens()
    }

    /// Makes room for `tokens` more tokens than are written, and makes the partial block, if it is
    /// shared, this table's own by copying it: afterwards [`block_mut`](Self::block_mut) works for every
    /// block that those tokens touch.
    ///
    /// # Errors
    /// [`OverBudget`] when the room is not there; the table is then as it was.
    pub fn reserve(&mut self, tokens: usize) -> Result<(), OverBudget> {
        if tokens == 0 {
            return Ok(());
        }
        let block_tokens = self.pool.block_tokens();
        let first = self.len_tokens / block_tokens;
        let needed = self
            .len_tokens
            .saturating_add(tokens)
            .div_ceil(block_tokens);
        let old_blocks = self.blocks.len();
        let result = self
            .grow_to(needed)
            .and_then(|()| self.own_blocks(first, needed.min(old_blocks)));
        if result.is_err() {
            self.blocks.truncate(old_blocks);
        }
        result
    }

    fn grow_to(&mut self, blocks: usize) -> Result<(), OverBudget> {
        while self.blocks.len() < blocks {
            self.blocks.push(self.pool.allocate()?);
        }
        Ok(())
    }

    /// Copies every shared block of `first..end`.
    fn own_blocks(&mut self, first: usize, end: usize) -> Result<(), OverBudget> {
        for block in self.blocks.iter_mut().take(end).skip(first) {
            if block.is_shared() {
                *block = block.to_copy()?;
            }
        }
        Ok(())
    }

    /// Declares `tokens` more tokens written.
    ///
    /// # Panics
    /// If they were not reserved.
    pub fn advance(&mut self, tokens: usize) {
        let len = self.len_tokens.checked_add(tokens);
        assert!(
            len.is_some_and(|len| len <= self.capacity_tokens()),
            "{tokens} tokens after {} do not fit the {} reserved",
            self.len_tokens,
            self.capacity_tokens()
        );
        self.len_tokens += tokens;
    }

    /// The bytes of block `index`.
    ///
    /// # Panics
    /// If there is no such block.
    #[must_use]
    pub fn block(&self, index: usize) -> &[u8] {
        self.blocks[index].bytes()
    }

    /// Level and bytes of block `index`.
    ///
    /// # Panics
    /// If there is no such block.
    #[must_use]
    pub fn view(&self, index: usize) -> BlockView<'_> {
        let block = &self.blocks[index];
        BlockView {
            level: block.level(),
            bytes: block.bytes(),
        }
    }

    /// The bytes of block `index`, to write the tokens that were reserved.
    ///
    /// # Panics
    /// If there is no such block, if it is full (and so immutable), if it is not hot, or if it is shared
    /// because the table was forked after [`reserve`](Self::reserve).
    #[must_use]
    pub fn block_mut(&mut self, index: usize) -> &mut [u8] {
        assert!(
            index >= self.len_tokens / self.pool.block_tokens(),
            "block {index} is full and immutable"
        );
        let block = &mut self.blocks[index];
        assert!(
            block.level() == Level::Hot,
            "block {index} is written at the hot level only"
        );
        match block.bytes_mut() {
            Some(bytes) => bytes,
            None => panic!("block {index} is shared: reserve after the last fork"),
        }
    }

    /// A claim on block `index`.
    ///
    /// # Panics
    /// If there is no such block.
    #[must_use]
    pub fn share_block(&self, index: usize) -> Block {
        self.blocks[index].clone()
    }

    /// All blocks in order, reserved ones included.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Puts another block in the place of block `index`, which holds the same tokens at another level,
    /// and returns the old one.
    ///
    /// # Panics
    /// If there is no such block, it is not full, or the new one is not attendable.
    pub fn swap_block(&mut self, index: usize, block: Block) -> Block {
        assert!(
            index < self.len_full_blocks(),
            "only full blocks change their level"
        );
        assert!(
            block.level().is_attendable(),
            "attention cannot read this level"
        );
        assert!(
            !block.is_trimmed() || self.blocks_behind_window().contains(&index),
            "block {index} is read whole"
        );
        std::mem::replace(&mut self.blocks[index], block)
    }

    /// Lets go of the claim on block `index` of several; another one stands there until one is
    /// [swapped](Self::swap_block) in.
    pub(crate) fn take_block(&mut self, index: usize) -> Block {
        let other = if index == 0 { self.blocks.len() - 1 } else { 0 };
        let other = self.blocks[other].clone();
        std::mem::replace(&mut self.blocks[index], other)
    }

    /// The blocks that may sink to a lossy level while the sequence runs: full ones, but for the first and
    /// those of the newest [`RECENT_TOKENS`].
    #[must_use]
    pub fn sinkable_blocks(&self) -> Range<usize> {
        let end = self.len_tokens.saturating_sub(RECENT_TOKENS) / self.pool.block_tokens();
        end.min(1)..end
    }

    /// The blocks whose tails no later token of the sequence reads: see [`Window`](crate::pool::Window).
    #[must_use]
    pub fn blocks_behind_window(&self) -> Range<usize> {
        let behind =
            |window: crate::pool::Window| (self.len_tokens + 1).saturating_sub(window.tokens);
        0..self.pool.window().map_or(0, behind) / self.pool.block_tokens()
    }

    /// [Trims](KvPool::trim) the blocks that are behind the window, of those that are hot and that nobody shares; takes no
    /// room. Returns how many.
    pub fn trim(&mut self) -> usize {
        let Some(window) = self.pool.window() else {
            return 0;
        };
        let mut trimmed = 0;
        for index in self.blocks_behind_window() {
            if self.blocks[index].level() != Level::Hot || self.blocks[index].is_trimmed() {
                continue;
            }
            let is_trimmed = self.remake(index, |pool, block| pool.trim(block, window.head_bytes));
            trimmed += usize::from(is_trimmed);
        }
        trimmed
    }

    /// Puts what `make` makes of block `index` in its place: the block itself if that fails. Whether it did not.
    fn remake(
        &mut self,
        index: usize,
        make: impl FnOnce(&KvPool, Block) -> Result<Block, Block>,
    ) -> bool {
        let made = make(&self.pool, self.blocks.swap_remove(index));
        let is_made = made.is_ok();
        self.blocks.push(made.unwrap_or_else(|block| block));
        let last = self.blocks.len() - 1;
        self.blocks.swap(index, last);
        is_made
    }

    /// Blocks that [were trimmed](KvPool::trim).
    #[must_use]
    pub fn trimmed_blocks(&self) -> usize {
        self.blocks.iter().filter(|b| b.is_trimmed()).count()
    }

    /// The longest part of the tokens that the sequence can go on from: all of them, but while blocks are
    /// [attached](Self::attach).
    #[must_use]
    pub fn startable_tokens(&self) -> usize {
        let is_trimmed = |index: usize| self.blocks[index].is_trimmed();
        self.pool.startable_tokens(self.len_tokens, is_trimmed)
    }

    /// Re-encodes `blocks` of a table whose blocks nobody shares, those that are not there yet, to the level
    /// of `codec`; takes no room. Returns how many changed; one that is shared or does not encode stays.
    ///
    /// `scratch` holds one encoded block.
    ///
    /// # Panics
    /// If one of them is not a full block.
    pub fn sink(
        &mut self,
        blocks: Range<usize>,
        codec: &dyn BlockCodec,
        scratch: &mut [u8],
    ) -> usize {
        assert!(
            blocks.end <= self.len_full_blocks(),
            "only full blocks sink"
        );
        let mut changed = 0;
        for index in blocks {
            let block = &self.blocks[index];
            if block.level() >= codec.level() || block.is_shared() {
                continue;
            }
            let Ok(bytes) = codec.encode_from(block.level(), block.bytes(), scratch) else {
                continue;
            };
            let is_sunk = self.remake(index, |pool, block| {
                pool.replace(block, codec.level(), &scratch[..bytes])
            });
            changed += usize::from(is_sunk);
        }
        changed
    }

    /// Number of full blocks.
    #[must_use]
    pub fn len_full_blocks(&self) -> usize {
        self.len_tokens / self.pool.block_tokens()
    }

    /// Takes over a claim on a block that holds the next `tokens` tokens, as the prefix cache found them.
    /// A partial block may come last only.
    ///
    /// # Panics
    /// If the table ends within a block or has reserved blocks, if `tokens` is 0 or more than a block
    /// holds, or if the block is not attendable.
    pub fn attach(&mut self, block: Block, tokens: usize) {
        assert!(
            self.len_tokens == self.capacity_tokens(),
            "blocks are attached at a block boundary, before anything is reserved"
        );
        assert!(
            (1..=self.pool.block_tokens()).contains(&tokens),
            "{tokens} tokens in one block"
        );
        assert!(
            block.level().is_attendable(),
            "attention cannot read this level"
        );
        self.blocks.push(block);
        self.len_tokens += tokens;
        self.attached_tokens += tokens;
    }

    /// A second table with the same tokens, sharing every block that holds any. What was reserved beyond
    /// them stays with the first.
    #[must_use]
    pub fn fork(&self) -> Self {
        let used = self.len_tokens.div_ceil(self.pool.block_tokens());
        Self {
            pool: self.pool.clone(),
            blocks: self.blocks[..used].to_vec(),
            len_tokens: self.len_tokens,
            attached_tokens: self.attached_tokens,
        }
    }

    /// Forgets all but the first `tokens` tokens and lets go of every block beyond them, reserved ones
    /// too. Does nothing to the tokens if there are no more than that.
    pub fn truncate(&mut self, tokens: usize) {
        self.len_tokens = self.len_tokens.min(tokens);
        self.attached_tokens = self.attached_tokens.min(tokens);
        let used = self.len_tokens.div_ceil(self.pool.block_tokens());
        self.blocks.truncate(used);
    }

    /// Forgets everything and lets go of every block.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Checks the table's own laws: what is written is within the room.
    ///
    /// # Errors
    /// A description of the first law that is broken.
    pub fn check_conservation(&self) -> Result<(), String> {
        if self.len_tokens > self.capacity_tokens() {
            return Err(format!(
                "{} tokens in room for {}",
                self.len_tokens,
                self.capacity_tokens()
            ));
        }
        if let Some(i) = self.blocks.iter().position(|b| !b.level().is_attendable()) {
            return Err(format!("block {i} is not attendable"));
        }
        if self.startable_tokens() != self.len_tokens {
            return Err(format!(
                "a block is trimmed that the token after {} reads whole",
                self.len_tokens
            ));
        }
        self.pool.check_conservation()
    }
}
