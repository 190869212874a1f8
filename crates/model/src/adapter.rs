//! LoRA adapters (Hu et al. 2021): for some matrices `W` of a model two thin ones each, with which a product becomes
//! `W x + s · B (A x)`.
//!
//! [`AdapterFile`] is an adapter that was checked against a model; it holds no weights. [`Adapter`] holds them, charged to
//! the budget. Dropping it costs nothing but reading the file again.

mod gguf;
mod peft;
mod targets;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use neap_kernels::format::WeightFormat;
use neap_kernels::matrix::{MatrixRef, Weights};
use neap_memory::{Budget, Buffer, ChargeKind, OverBudget};

use crate::config::ModelConfig;
use crate::gguf::GgufFile;
use crate::safetensors::SafetensorsFiles;
use crate::source::tensor::Stored;
use crate::source::{ModelFileError, ModelSource, TensorInfo, TensorName, first_non_finite};
pub(crate) use targets::of_neighbours;
use targets::{Rows, Target};

/// The largest rank that is taken.
pub const MAX_RANK: usize = 512;

/// Matrices begin at multiples of this, so that vector loads of their first rows do not straddle lines.
const ALIGN_BYTES: usize = 64;

/// Why an adapter was not taken or not loaded.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The files are at fault, or do not fit the model.
    #[error(transparent)]
    File(#[from] ModelFileError),
    /// The budget has no room for the weights.
    #[error("the adapter does not fit: {0}")]
    OverBudget(#[from] OverBudget),
    /// The files are others than those that were checked.
    #[error("{}: has changed since it was added: remove the adapter and add it again", path.display())]
    Changed {
        /// The adapter.
        path: PathBuf,
    },
}

/// An adapter that fits a model, without its weights.
#[derive(Debug)]
pub struct AdapterFile {
    path: PathBuf,
    hash: [u8; 32],
    pairs: Vec<PlannedPair>,
    layout: Layout,
}

/// Two thin matrices, as they stand in the file.
#[derive(Clone, Debug)]
struct PlannedPair {
    name: TensorName,
    /// Numbers of the file's tensors.
    a: usize,
    b: usize,
    /// Which rows of the file's `B` are those of the matrix.
    rows: Rows,
    scale: f32,
}

/// Where a loaded adapter's matrices lie.
#[derive(Debug, Default)]
struct Layout {
    pairs: HashMap<TensorName, Pair>,
    bytes: usize,
}

/// `A`: `[rank, cols]`, `B`: `[rows, rank]`.
#[derive(Clone, Debug)]
struct Pair {
    a: Thin,
    b: Thin,
    scale: f32,
}

#[derive(Clone, Debug)]
struct Thin {
    format: WeightFormat,
    rows: usize,
    cols: usize,
    at: Range<usize>,
}

/// The files of an adapter, open.
enum Files {
    Peft(peft::Folder),
    Gguf(GgufFile),
}

/// What a file says of one pair: the module as the file names it, its tensors, and its scale.
struct NamedPair {
    module: String,
    a: usize,
    b: usize,
    scale: f32,
}

impl AdapterFile {
    /// Opens a folder in PEFT's layout (`adapter_config.json` and `adapter_model.safetensors`, or one of these files), or
    /// a GGUF adapter as llama.cpp's converter writes it, and checks it against `model`.
    ///
    /// # Errors
    /// If the files are malformed, adapt what the model does not have or in a way that is not supported, or if shapes or
    /// ranks do not fit. The message names the field or the tensor.
    pub fn open(path: impl AsRef<Path>, model: &ModelSource) -> Result<Self, AdapterError> {
        let path = path.as_ref();
        let files = Files::open(path)?;
        let config = model.config();
        let pairs = match &files {
            Files::Peft(folder) => peft::pairs(folder, config)?,
            Files::Gguf(file) => gguf::pairs(file, config)?,
        };
        if pairs.is_empty() {
            return Err(ModelFileError::config(path, "tensors", "there are none").into());
        }
        let pairs = files.plan(pairs, config)?;
        let layout = Layout::of(&files, &pairs);
        Ok(Self {
            path: path.to_owned(),
            hash: files.hash(),
            pairs,
            layout,
        })
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A hash of the adapter's whole contents.
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Bytes that [`AdapterFile::load`] charges.
    pub fn charged_bytes(&self) -> u64 {
        Buffer::<u8>::charged_bytes_for(self.layout.bytes).unwrap_or(usize::MAX) as u64
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// If the budget has no room for them, or the files have changed since they were opened.
    pub fn load(&self, budget: &Budget) -> Result<Adapter, AdapterError> {
        let files = Files::open(&self.path)?;
        if files.hash() != self.hash {
            return Err(AdapterError::Changed {
                path: self.path.clone(),
            });
        }
        let mut bytes = Buffer::zeroed(budget, ChargeKind::Adapters, self.layout.bytes)?;
        for pair in &self.pairs {
            let Pair { a, b, .. } = &self.layout.pairs[&pair.name];
            files.write(pair.a, &Rows::all(a.rows), a, &mut bytes[a.at.clone()]);
            files.write(pair.b, &pair.rows, b, &mut bytes[b.at.clone()]);
        }
        Ok(Adapter {
            hash: self.hash,
            bytes,
            pairs: self.layout.pairs.clone(),
        })
    }
}

impl Files {
    fn open(path: &Path) -> Result<Self, ModelFileError> {
        match ModelSource::folder_of(path) {
            Some(folder) => Ok(Self::Peft(peft::Folder::open(folder)?)),
            None => Ok(Self::Gguf(GgufFile::open(path)?)),
        }
    }

    fn tensors(&self) -> &[TensorInfo] {
        match self {
            Self::Peft(folder) => folder.weights.tensors(),
            Self::Gguf(file) => file.tensors(),
        }
    }

    fn data(&self, tensor: &TensorInfo) -> &[u8] {
        match self {
            Self::Peft(folder) => folder.weights.tensor_data(tensor),
            Self::Gguf(file) => file.tensor_data(tensor),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Peft(folder) => folder.weights.file_path(0),
            Self::Gguf(file) => file.path(),
        }
    }

    fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("neap adapter, version 1");
        if let Self::Peft(folder) = self {
            hasher.update(&(folder.config.len() as u64).to_le_bytes());
            hasher.update(&folder.config);
        }
        let files = match self {
            Self::Peft(folder) => folder.weights.file_count(),
            Self::Gguf(file) => file.file_count(),
        };
        for file in 0..files {
            let bytes = match self {
                Self::Peft(folder) => folder.weights.file_bytes(file),
                Self::Gguf(gguf) => gguf.file_bytes(file),
            };
            hasher.update(bytes);
        }
        *hasher.finalize().as_bytes()
    }

    /// Whose queries and keys lie as Hugging Face has them.
    fn is_peft(&self) -> bool {
        matches!(self, Self::Peft(_))
    }

    /// Finds what each pair adapts, and checks shapes and values.
    fn plan(
        &self,
        pairs: Vec<NamedPair>,
        config: &ModelConfig,
    ) -> Result<Vec<PlannedPair>, ModelFileError> {
        let names: Vec<&str> = pairs.iter().map(|pair| pair.module.as_str()).collect();
        let targets = targets::find(&names, config, self.is_peft());
        let mut planned: Vec<PlannedPair> = Vec::new();
        let mut is_taken: HashMap<TensorName, ()> = HashMap::new();
        for pair in &pairs {
            let refuse = |tensor: usize, reason: String| {
                let name = &self.tensors()[tensor].name;
                Err(ModelFileError::tensor(self.path(), name, reason))
            };
            let Some(targets) = targets.get(&pair.module) else {
                let reason = format!(
                    "adapts {:?}, which this model does not have, or which cannot be adapted (experts, embeddings \
                     and norms cannot)",
                    pair.module
                );
                return refuse(pair.a, reason);
            };
            self.check_pair(pair, &targets[0], config)?;
            for target in targets {
                if is_taken.insert(target.name, ()).is_some() {
                    return refuse(pair.a, "adapts a matrix for the second time".to_owned());
                }
                let rows = match target.rows(config, self.is_peft()) {
                    Ok(rows) => rows,
                    Err(reason) => return refuse(pair.b, reason),
                };
                planned.push(PlannedPair {
                    name: target.name,
                    a: pair.a,
                    b: pair.b,
                    rows,
                    scale: pair.scale,
                });
            }
        }
        Ok(planned)
    }

    fn check_pair(
        &self,
        pair: &NamedPair,
        target: &Target,
        config: &ModelConfig,
    ) -> Result<(), ModelFileError> {
        let (a, b) = (&self.tensors()[pair.a], &self.tensors()[pair.b]);
        let refuse = |info: &TensorInfo, reason: String| {
            Err(ModelFileError::tensor(self.path(), &info.name, reason))
        };
        let (rows, cols) = target.file_shape(config);
        let rank = a.shape[0];
        if rank > MAX_RANK {
            return refuse(
                a,
                format!("has the rank {rank}; at most {MAX_RANK} is taken"),
            );
        }
        for (info, expected) in [(a, [rank, cols]), (b, [rows, rank])] {
            if info.shape != expected {
                let reason = format!("has the shape {:?}, not {expected:?}", info.shape);
                return refuse(info, reason);
            }
            if info.stored != Stored::AsFormat {
                return refuse(
                    info,
                    format!("is {}, which is not supported", info.type_name()),
                );
            }
            if let Some(block) = first_non_finite(info.format, self.data(info)) {
                let at = info.offset + block * info.format.block_bytes();
                return refuse(
                    info,
                    format!("the value at byte {at} is not a finite number"),
                );
            }
        }
        if !pair.scale.is_finite() {
            return refuse(a, format!("has the scale {}", pair.scale));
        }
        Ok(())
    }

    /// Writes `rows` of a tensor into `out` as `thin` describes it.
    fn write(&self, tensor: usize, rows: &Rows, thin: &Thin, out: &mut [u8]) {
        let info = &self.tensors()[tensor];
        let data = self.data(info);
        let (from, to) = (info.bytes / info.rows(), out.len() / thin.rows);
        let mut values = vec![0.0; thin.cols];
        for (row, out) in out.chunks_exact_mut(to).enumerate() {
            let bytes = &data[rows.in_file(row) * from..][..from];
            if thin.format == info.format {
                out.copy_from_slice(bytes);
                continue;
            }
            let read = info.format.dequantize(bytes, &mut values);
            let written = read.and_then(|()| thin.format.quantize(&values, out));
            written.expect("shapes were checked when the adapter was opened");
        }
    }
}

impl Layout {
    fn of(files: &Files, pairs: &[PlannedPair]) -> Self {
        let mut layout = Self::default();
        let mut shared: HashMap<usize, Thin> = HashMap::new();
        for pair in pairs {
            let rank = files.tensors()[pair.a].shape[0];
            let cols = files.tensors()[pair.a].cols();
            // One for several matrices, where a file holds these in one.
            let a = match shared.get(&pair.a) {
                Some(a) => a.clone(),
                None => layout.place(&files.tensors()[pair.a], rank, cols),
            };
            shared.insert(pair.a, a.clone());
            let b = layout.place(&files.tensors()[pair.b], pair.rows.len(), rank);
            let scale = pair.scale;
            layout.pairs.insert(pair.name, Pair { a, b, scale });
        }
        layout
    }

    fn place(&mut self, info: &TensorInfo, rows: usize, cols: usize) -> Thin {
        // Adapters are small: their values are kept as they are, not as products with quantized weights would take them.
        let format = match info.format.is_float() {
            true => info.format,
            false => WeightFormat::F32,
        };
        // The shape is that of a tensor in a file, so it can be counted.
        let bytes = rows * format.row_bytes(cols).unwrap_or(0);
        let first = self.bytes.next_multiple_of(ALIGN_BYTES);
        self.bytes = first + bytes;
        Thin {
            format,
            rows,
            cols,
            at: first..self.bytes,
        }
    }
}

/// The weights of an adapter.
#[derive(Debug)]
pub struct Adapter {
    hash: [u8; 32],
    bytes: Buffer<u8>,
    pairs: HashMap<TensorName, Pair>,
}

/// The thin matrices beside one of a model's.
pub(crate) struct PairRef<'a> {
    /// `[rank, cols]`.
    pub a: Weights<'a>,
    /// `[rows, rank]`.
    pub b: Weights<'a>,
    pub scale: f32,
}

impl Adapter {
    /// That of its file: see [`AdapterFile::hash`].
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Bytes charged.
    pub fn charged_bytes(&self) -> u64 {
        self.bytes.charged_bytes()
    }

    /// What stands beside the matrix `name`, if anything does.
    pub(crate) fn pair(&self, name: TensorName) -> Option<PairRef<'_>> {
        let pair = self.pairs.get(&name)?;
        let weights = |thin: &Thin| {
            let bytes = &self.bytes[thin.at.clone()];
            let matrix = MatrixRef::new(thin.format, thin.rows, thin.cols, bytes);
            Weights::Rows(matrix.expect("lengths were checked when the adapter was opened"))
        };
        Some(PairRef {
            a: weights(&pair.a),
            b: weights(&pair.b),
            scale: pair.scale,
        })
    }
}

/// Pairs up tensors that belong together: numbers, names, and for each the module and whether it is its `A`.
fn pair_up<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (usize, &'a str, Option<(&'a str, bool)>)>,
) -> Result<Vec<(String, usize, usize)>, ModelFileError> {
    let mut modules: Vec<(String, [Option<usize>; 2])> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut names: HashMap<usize, &str> = HashMap::new();
    for (number, name, part) in tensors {
        names.insert(number, name);
        let Some((module, is_a)) = part else {
            let reason = "is neither the A nor the B of a LoRA adapter";
            return Err(ModelFileError::tensor(path, name, reason));
        };
        let place = *places.entry(module).or_insert_with(|| {
            modules.push((module.to_owned(), [None; 2]));
            modules.len() - 1
        });
        modules[place].1[usize::from(!is_a)] = Some(number);
    }
    modules
        .into_iter()
        .map(|(module, pair)| match pair {
            [Some(a), Some(b)] => Ok((module, a, b)),
            [Some(one), None] | [None, Some(one)] => {
                let reason = "has no partner: A and B belong together";
                Err(ModelFileError::tensor(path, names[&one], reason))
            }
            [None, None] => unreachable!("a module is known by one of its tensors"),
        })
        .collect()
}
