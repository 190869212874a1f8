//! Grammars that an answer must follow: at each step, which tokens may come next.
//!
//! A thin layer over `llguidance` (an Earley parser over a lexer of regular-expression derivatives) that bounds what a
//! grammar from a stranger may take: its size, its states, and the work for one token. Nothing here reads files; a
//! schema that refers to another document is refused.
//!
//! The bytes of a grammar grow while it is followed. They are charged where the engine takes the request in and after each
//! token ([`Grammar::pay`]), by the lexer's own count of its tables, with a margin for what the next token may add.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, TokenParser};
use neap_memory::{Budget, Charge, ChargeKind, OverBudget};
use neap_model::tokenizer::Tokenizer;

/// Bytes of a grammar's text at most.
pub const MAX_GRAMMAR_BYTES: usize = 256 << 10;
/// States of a grammar's lexer at most, of one to two kB each.
const MAX_LEXER_STATES: usize = 20_000;
/// What a token may add, and what a parser takes besides its lexer. By the ignored test `measure_bytes` a small grammar
/// takes 0.3 MiB more than its lexer counts, and one of thousands of states 0.6 times what it counts.
const MARGIN_BYTES: u64 = 512 << 10;
/// Charges grow by so much at a time.
const CHARGE_STEP_BYTES: u64 = 128 << 10;
/// The prefix tree of a vocabulary is held whole, and once more in parts by what they consist of; and half as much again.
const TREES: u64 = 3;
/// Bytes of a node of it.
const NODE_BYTES: u64 = 8;
/// What a token that has no text of its own begins with, so that no text matches it.
const SPECIAL_MARK: u8 = 0xff;
/// Bytes of a token at most: `llguidance` keeps lengths in 16 bits, and no sensible token is longer.
const MAX_TOKEN_BYTES: usize = 1 << 12;

/// Why a grammar can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// Longer than [`MAX_GRAMMAR_BYTES`].
    #[error("it has {bytes} bytes, and at most {MAX_GRAMMAR_BYTES} are taken")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It is not valid, uses what is not supported, or takes more work than is given to it.
    #[error("{0}")]
    Refused(String),
    /// The model's vocabulary has no token that ends a text.
    #[error("the model has no token that ends a text")]
    NoEnd,
}

/// Makes grammars for one vocabulary.
pub struct Grammars {
    factory: ParserFactory,
    tree: Arc<Paid>,
}

/// What several share and the first to be followed pays for, or each in turn as it grows.
#[derive(Debug, Default)]
struct Paid {
    /// Bytes to be charged at least.
    bytes: u64,
    charge: Mutex<Option<Charge>>,
}

impl Paid {
    /// Charges `bytes`, if less is charged; `make_room` is asked for what the budget lacks.
    fn pay(
        &self,
        bytes: u64,
        budget: &Budget,
        make_room: &mut dyn FnMut(u64),
    ) -> Result<(), OverBudget> {
        let mut charge = self.charge.lock().unwrap_or_else(PoisonError::into_inner);
        let held = charge.as_ref().map_or(0, Charge::bytes);
        if held >= bytes {
            return Ok(());
        }
        let missing = (bytes - held).saturating_sub(budget.available());
        if missing > 0 {
            make_room(missing);
        }
        match &mut *charge {
            Some(charge) => drop(charge.resize(bytes)?),
            None => *charge = Some(budget.try_charge(ChargeKind::Scratch, bytes)?),
        }
        Ok(())
    }
}

impl Grammars {
    /// Reads the vocabulary: a prefix tree of all its tokens, some tens of bytes for each. `as_text` are special
    /// tokens that count as the text that they show.
    ///
    /// # Errors
    /// [`GrammarError::NoEnd`], or a vocabulary that can't be laid out.
    pub fn new(tokenizer: &Tokenizer, as_text: &[&str]) -> Result<Self, GrammarError> {
        let as_text: Vec<u32> = as_text
            .iter()
            .filter_map(|text| tokenizer.token_id(text))
            .collect();
        let ends = tokenizer.stop_ids();
        let &first_end = ends.first().ok_or(GrammarError::NoEnd)?;
        let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as u32)
            .map(|id| word(tokenizer, id, !as_text.contains(&id)))
            .collect();
        let info = TokRxInfo::new(words.len() as u32, first_end);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(ends);
        let text_bytes: usize = words.iter().map(|word| word.len() + 8).sum();
        let tree_bytes = trie.root().subtree_size() as u64 * NODE_BYTES + text_bytes as u64;
        // Without forced tokens it needs no tokenizer of its own.
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|why| refused(&why))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_lexer_states: MAX_LEXER_STATES,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        let tree = Arc::new(Paid {
            bytes: TREES * tree_bytes,
            charge: Mutex::default(),
        });
        Ok(Self { factory, tree })
    }

    /// A grammar in `llguidance`'s dialect of Lark.
    ///
    /// # Errors
    /// [`GrammarError`] with what is wrong.
    pub fn compile(&self, lark: &str) -> Result<Grammar, GrammarError> {
        if lark.len() > MAX_GRAMMAR_BYTES {
            return Err(GrammarError::TooLong { bytes: lark.len() });
        }
        let grammar = TopLevelGrammar::from_lark(lark.to_owned());
        let parser = self.factory.create_parser_from_init_ext(
            llguidance::api::GrammarInit::Serialized(grammar),
            llguidance::Logger::new(0, 0),
            InferenceCapabilities::default(),
            self.factory.limits().clone(),
        );
        // A clone shares its lexer, which is what grows.
        let gauge = parser.as_ref().ok().cloned();
        let mut matcher = Matcher::new(parser);
        if let Some(why) = matcher.get_error() {
            return Err(GrammarError::Refused(short(&why)));
        }
        // What nothing can satisfy is found out here, not in the middle of an answer.
        matcher.compute_mask().map_err(|why| refused(&why))?;
        Ok(Grammar {
            matcher,
            gauge: gauge.map(Box::new),
            tree: Arc::clone(&self.tree),
            lexer: Arc::default(),
        })
    }
}

/// A token's bytes, marked if it is no text.
fn word(tokenizer: &Tokenizer, id: u32, may_be_special: bool) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    if bytes.is_empty() || bytes.len() > MAX_TOKEN_BYTES {
        return Vec::new();
    }
    if may_be_special && tokenizer.is_special(id) {
        return [&[SPECIAL_MARK], bytes].concat();
    }
    // No valid text has this byte.
    if bytes[0] == SPECIAL_MARK {
        return Vec::new();
    }
    bytes.to_vec()
}

fn refused(why: &dyn fmt::Display) -> GrammarError {
    GrammarError::Refused(short(&why.to_string()))
}

/// The first line; what follows is `llguidance`'s own state.
fn short(why: &str) -> String {
    let line = why.lines().next().unwrap_or_default();
    line.chars().take(400).collect()
}

/// A grammar and how far an answer has come in it. Clones go on apart.
#[derive(Clone)]
pub struct Grammar {
    matcher: Matcher,
    /// Tells the size of the lexer, which clones share.
    gauge: Option<Box<TokenParser>>,
    tree: Arc<Paid>,
    lexer: Arc<Paid>,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar")
            .field("is_complete", &self.is_complete())
            .finish_non_exhaustive()
    }
}

impl Grammar {
    /// Makes every token impossible that can't come next.
    ///
    /// # Errors
    /// When the grammar takes too much work at this point.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), GrammarError> {
        let mask = self
            .matcher
            .compute_mask_or_eos()
            .map_err(|why| refused(&why))?;
        for (id, logit) in logits.iter_mut().enumerate() {
            if id >= mask.len() || !mask.get(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Goes on by one token, which [`Self::mask`] allowed.
    ///
    /// # Errors
    /// When it did not, or the grammar takes too much work.
    pub fn push(&mut self, id: u32) -> Result<(), GrammarError> {
        self.matcher.consume_token(id).map_err(|why| refused(&why))
    }

    /// Charges what it takes now, and a margin, if less is charged; `make_room` is asked for what `budget` lacks. All is
    /// given back with the last clone, the vocabulary's part with [`Grammars`].
    ///
    /// # Errors
    /// [`OverBudget`] when there is no room: the grammar is not to be followed further.
    pub fn pay(&self, budget: &Budget, mut make_room: impl FnMut(u64)) -> Result<(), OverBudget> {
        self.tree.pay(self.tree.bytes, budget, &mut make_room)?;
        self.lexer.pay(self.needed_bytes(), budget, &mut make_room)
    }

    fn needed_bytes(&self) -> u64 {
        let counted = match &self.gauge {
            Some(gauge) if !self.matcher.is_error() => gauge.parser.lexer_stats().num_bytes as u64,
            _ => 0,
        };
        let bytes = counted + MARGIN_BYTES;
        bytes.next_multiple_of(CHARGE_STEP_BYTES)
    }

    /// Nothing can follow.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

#[cfg(test)]
mod tests;
