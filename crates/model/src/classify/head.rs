//! The head of a classifier, out of a model's files.

use std::collections::BTreeMap;

use neap_memory::{Budget, Buffer, ChargeKind};
use serde::Deserialize;
use serde_json::Value as Json;

use super::{ClassifierError, Outcome, activate};
use crate::config::{Activation, HfNaming};
use crate::embed::Pooling;
use crate::gguf::{Array, Value};
use crate::source::{ModelFileError, ModelSource, Stored, TensorInfo, first_non_finite};

/// Classes at most.
const MAX_CLASSES: usize = 1 << 16;

pub(crate) struct Head {
    dense: Option<Dense>,
    act: Act,
    norm: Option<(Buffer<f32>, Option<Buffer<f32>>, f64)>,
    output: Dense,
    pub pooling: Pooling,
    pub labels: Vec<String>,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq)]
enum Act {
    Tanh,
    Of(Activation),
}

/// A matrix `[rows, cols]` and its bias.
struct Dense {
    weight: Buffer<f32>,
    bias: Option<Buffer<f32>>,
    rows: usize,
}

/// What `config.json` says of classes.
#[derive(Default, Deserialize)]
struct Config {
    id2label: Option<BTreeMap<String, String>>,
    problem_type: Option<String>,
    classifier_pooling: Option<String>,
    classifier_activation: Option<String>,
    sbert_ce_default_activation_function: Option<String>,
    sentence_transformers: Option<Json>,
    architectures: Option<Vec<String>>,
}

/// Reads tensors of a model's files by their names.
struct Files<'a> {
    source: &'a ModelSource,
    budget: &'a Budget,
}

impl Head {
    /// The head in the files, if there is one.
    pub fn read(source: &ModelSource, budget: &Budget) -> Result<Option<Self>, ClassifierError> {
        let files = Files { source, budget };
        let config = source.config();
        let hidden = config.hidden_size;
        let naming = config.architecture.row().hf_naming;
        let (dense, norm, output) = match (source.gguf(), naming) {
            (Some(_), _) => (["cls", "cls"], "cls.norm", "cls.output"),
            (None, _) if config.causal => ([""; 2], "", "score"),
            (None, HfNaming::ModernBert) => (["head.dense"; 2], "head.norm", "classifier"),
            (None, _) if config.architecture.row().hf_unused_positions > 0 => {
                (["classifier.dense"; 2], "", "classifier.out_proj")
            }
            (None, _) => (["bert.pooler.dense", "pooler.dense"], "", "classifier"),
        };
        let Some(info) = files.tensor(&format!("{output}.weight")) else {
            return Ok(None);
        };
        let classes = info.rows();
        if classes > MAX_CLASSES {
            let reason = format!("has {classes} rows; at most {MAX_CLASSES} classes are taken");
            return Err(files.refuse(info, reason).into());
        }
        let output = files.dense(output, classes, hidden)?;
        let output = output.ok_or_else(|| ClassifierError::NoHead {
            path: source.path().display().to_string(),
        })?;
        let mut first = None;
        for name in dense {
            first = first.or(files.dense(name, hidden, hidden)?);
        }
        let norm = match files.vector(&format!("{norm}.weight"), &[hidden])? {
            None => None,
            Some(weight) => {
                let bias = files.vector(&format!("{norm}.bias"), &[hidden])?;
                Some((weight, bias, f64::from(config.norm.eps)))
            }
        };
        let said = files.config()?;
        let mut made_for = said.architectures.iter().flatten();
        if made_for.any(|name| name.ends_with("ForTokenClassification")) {
            let reason = "classifies tokens, not texts: that is not supported";
            return Err(ModelFileError::config(source.path(), "architectures", reason).into());
        }
        let labels = files.labels(&said, classes)?;
        Ok(Some(Self {
            dense: first,
            act: files.activation(naming, &said)?,
            norm,
            output,
            pooling: match said.classifier_pooling.as_deref() {
                _ if config.causal => Pooling::Last,
                Some("mean") => Pooling::Mean,
                _ => Pooling::Cls,
            },
            outcome: outcome(&said, labels.len()),
            labels,
        }))
    }

    /// The head's tensors as GGUF files call them: name, shape and values.
    pub fn in_gguf(&self) -> Vec<(&'static str, Vec<usize>, &[f32])> {
        let mut out: Vec<(&'static str, Vec<usize>, &[f32])> = Vec::new();
        let matrices = [
            (self.dense.as_ref(), "cls.weight", "cls.bias"),
            (Some(&self.output), "cls.output.weight", "cls.output.bias"),
        ];
        for (dense, weight, bias) in matrices {
            let Some(dense) = dense else { continue };
            let cols = dense.weight.len() / dense.rows;
            out.push((weight, vec![dense.rows, cols], &dense.weight));
            if let Some(values) = &dense.bias {
                out.push((bias, vec![values.len()], values));
            }
        }
        if let Some((weight, bias, _)) = &self.norm {
            out.push(("cls.norm.weight", vec![weight.len()], weight));
            if let Some(bias) = bias {
                out.push(("cls.norm.bias", vec![bias.len()], bias));
            }
        }
        out
    }

    /// Why a GGUF file, which does not say how the head is used, would mean another one.
    pub fn not_in_gguf(&self, naming: HfNaming) -> Option<&'static str> {
        let usual = usual_act(naming);
        if self.pooling == Pooling::Mean {
            Some("its classification head reads the mean of all rows, not the first")
        } else if self.act != usual {
            Some("its classification head has another activation than is usual")
        } else if self.outcome != outcome(&Config::default(), self.labels.len()) {
            Some("its logits become probabilities in another way than is usual")
        } else {
            None
        }
    }

    /// The logits of one pooled row.
    pub fn logits(&self, pooled: &[f32]) -> Vec<f32> {
        let mut x = pooled.to_vec();
        if let Some(dense) = &self.dense {
            x = dense.apply(&x);
            for value in &mut x {
                *value = match self.act {
                    Act::Tanh => value.tanh(),
                    Act::Of(activation) => activate(activation, *value),
                };
            }
        }
        if let Some((weight, bias, eps)) = &self.norm {
            normalize(&mut x, weight, bias.as_deref(), *eps);
        }
        self.output.apply(&x)
    }
}

impl Dense {
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(x.len()).take(self.rows);
        let sums = rows.enumerate().map(|(row, weights)| {
            let products = weights
                .iter()
                .zip(x)
                .map(|(w, x)| f64::from(*w) * f64::from(*x));
            let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]));
            (products.sum::<f64>() + bias) as f32
        });
        sums.collect()
    }
}

fn normalize(x: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f64) {
    let n = x.len() as f64;
    let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let squares = x.iter().map(|v| (f64::from(*v) - mean).powi(2));
    let scale = 1.0 / (squares.sum::<f64>() / n + eps).sqrt();
    for (i, value) in x.iter_mut().enumerate() {
        let bias = bias.map_or(0.0, |bias| f64::from(bias[i]));
        *value = ((f64::from(*value) - mean) * scale * f64::from(weight[i]) + bias) as f32;
    }
}

/// As sentence-transformers has it: one number becomes a probability, unless the files say otherwise.
fn outcome(config: &Config, classes: usize) -> Outcome {
    let named = config.sentence_transformers.as_ref();
    let named = named.and_then(|s| s["activation_fn"].as_str());
    let named = named.or(config.sbert_ce_default_activation_function.as_deref());
    match (named, config.problem_type.as_deref()) {
        (Some(name), _) if name.ends_with("Identity") => Outcome::Identity,
        (_, Some("regression")) => Outcome::Identity,
        (_, Some("multi_label_classification")) => Outcome::Sigmoid,
        _ if classes == 1 => Outcome::Sigmoid,
        _ => Outcome::Softmax,
    }
}

/// The activation of a head where the files do not name it.
fn usual_act(naming: HfNaming) -> Act {
    match naming {
        HfNaming::ModernBert => Act::Of(Activation::GeluErf),
        _ => Act::Tanh,
    }
}

impl Files<'_> {
    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        match (self.source.gguf(), self.source.folder()) {
            (Some(file), _) => file.tensor(name),
            (None, folder) => folder?.weights().tensor(name),
        }
    }

    fn refuse(&self, info: &TensorInfo, reason: impl Into<String>) -> ModelFileError {
        ModelFileError::tensor(self.source.path(), &info.name, reason)
    }

    fn dense(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Option<Dense>, ClassifierError> {
        let Some(weight) = self.vector(&format!("{name}.weight"), &[rows, cols])? else {
            return Ok(None);
        };
        let bias = self.vector(&format!("{name}.bias"), &[rows])?;
        Ok(Some(Dense { weight, bias, rows }))
    }

    /// A tensor's values, if there is one of this name.
    fn vector(&self, name: &str, shape: &[usize]) -> Result<Option<Buffer<f32>>, ClassifierError> {
        let Some(info) = self.tensor(name) else {
            return Ok(None);
        };
        // Files may leave out a dimension of 1.
        if info.shape != shape && !(shape[0] == 1 && info.shape == shape[1..]) {
            let reason = format!("has the shape {:?}, not {shape:?}", info.shape);
            return Err(self.refuse(info, reason).into());
        }
        if info.stored != Stored::AsFormat {
            let reason = format!("is {}, which is not supported here", info.type_name());
            return Err(self.refuse(info, reason).into());
        }
        let data = match (self.source.gguf(), self.source.folder()) {
            (Some(file), _) => file.tensor_data(info),
            (None, Some(folder)) => folder.weights().tensor_data(info),
            (None, None) => return Ok(None),
        };
        let mut values = Buffer::zeroed(self.budget, ChargeKind::Weights, info.len())?;
        let from = info.bytes / info.rows();
        for (bytes, row) in data
            .chunks_exact(from)
            .zip(values.chunks_exact_mut(info.cols()))
        {
            if first_non_finite(info.format, bytes).is_some() {
                return Err(self
                    .refuse(info, "holds a value that is not a finite number")
                    .into());
            }
            let read = info.format.dequantize(bytes, row);
            read.map_err(|why| self.refuse(info, why.to_string()))?;
        }
        Ok(Some(values))
    }

    fn config(&self) -> Result<Config, ModelFileError> {
        let Some(folder) = self.source.folder() else {
            return Ok(Config::default());
        };
        let path = folder.path().join("config.json");
        serde_json::from_slice(folder.config_json())
            .map_err(|why| ModelFileError::config(&path, "JSON", why.to_string()))
    }

    fn activation(&self, naming: HfNaming, config: &Config) -> Result<Act, ModelFileError> {
        if naming != HfNaming::ModernBert {
            return Ok(usual_act(naming));
        }
        match config.classifier_activation.as_deref() {
            None => Ok(usual_act(naming)),
            Some("gelu") => Ok(Act::Of(Activation::GeluErf)),
            Some("silu") => Ok(Act::Of(Activation::Silu)),
            Some("tanh") => Ok(Act::Tanh),
            Some(other) => {
                let reason = format!("'{other}' is not supported");
                let path = self.source.path();
                Err(ModelFileError::config(
                    path,
                    "classifier_activation",
                    reason,
                ))
            }
        }
    }

    fn labels(&self, config: &Config, classes: usize) -> Result<Vec<String>, ModelFileError> {
        let usual = |class: usize| format!("LABEL_{class}");
        if let Some(file) = self.source.gguf() {
            let name = self.source.config().architecture.row().gguf_name;
            let key = format!("{}.classifier.output_labels", name.unwrap_or_default());
            return Ok(match file.metadata(&key) {
                Some(Value::Array(Array::String(names))) if names.len() == classes => {
                    names.iter().map(str::to_owned).collect()
                }
                _ => (0..classes).map(usual).collect(),
            });
        }
        let named = config.id2label.as_ref();
        if let Some(named) = named.filter(|named| named.len() != classes) {
            let reason = format!("names {} classes, the head has {classes}", named.len());
            return Err(ModelFileError::config(
                self.source.path(),
                "id2label",
                reason,
            ));
        }
        let label = |class: usize| named.and_then(|named| named.get(&class.to_string()).cloned());
        Ok((0..classes)
            .map(|class| label(class).unwrap_or_else(|| usual(class)))
            .collect())
    }
}
