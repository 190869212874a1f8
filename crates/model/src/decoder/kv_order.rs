//! The order of layers in a KV block: those with a sliding window come last.
//!
//! Once a block is behind the window, nobody reads their part of it again: it is the block's tail, and the memory may let
//! go of it (see [`Window`]). Of a model whose layers all have a window, the first counts as if it had none, so that
//! something is left of every block.

use neap_kernels::kv::KvLayoutError;
use neap_memory::{Budget, KvPool, Window};

use super::BLOCK_TOKENS;
use super::weights::{KV_FORMAT, kv_layout};
use crate::config::ModelConfig;

/// Whether each layer's keys and values are in the tail of a block. Those of encoders, which see a text at once, are not.
fn in_tail(config: &ModelConfig) -> Vec<bool> {
    let has_window = |layer: usize| config.causal && config.window(layer).is_some();
    let mut in_tail: Vec<bool> = (0..config.layers).map(has_window).collect();
    if in_tail.iter().all(|&in_tail| in_tail) {
        in_tail[..1].fill(false);
    }
    in_tail
}

fn head_layers(config: &ModelConfig) -> usize {
    in_tail(config).iter().filter(|&&in_tail| !in_tail).count()
}

/// The place of each layer in a block.
pub fn kv_places(config: &ModelConfig) -> Vec<usize> {
    let (mut head, mut tail) = (0, head_layers(config));
    let place = |in_tail: bool| {
        let next = if in_tail { &mut tail } else { &mut head };
        *next += 1;
        *next - 1
    };
    in_tail(config).into_iter().map(place).collect()
}

/// What of a block is read within a window only; `None` where all layers see all tokens of the longest context.
///
/// # Errors
/// As [`kv_layout`].
pub fn kv_window(config: &ModelConfig) -> Result<Option<Window>, KvLayoutError> {
    let (layout, head_layers) = (kv_layout(config)?, head_layers(config));
    let tokens = config.sliding_window.filter(|&tokens| {
        head_layers < config.layers && tokens.saturating_add(BLOCK_TOKENS) < config.context_length
    });
    Ok(tokens.map(|tokens| Window {
        tokens: tokens.max(1),
        head_bytes: layout.layer_range(KV_FORMAT, head_layers - 1).end,
    }))
}

/// A pool of a model's blocks.
///
/// # Errors
/// As [`kv_layout`].
pub fn kv_pool(budget: &Budget, config: &ModelConfig) -> Result<KvPool, KvLayoutError> {
    let block_bytes = kv_layout(config)?.block_bytes(KV_FORMAT);
    let window = kv_window(config)?;
    Ok(KvPool::with_window(
        budget,
        block_bytes,
        BLOCK_TOKENS,
        window,
    ))
}

/// What the bytes of a block depend on besides the model: nothing, where layers stand in their own order.
pub fn kv_order(config: &ModelConfig) -> Vec<u8> {
    let places = kv_places(config);
    if places.is_sorted() {
        return Vec::new();
    }
    let numbers = places.iter().map(|&place| place as u32);
    numbers.flat_map(u32::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::ModelSource;

    fn config(name: &str) -> ModelConfig {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = folder.join("tests/golden/architectures").join(name);
        ModelSource::open(folder).unwrap().config().clone()
    }

    #[test]
    fn layers_with_a_window_come_last() {
        let config = config("gemma3");
        assert_eq!(kv_places(&config), [1, 2, 3, 4, 5, 0, 6]);
        let window = kv_window(&config).unwrap().unwrap();
        let layer_bytes = 2 * config.kv_heads * config.head_dim * BLOCK_TOKENS * 2;
        assert_eq!((window.tokens, window.head_bytes), (9, layer_bytes));
        assert_eq!(kv_order(&config).len(), 7 * 4);
        // A context that is all in the window.
        let short = ModelConfig {
            context_length: 41,
            ..config
        };
        assert_eq!(kv_window(&short).unwrap(), None);
        assert!(
            !kv_order(&short).is_empty(),
            "blocks are the same whatever the context"
        );
    }

    #[test]
    fn something_is_left_where_all_layers_have_a_window() {
        let config = config("mistral");
        assert_eq!(kv_places(&config), [0, 1]);
        assert!(kv_order(&config).is_empty());
        let window = kv_window(&config).unwrap().unwrap();
        assert_eq!(
            window.head_bytes * 2,
            kv_layout(&config).unwrap().block_bytes(KV_FORMAT)
        );
    }

    #[test]
    fn models_without_windows_are_as_they_were() {
        let config = config("qwen3");
        assert!(kv_places(&config).into_iter().eq(0..config.layers));
        assert!(kv_order(&config).is_empty() && kv_window(&config).unwrap().is_none());
    }
}
