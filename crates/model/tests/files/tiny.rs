//! Tiny models, written as GGUF files and Hugging Face folders, and files made by hand.

use std::path::Path;

use neap_kernels::format::WeightFormat;
use neap_model::config::{ARCHITECTURES, Architecture, ArchitectureRow, QkNorm};
use neap_model::gguf::{Array, Value, Writer};
use serde_json::json;

/// The shape of a tiny model.
#[derive(Clone, Debug)]
pub struct Tiny {
    pub architecture: Architecture,
    pub vocab: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub tied: bool,
    pub format: WeightFormat,
}

impl Default for Tiny {
    fn default() -> Self {
        Self {
            architecture: Architecture::Llama,
            vocab: 40,
            hidden: 32,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            ffn: 64,
            tied: false,
            format: WeightFormat::F32,
        }
    }
}

/// The architectures whose tensors are those of a [`Tiny`].
pub fn rows() -> impl Iterator<Item = &'static ArchitectureRow> {
    use Architecture::{Llama, Mistral, Qwen2, Qwen3};
    ARCHITECTURES
        .iter()
        .filter(|row| [Llama, Mistral, Qwen2, Qwen3].contains(&row.architecture))
}

/// A tensor to be written: name, shape and encoded values.
pub type Tensor = (String, Vec<usize>, WeightFormat, Vec<u8>);

impl Tiny {
    /// `general.architecture` in a GGUF file.
    pub fn gguf_name(&self) -> &'static str {
        self.architecture.row().gguf_name.unwrap_or("llama")
    }

    pub fn metadata(&self) -> Vec<(String, Value)> {
        let name = self.gguf_name();
        let sizes = [
            ("embedding_length", self.hidden),
            ("block_count", self.layers),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("feed_forward_length", self.ffn),
            ("context_length", 128),
        ];
        let tokens = (0..self.vocab).map(|i| format!("t{i}")).collect();
        let mut entries = vec![
            ("general.architecture".to_owned(), Value::from(name)),
            (
                format!("{name}.attention.layer_norm_rms_epsilon"),
                Value::F32(1e-5),
            ),
            ("tokenizer.ggml.model".to_owned(), Value::from("llama")),
            (
                "tokenizer.ggml.tokens".to_owned(),
                Value::Array(Array::String(tokens)),
            ),
            ("tokenizer.ggml.bos_token_id".to_owned(), Value::U32(1)),
            ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(2)),
        ];
        for (key, size) in sizes {
            entries.push((format!("{name}.{key}"), Value::U32(size as u32)));
        }
        entries
    }

    /// Names (GGUF and Hugging Face) and shapes of all tensors.
    fn shapes(&self) -> Vec<(String, String, Vec<usize>)> {
        let row = self.architecture.row();
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (hidden, ffn) = (self.hidden, self.ffn);
        let mut shapes = vec![
            (
                "token_embd.weight".to_owned(),
                "model.embed_tokens.weight".to_owned(),
                vec![self.vocab, hidden],
            ),
            (
                "output_norm.weight".to_owned(),
                "model.norm.weight".to_owned(),
                vec![hidden],
            ),
        ];
        if !self.tied {
            shapes.push((
                "output.weight".to_owned(),
                "lm_head.weight".to_owned(),
                vec![self.vocab, hidden],
            ));
        }
        let mut layer = vec![
            ("attn_norm.weight", "input_layernorm.weight", vec![hidden]),
            ("attn_q.weight", "self_attn.q_proj.weight", vec![q, hidden]),
            ("attn_k.weight", "self_attn.k_proj.weight", vec![kv, hidden]),
            ("attn_v.weight", "self_attn.v_proj.weight", vec![kv, hidden]),
            (
                "attn_output.weight",
                "self_attn.o_proj.weight",
                vec![hidden, q],
            ),
            (
                "ffn_norm.weight",
                "post_attention_layernorm.weight",
                vec![hidden],
            ),
            ("ffn_gate.weight", "mlp.gate_proj.weight", vec![ffn, hidden]),
            ("ffn_up.weight", "mlp.up_proj.weight", vec![ffn, hidden]),
            ("ffn_down.weight", "mlp.down_proj.weight", vec![hidden, ffn]),
        ];
        if row.needs_qkv_bias {
            layer.push(("attn_q.bias", "self_attn.q_proj.bias", vec![q]));
            layer.push(("attn_k.bias", "self_attn.k_proj.bias", vec![kv]));
            layer.push(("attn_v.bias", "self_attn.v_proj.bias", vec![kv]));
        }
        if row.qk_norm != QkNorm::None {
            let dim = vec![self.head_dim];
            layer.push(("attn_q_norm.weight", "self_attn.q_norm.weight", dim.clone()));
            layer.push(("attn_k_norm.weight", "self_attn.k_norm.weight", dim));
        }
        for i in 0..self.layers {
            for (gguf, hf, shape) in &layer {
                shapes.push((
                    format!("blk.{i}.{gguf}"),
                    format!("model.layers.{i}.{hf}"),
                    shape.clone(),
                ));
            }
        }
        shapes
    }

    fn encode(&self, seed: usize, shape: &[usize]) -> (WeightFormat, Vec<u8>) {
        let len = shape.iter().product();
        let format = if shape.len() == 1 {
            WeightFormat::F32
        } else {
            self.format
        };
        let values: Vec<f32> = (0..len).map(|i| ((i * 7 + seed) as f32).sin()).collect();
        let mut bytes = vec![0; len / format.block_len() * format.block_bytes()];
        format.quantize(&values, &mut bytes).unwrap();
        (format, bytes)
    }

    pub fn gguf_tensors(&self) -> Vec<Tensor> {
        let tensors = self.shapes().into_iter().enumerate();
        let encoded = tensors.map(|(seed, (name, _, shape))| {
            let (format, bytes) = self.encode(seed, &shape);
            (name, shape, format, bytes)
        });
        encoded.collect()
    }

    pub fn gguf(&self) -> Vec<u8> {
        write_gguf(&self.metadata(), &self.gguf_tensors())
    }

    pub fn hf_tensors(&self) -> Vec<Tensor> {
        let tensors = self.shapes().into_iter().enumerate();
        let encoded = tensors.map(|(seed, (_, name, shape))| {
            let (_, bytes) = self.encode(seed, &shape);
            (name, shape, WeightFormat::F32, bytes)
        });
        encoded.collect()
    }

    pub fn config_json(&self) -> serde_json::Value {
        json!({
            "model_type": self.architecture.row().hf_name,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
        })
    }

    /// Writes `config.json` and `model.safetensors`.
    pub fn write_folder(&self, folder: &Path) {
        let config = self.config_json().to_string();
        std::fs::write(folder.join("config.json"), config).unwrap();
        let weights = write_safetensors(&self.hf_tensors());
        std::fs::write(folder.join("model.safetensors"), weights).unwrap();
    }
}

pub fn write_gguf(metadata: &[(String, Value)], tensors: &[Tensor]) -> Vec<u8> {
    let mut writer = Writer::new();
    for (key, value) in metadata {
        writer.metadata(key, value.clone()).unwrap();
    }
    for (name, shape, format, _) in tensors {
        writer.tensor(name, shape, *format).unwrap();
    }
    let mut out = writer.begin(Vec::new()).unwrap();
    for (.., bytes) in tensors {
        out.write_tensor(bytes).unwrap();
    }
    out.finish().unwrap()
}

/// By the reference implementation.
pub fn write_safetensors(tensors: &[Tensor]) -> Vec<u8> {
    use safetensors::tensor::{Dtype, TensorView, serialize};
    let views = tensors.iter().map(|(name, shape, format, bytes)| {
        let dtype = match format {
            WeightFormat::F32 => Dtype::F32,
            WeightFormat::F16 => Dtype::F16,
            WeightFormat::BF16 => Dtype::BF16,
            other => panic!("safetensors has no {other:?}"),
        };
        let view = TensorView::new(dtype, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    serialize(views, None).unwrap()
}

/// A safetensors file with any header.
pub fn raw_safetensors(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    bytes
}

/// A GGUF file put together by hand, so that it can lie.
#[derive(Clone, Default)]
pub struct Raw(pub Vec<u8>);

impl Raw {
    pub fn header(tensors: u64, entries: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(tensors).u64(entries)
    }

    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn string(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    pub fn bytes(self, bytes: &[u8]) -> Self {
        let mut raw = self.u64(bytes.len() as u64);
        raw.0.extend(bytes);
        raw
    }

    /// A tensor info; dimensions as in the file, innermost first.
    pub fn info(self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Self {
        let mut raw = self.string(name).u32(dims.len() as u32);
        for &dim in dims {
            raw = raw.u64(dim);
        }
        raw.u32(type_id).u64(offset)
    }

    /// Padding to the data, and so many bytes of data.
    pub fn data(mut self, bytes: usize) -> Vec<u8> {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + bytes, 0);
        self.0
    }
}
