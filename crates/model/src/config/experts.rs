//! Mixtures of experts (Shazeer et al. 2017; Mixtral, Jiang et al. 2024).

use serde::Serialize;

use super::Field;

/// Experts a layer may have.
const MAX_EXPERTS: usize = 1 << 12;

/// The experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExpertsConfig {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that a token goes through.
    pub used: usize,
    /// Width of an expert.
    pub ffn_size: usize,
    /// Whether the probabilities of the chosen experts are brought to a sum of 1.
    pub normalized: bool,
    /// Width of the network that all tokens go through beside their experts, and which has a gate of its own.
    pub shared_ffn_size: Option<usize>,
}

impl ExpertsConfig {
    /// The widest network.
    pub fn widest(&self) -> usize {
        self.ffn_size.max(self.shared_ffn_size.unwrap_or(0))
    }

    /// What is wrong with the numbers, if anything.
    pub(super) fn fault(&self) -> Option<(Field, String)> {
        let most = 1 << 22;
        if self.count == 0 || self.count > MAX_EXPERTS {
            let reason = format!("must be from 1 to {MAX_EXPERTS}, not {}", self.count);
            return Some((Field::Experts, reason));
        }
        if self.used == 0 || self.used > self.count {
            let reason = format!("must be from 1 to {}, not {}", self.count, self.used);
            return Some((Field::ExpertsUsed, reason));
        }
        let sizes = [
            (Field::ExpertFfnSize, Some(self.ffn_size)),
            (Field::SharedFfnSize, self.shared_ffn_size),
        ];
        for (field, size) in sizes {
            if let Some(size) = size.filter(|&size| size == 0 || size > most) {
                return Some((field, format!("must be from 1 to {most}, not {size}")));
            }
        }
        None
    }
}
