//! Memory core of Neap: one live budget, and everything that is held under it.
//!
//! The way of a block: [`budget`] → arena → [`pool`] → [`table`] → [`prefix`] → [`policy`] → [`governor`] →
//! [`codec`] → [`disk`] → [`remote`]. [`cache`] puts these together; [`session`] keeps conversations on purpose;
//! [`pressure`] tells the budget what the outside world leaves. Nothing here knows models, HTTP, or what a
//! token means.
//!
//! ```
//! use neap_memory::{BlockTable, Budget, Buffer, ChargeKind, KvPool};
//!
//! let budget = Budget::new(64 << 20);
//! let weights = Buffer::<u8>::zeroed(&budget, ChargeKind::Weights, 1 << 20)?;
//!
//! // 32 tokens per block; a block is one contiguous, page-aligned, zeroed region.
//! let pool = KvPool::new(&budget, 512 << 10, 32);
//! let mut table = BlockTable::new(&pool);
//! table.reserve(33)?;                     // two blocks, or a refusal with the figures
//! table.block_mut(0)[..4].copy_from_slice(&[1, 2, 3, 4]);
//! table.advance(33);
//!
//! assert_eq!(budget.charged(), (1 << 20) + 2 * (512 << 10));
//! drop(table);                            // pages go back to the system, bytes to the budget
//! drop(weights);
//! assert_eq!(budget.charged(), 0);
//! # Ok::<(), neap_memory::OverBudget>(())
//! ```
//!
//! Prefixes are cached, and given up when the budget shrinks:
//!
//! ```
//! use neap_memory::{BlockTable, Budget, CacheOptions, Fingerprint, KvCache, KvPool, Namespace};
//!
//! let budget = Budget::new(8 << 20);
//! let pool = KvPool::new(&budget, 64 << 10, 32);
//! let fingerprint = Fingerprint::of_parts(&[("model", b"tiny"), ("codec", b"f16")]);
//! let tenant = Namespace::new(&[7; 32], "alice", &fingerprint);
//! let mut cache = KvCache::new(&pool, CacheOptions::new(fingerprint))?;
//!
//! let prompt: Vec<u32> = (0..100).collect();
//! let mut table = BlockTable::new(&pool);
//! assert_eq!(cache.attach(&tenant, &prompt[..99], &mut table, 0), 0);
//! table.reserve(100)?;                    // …the model computes keys and values…
//! table.advance(100);
//! cache.insert(&tenant, &prompt, &mut table, 0);
//! drop(table);
//!
//! let mut next = BlockTable::new(&pool);
//! assert_eq!(cache.attach(&tenant, &prompt[..99], &mut next, 1000), 99);
//! drop(next);
//!
//! budget.set_limit(256 << 10);          // half of it holds what packs blocks
//! assert_eq!(cache.shrink(2000), 0);      // nothing is left above the limit
//! # Ok::<(), neap_memory::OverBudget>(())
//! ```

mod arena;
pub mod budget;
pub mod buffer;
pub mod cache;
pub mod codec;
pub mod costs;
pub mod disk;
pub mod governor;
pub mod hash;
pub mod level;
pub mod policy;
pub mod pool;
pub mod prefix;
pub mod pressure;
pub mod region;
pub mod remote;
pub mod resident;
pub mod session;
pub mod table;

pub use budget::{Budget, BudgetSnapshot, Charge, ChargeKind, Fill, OverBudget, RefusedBy, Resize};
pub use buffer::{Buffer, Plain};
pub use cache::{CacheOptions, KvCache};
pub use codec::{BlockCodec, QuantizedLevels, fingerprint};
pub use hash::{BlockHash, Fingerprint, Namespace};
pub use level::{KvQuality, Level};
pub use pool::{Block, KvPool, PoolStats, Window};
pub use prefix::PrefixTree;
pub use pressure::{DefaultBudget, default_budget};
pub use session::Sessions;
pub use table::{BlockTable, BlockView};
