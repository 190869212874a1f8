//! The adapter that is learned, and its files in PEFT's layout.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use neap_model::config::{ModelConfig, RopeLayout};
use neap_model::source::LayerTensor;

use crate::TuneError;
use crate::plan::Random;

/// A matrix of each layer that can be adapted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output of attention.
    O,
    /// Gate of the feed-forward network.
    Gate,
    /// Its up projection.
    Up,
    /// Its down projection.
    Down,
}

impl Target {
    /// Every target.
    pub const ALL: [Self; 7] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// The module's name in Hugging Face models, within its layer.
    fn module(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// The name that people write: the module's last part without `_proj`.
    pub fn name(self) -> &'static str {
        let module = self.module();
        let last = module.rsplit('.').next().unwrap_or(module);
        last.trim_end_matches("_proj")
    }

    pub(crate) fn tensor(self) -> LayerTensor {
        match self {
            Self::Q => LayerTensor::AttnQ,
            Self::K => LayerTensor::AttnK,
            Self::V => LayerTensor::AttnV,
            Self::O => LayerTensor::AttnOutput,
            Self::Gate => LayerTensor::FfnGate,
            Self::Up => LayerTensor::FfnUp,
            Self::Down => LayerTensor::FfnDown,
        }
    }

    /// Rows and columns of the matrix.
    fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let (hidden, ffn) = (config.hidden_size, config.ffn_size);
        match self {
            Self::Q => (config.q_size(), hidden),
            Self::K | Self::V => (config.kv_size(), hidden),
            Self::O => (hidden, config.q_size()),
            Self::Gate | Self::Up => (ffn, hidden),
            Self::Down => (hidden, ffn),
        }
    }
}

/// Two thin matrices: `W x` becomes `W x + scale · B (A x)`.
pub(crate) struct Pair {
    pub layer: usize,
    pub target: Target,
    /// `[rank, cols]`.
    pub a: Var,
    /// `[rows, rank]`.
    pub b: Var,
}

/// What is learned.
pub(crate) struct Adapter {
    pub pairs: Vec<Pair>,
    places: HashMap<(usize, Target), usize>,
    rank: usize,
    alpha: f64,
}

impl Adapter {
    /// One that changes nothing yet: `A` is uniform between ± 1/√cols as in PEFT, `B` is zero.
    pub fn new(
        config: &ModelConfig,
        targets: &[Target],
        (rank, alpha): (usize, f64),
        seed: u64,
    ) -> Result<Self, TuneError> {
        let mut random = Random::new(seed);
        let (mut pairs, mut places) = (Vec::new(), HashMap::new());
        for layer in 0..config.layers {
            for &target in targets {
                let (rows, cols) = target.shape(config);
                let bound = 1.0 / (cols as f64).sqrt();
                let a = (0..rank * cols).map(|_| ((2.0 * random.uniform() - 1.0) * bound) as f32);
                let a = Tensor::from_vec(a.collect::<Vec<_>>(), (rank, cols), &Device::Cpu)?;
                places.insert((layer, target), pairs.len());
                pairs.push(Pair {
                    layer,
                    target,
                    a: Var::from_tensor(&a)?,
                    b: Var::zeros((rows, rank), DType::F32, &Device::Cpu)?,
                });
            }
        }
        Ok(Self {
            pairs,
            places,
            rank,
            alpha,
        })
    }

    /// What is learned, in an order that is always the same.
    pub fn variables(&self) -> impl Iterator<Item = &Var> {
        self.pairs.iter().flat_map(|pair| [&pair.a, &pair.b])
    }

    /// Rows times a matrix `[rows, cols]` and what stands beside it.
    pub fn linear(
        &self,
        x: &Tensor,
        matrix: &Tensor,
        layer: usize,
        target: Target,
    ) -> Result<Tensor, candle_core::Error> {
        let product = x.matmul(&matrix.t()?)?;
        let Some(&place) = self.places.get(&(layer, target)) else {
            return Ok(product);
        };
        let Pair { a, b, .. } = &self.pairs[place];
        let beside = x.matmul(&a.t()?)?.matmul(&b.t()?)?;
        product + (beside * (self.alpha / self.rank as f64))?
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors`.
    pub fn export(&self, folder: &Path, config: &ModelConfig, base: &str) -> Result<(), TuneError> {
        let mut tensors = HashMap::new();
        for pair in &self.pairs {
            let module = format!(
                "base_model.model.model.layers.{}.{}",
                pair.layer,
                pair.target.module()
            );
            let is_turned = matches!(pair.target, Target::Q | Target::K)
                && config.layer_kinds.iter().any(|kind| kind.rope)
                && config.rope.layout == RopeLayout::Interleaved;
            let b = match is_turned {
                true => pair
                    .b
                    .index_select(&halves(pair.b.dim(0)?, config.head_dim)?, 0)?,
                false => pair.b.as_tensor().clone(),
            };
            tensors.insert(
                format!("{module}.lora_A.weight"),
                pair.a.as_tensor().clone(),
            );
            tensors.insert(format!("{module}.lora_B.weight"), b);
        }
        let mut modules: Vec<&str> = Vec::new();
        for pair in &self.pairs {
            let module = pair.target.module();
            let last = module.rsplit('.').next().unwrap_or(module);
            if !modules.contains(&last) {
                modules.push(last);
            }
        }
        let description = serde_json::json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "target_modules": modules,
        });
        let path = folder.join("adapter_model.safetensors");
        replace(&path, |part| {
            candle_core::safetensors::save(&tensors, part).map_err(TuneError::from)
        })?;
        write_text(
            &folder.join("adapter_config.json"),
            &format!("{description:#}\n"),
        )
    }
}

/// For each row of a layout by halves, as Hugging Face has it, the row of one by neighbours that it is.
fn halves(rows: usize, dim: usize) -> Result<Tensor, candle_core::Error> {
    let half = dim / 2;
    let from = |row: usize| (row / dim * dim + row % dim % half * 2 + row % dim / half) as u32;
    Tensor::from_vec((0..rows).map(from).collect::<Vec<_>>(), rows, &Device::Cpu)
}

/// Writes a file beside its place, brings it to the disk and moves it there, so that a half-written one never has the
/// name.
pub(crate) fn replace(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), TuneError>,
) -> Result<(), TuneError> {
    let file = |why| TuneError::File {
        path: path.to_owned(),
        why,
    };
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    write(part)?;
    std::fs::File::open(part)
        .and_then(|part| part.sync_all())
        .map_err(file)?;
    std::fs::rename(part, path).map_err(file)
}

pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), TuneError> {
    replace(path, |part| {
        std::fs::write(part, text).map_err(|why| TuneError::File {
            path: part.to_owned(),
            why,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_by_neighbours_become_rows_by_halves() {
        let rows = halves(8, 4).unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(rows, [0, 2, 1, 3, 4, 6, 5, 7]);
        let rows = halves(6, 6).unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(rows, [0, 2, 4, 1, 3, 5]);
    }

    #[test]
    fn targets_have_the_names_people_write() {
        let names = Target::ALL.map(Target::name);
        assert_eq!(names, ["q", "k", "v", "o", "gate", "up", "down"]);
    }
}
