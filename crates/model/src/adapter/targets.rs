//! Which matrices an adapter's names mean, and how their rows lie in its files.

use std::collections::HashMap;

use crate::config::{ModelConfig, RopeLayout};
use crate::source::{
    HF_PREFIXES, LayerTensor, Naming, Part, TensorName, candidates, third_of_heads,
};

/// A matrix of the model, and which part of the file's it is.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub name: TensorName,
    part: Part,
}

/// Rows of a file's `B`, in the model's order.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    count: usize,
    from: From,
}

#[derive(Clone, Debug)]
enum From {
    /// Those from here on.
    First(usize),
    /// These.
    Each(Vec<u32>),
}

impl Rows {
    /// All of `count` rows.
    pub fn all(count: usize) -> Self {
        Self {
            count,
            from: From::First(0),
        }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    /// The file's row that is the model's `row`.
    pub fn in_file(&self, row: usize) -> usize {
        match &self.from {
            From::First(first) => first + row,
            From::Each(rows) => rows[row] as usize,
        }
    }
}

/// The matrices that each module stands for. Modules are matrices' names without `.weight`; several of the model's
/// where a file holds them in one.
pub(super) fn find(
    modules: &[&str],
    config: &ModelConfig,
    is_peft: bool,
) -> HashMap<String, Vec<Target>> {
    if !is_peft {
        return all(config, &Naming::Gguf);
    }
    // Adapters are trained on decoders alone and on their inner models; names tell which.
    HF_PREFIXES
        .iter()
        .map(|prefix| all(config, &Naming::HuggingFace(prefix)))
        .max_by_key(|targets| modules.iter().filter(|m| targets.contains_key(**m)).count())
        .unwrap_or_default()
}

fn all(config: &ModelConfig, naming: &Naming) -> HashMap<String, Vec<Target>> {
    use LayerTensor as T;
    let mut targets: HashMap<String, Vec<Target>> = HashMap::new();
    for name in TensorName::all(config) {
        let adaptable = matches!(
            name,
            TensorName::Output
                | TensorName::Layer(
                    _,
                    T::AttnQ
                        | T::AttnK
                        | T::AttnV
                        | T::AttnOutput
                        | T::FfnGate
                        | T::FfnUp
                        | T::FfnDown
                )
        );
        if !adaptable {
            continue;
        }
        for (file_name, part) in candidates(name, config, naming) {
            if let Some(module) = file_name.strip_suffix(".weight") {
                let targets = targets.entry(module.to_owned()).or_default();
                targets.push(Target { name, part });
            }
        }
    }
    targets
}

impl Target {
    /// Rows and columns of the file's matrix of which this is a part.
    pub fn file_shape(&self, config: &ModelConfig) -> (usize, usize) {
        let shape = self.name.shape(config);
        let rows = match self.part {
            Part::Rows { of, .. } | Part::Columns { of, .. } => of,
            Part::ThirdOfHeads(_) => 3 * shape[0],
            _ => shape[0],
        };
        (rows, shape[1])
    }

    /// Which rows of the file's `B` are those of the matrix, in its order; or why that cannot be told.
    pub fn rows(&self, config: &ModelConfig, is_peft: bool) -> Result<Rows, String> {
        let count = self.name.shape(config)[0];
        let in_part = |row: usize| match self.part {
            Part::Rows { first, .. } | Part::Columns { first, .. } => first + row,
            Part::ThirdOfHeads(third) => third_of_heads(row, third, config.head_dim),
            _ => row,
        };
        let theirs = match is_peft {
            true => RopeLayout::Halves,
            false => config.gguf_architecture().row().gguf_rope_layout,
        };
        let turned = matches!(
            self.name,
            TensorName::Layer(_, LayerTensor::AttnQ | LayerTensor::AttnK)
        ) && theirs != config.rope.layout
            && config.layer_kinds.iter().any(|kind| kind.rope);
        let from = match (turned, self.part) {
            (false, Part::ThirdOfHeads(_)) => {
                From::Each((0..count).map(|row| in_part(row) as u32).collect())
            }
            (false, _) => From::First(in_part(0)),
            (true, _) if config.rope.dims != config.head_dim => {
                return Err(
                    "is of a model whose heads are rotated in part, in another order".into(),
                );
            }
            (true, _) => {
                let turn = match theirs {
                    RopeLayout::Halves => of_neighbours,
                    RopeLayout::Interleaved => of_halves,
                };
                let rows = (0..count).map(|row| in_part(turn(row, config.head_dim)) as u32);
                From::Each(rows.collect())
            }
        };
        Ok(Rows { count, from })
    }
}

/// The row of a layout by halves that becomes `row` of one by neighbours.
pub(crate) fn of_neighbours(row: usize, dim: usize) -> usize {
    let (head, within) = (row / dim, row % dim);
    head * dim + within % 2 * (dim / 2) + within / 2
}

/// The row of a layout by neighbours that becomes `row` of one by halves.
fn of_halves(row: usize, dim: usize) -> usize {
    let (head, within) = (row / dim, row % dim);
    head * dim + within % (dim / 2) * 2 + within / (dim / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_orders_of_rows_undo_each_other() {
        let by_neighbours: Vec<usize> = (0..8).map(|row| of_neighbours(row, 8)).collect();
        assert_eq!(by_neighbours, [0, 4, 1, 5, 2, 6, 3, 7]);
        for row in 0..24 {
            assert_eq!(of_halves(of_neighbours(row, 8), 8), row);
        }
    }
}
