//! What files call the tensors, and where in a file's tensor a wanted one lies: some files hold several in one, or
//! lay one out in another way.

use crate::config::{Architecture, HfNaming, ModelConfig, NormPlace};

use super::names::{ExpertTensor, LayerTensor, TensorName};

/// Which way of naming tensors a file follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    Gguf,
    /// With what stands before every name but that of the output matrix.
    HuggingFace(&'static str),
}

/// What stands before names in Hugging Face folders: those of decoders as they are trained, of their inner models
/// alone (as embedders are published), and of models with more parts.
pub(crate) const HF_PREFIXES: [&str; 8] = [
    "model.",
    "",
    "transformer.",
    "gpt_neox.",
    "bert.",
    "language_model.model.",
    "model.language_model.",
    "roberta.",
];

/// Where a wanted tensor lies in one of a file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// It is the whole.
    Whole,
    /// Rows (or values, of a vector) from `first` on, out of `of`.
    Rows { first: usize, of: usize },
    /// One of `of` that are stacked in a first dimension.
    Stacked { index: usize, of: usize },
    /// Transposed: columns from `first` on, out of `of`, are its rows.
    Columns { first: usize, of: usize },
    /// The rows of heads lie queries, keys, values, head by head: 0, 1 or 2 of three.
    ThirdOfHeads(usize),
    /// A single row, for a vector.
    Row,
}

use LayerTensor::*;

/// The name that most architectures have in GGUF files.
pub(super) fn gguf_name(name: TensorName) -> String {
    match name {
        TensorName::TokenEmbedding => "token_embd.weight".to_owned(),
        TensorName::PositionEmbedding => "position_embd.weight".to_owned(),
        TensorName::TypeEmbedding => "token_types.weight".to_owned(),
        TensorName::EmbeddingNorm => "token_embd_norm.weight".to_owned(),
        TensorName::EmbeddingNormBias => "token_embd_norm.bias".to_owned(),
        TensorName::OutputNorm => "output_norm.weight".to_owned(),
        TensorName::OutputNormBias => "output_norm.bias".to_owned(),
        TensorName::Output => "output.weight".to_owned(),
        TensorName::Layer(layer, tensor) => format!("blk.{layer}.{}", gguf_layer_name(tensor)),
        TensorName::Expert(layer, expert, tensor) => {
            let part = match tensor {
                ExpertTensor::Gate => "gate",
                ExpertTensor::Up => "up",
                ExpertTensor::Down => "down",
            };
            format!("blk.{layer}.ffn_{part}.{expert}.weight")
        }
    }
}

fn gguf_layer_name(tensor: LayerTensor) -> &'static str {
    match tensor {
        AttnNorm => "attn_norm.weight",
        AttnNormBias => "attn_norm.bias",
        AttnQ => "attn_q.weight",
        AttnK => "attn_k.weight",
        AttnV => "attn_v.weight",
        AttnQBias => "attn_q.bias",
        AttnKBias => "attn_k.bias",
        AttnVBias => "attn_v.bias",
        AttnQNorm => "attn_q_norm.weight",
        AttnKNorm => "attn_k_norm.weight",
        AttnOutput => "attn_output.weight",
        AttnOutputBias => "attn_output.bias",
        AttnPostNorm => "post_attention_norm.weight",
        AttnPostNormBias => "post_attention_norm.bias",
        FfnNorm => "ffn_norm.weight",
        FfnNormBias => "ffn_norm.bias",
        FfnGate => "ffn_gate.weight",
        FfnUp => "ffn_up.weight",
        FfnDown => "ffn_down.weight",
        FfnGateBias => "ffn_gate.bias",
        FfnUpBias => "ffn_up.bias",
        FfnDownBias => "ffn_down.bias",
        FfnPostNorm => "post_ffw_norm.weight",
        FfnPostNormBias => "post_ffw_norm.bias",
        Router => "ffn_gate_inp.weight",
        SharedGate => "ffn_gate_shexp.weight",
        SharedUp => "ffn_up_shexp.weight",
        SharedDown => "ffn_down_shexp.weight",
        SharedWeight => "ffn_gate_inp_shexp.weight",
    }
}

/// Names that a tensor may have, the likeliest first, and where in that tensor it lies.
pub(crate) fn candidates(
    name: TensorName,
    config: &ModelConfig,
    naming: &Naming,
) -> Vec<(String, Part)> {
    match naming {
        Naming::Gguf => gguf_candidates(name, config),
        Naming::HuggingFace(prefix) => hf_candidates(name, config, prefix),
    }
}

/// Rows of queries, keys and values in a tensor that holds all three, one after the other.
fn in_qkv(tensor: LayerTensor, config: &ModelConfig) -> Option<(usize, usize)> {
    let (q, kv) = (config.q_size(), config.kv_size());
    let first = match tensor {
        AttnQ | AttnQBias => 0,
        AttnK | AttnKBias => q,
        AttnV | AttnVBias => q + kv,
        _ => return None,
    };
    Some((first, q + 2 * kv))
}

fn gguf_candidates(name: TensorName, config: &ModelConfig) -> Vec<(String, Part)> {
    let usual = (gguf_name(name), Part::Whole);
    match name {
        TensorName::Expert(layer, index, tensor) => {
            let part = match tensor {
                ExpertTensor::Gate => "gate",
                ExpertTensor::Up => "up",
                ExpertTensor::Down => "down",
            };
            let of = config.experts.map_or(0, |experts| experts.count);
            let stacked = format!("blk.{layer}.ffn_{part}_exps.weight");
            vec![(stacked, Part::Stacked { index, of }), usual]
        }
        TensorName::Layer(layer, tensor) => {
            let row = config.architecture.row();
            let block = |suffix: &str| format!("blk.{layer}.{suffix}");
            if config.norm.place == NormPlace::AfterSum {
                let suffix = match tensor {
                    AttnPostNorm => "attn_output_norm.weight",
                    AttnPostNormBias => "attn_output_norm.bias",
                    FfnPostNorm => "layer_output_norm.weight",
                    FfnPostNormBias => "layer_output_norm.bias",
                    _ => return vec![usual],
                };
                return vec![(block(suffix), Part::Whole)];
            }
            if tensor == SharedWeight {
                return vec![usual.clone(), (usual.0, Part::Row)];
            }
            let fused = in_qkv(tensor, config).map(|(first, of)| {
                let bias = matches!(tensor, AttnQBias | AttnKBias | AttnVBias);
                let suffix = if bias {
                    "attn_qkv.bias"
                } else {
                    "attn_qkv.weight"
                };
                (block(suffix), Part::Rows { first, of })
            });
            match fused {
                Some(fused) if row.gguf_fused_qkv => return vec![fused, usual],
                Some(fused) => return vec![usual, fused],
                None => {}
            }
            let ffn = config.ffn_size;
            let first = match tensor {
                FfnGate if row.gguf_fused_gate => 0,
                FfnUp if row.gguf_fused_gate => ffn,
                _ => return vec![usual],
            };
            let fused = (block("ffn_up.weight"), Part::Rows { first, of: 2 * ffn });
            vec![fused, usual]
        }
        _ => vec![usual],
    }
}

fn hf_candidates(name: TensorName, config: &ModelConfig, prefix: &str) -> Vec<(String, Part)> {
    match config.architecture.row().hf_naming {
        HfNaming::Llama => llama(name, config, prefix),
        HfNaming::Gpt2 => gpt2(name, config, prefix),
        HfNaming::GptNeox => gpt_neox(name, prefix),
        HfNaming::Bert => bert(name, config, prefix),
        HfNaming::NomicBert => nomic_bert(name, config, prefix),
        HfNaming::ModernBert => modern_bert(name, config, prefix),
    }
}

fn whole(name: String) -> Vec<(String, Part)> {
    vec![(name, Part::Whole)]
}

fn llama(name: TensorName, config: &ModelConfig, prefix: &str) -> Vec<(String, Part)> {
    let (layer, tensor) = match name {
        TensorName::Output => {
            return vec![
                ("lm_head.weight".to_owned(), Part::Whole),
                ("language_model.lm_head.weight".to_owned(), Part::Whole),
            ];
        }
        TensorName::OutputNorm => return whole(format!("{prefix}norm.weight")),
        TensorName::OutputNormBias => return whole(format!("{prefix}norm.bias")),
        TensorName::Layer(layer, tensor) => (layer, tensor),
        TensorName::Expert(layer, expert, tensor) => {
            let mixtral = config.architecture == Architecture::Mixtral;
            let part = match (tensor, mixtral) {
                (ExpertTensor::Gate, true) => "w1",
                (ExpertTensor::Down, true) => "w2",
                (ExpertTensor::Up, true) => "w3",
                (ExpertTensor::Gate, false) => "gate_proj",
                (ExpertTensor::Up, false) => "up_proj",
                (ExpertTensor::Down, false) => "down_proj",
            };
            let block = if mixtral { "block_sparse_moe" } else { "mlp" };
            return whole(format!(
                "{prefix}layers.{layer}.{block}.experts.{expert}.{part}.weight"
            ));
        }
        _ => return whole(format!("{prefix}embed_tokens.weight")),
    };
    let in_layer = |suffix: &str| format!("{prefix}layers.{layer}.{suffix}");
    let usual = (in_layer(llama_layer_name(tensor, config)), Part::Whole);
    let ffn = config.ffn_size;
    match tensor {
        AttnQ | AttnK | AttnV => {
            let (first, of) = in_qkv(tensor, config).unwrap_or((0, 0));
            let fused = in_layer("self_attn.qkv_proj.weight");
            vec![usual, (fused, Part::Rows { first, of })]
        }
        FfnGate | FfnUp => {
            let first = if tensor == FfnGate { 0 } else { ffn };
            let fused = in_layer("mlp.gate_up_proj.weight");
            vec![usual, (fused, Part::Rows { first, of: 2 * ffn })]
        }
        SharedWeight => vec![(usual.0, Part::Row)],
        _ => vec![usual],
    }
}

fn llama_layer_name(tensor: LayerTensor, config: &ModelConfig) -> &'static str {
    let before = config.norm.place == NormPlace::Before;
    match tensor {
        AttnNorm => "input_layernorm.weight",
        AttnNormBias => "input_layernorm.bias",
        AttnQ => "self_attn.q_proj.weight",
        AttnK => "self_attn.k_proj.weight",
        AttnV => "self_attn.v_proj.weight",
        AttnQBias => "self_attn.q_proj.bias",
        AttnKBias => "self_attn.k_proj.bias",
        AttnVBias => "self_attn.v_proj.bias",
        AttnQNorm => "self_attn.q_norm.weight",
        AttnKNorm => "self_attn.k_norm.weight",
        AttnOutput => "self_attn.o_proj.weight",
        AttnOutputBias => "self_attn.o_proj.bias",
        AttnPostNorm => "post_attention_layernorm.weight",
        AttnPostNormBias => "post_attention_layernorm.bias",
        // "Post attention" means before the feed-forward network where nothing else stands there.
        FfnNorm if before => "post_attention_layernorm.weight",
        FfnNormBias if before => "post_attention_layernorm.bias",
        FfnNorm => "pre_feedforward_layernorm.weight",
        FfnNormBias => "pre_feedforward_layernorm.bias",
        FfnGate => "mlp.gate_proj.weight",
        FfnUp => "mlp.up_proj.weight",
        FfnDown => "mlp.down_proj.weight",
        FfnGateBias => "mlp.gate_proj.bias",
        FfnUpBias => "mlp.up_proj.bias",
        FfnDownBias => "mlp.down_proj.bias",
        FfnPostNorm => "post_feedforward_layernorm.weight",
        FfnPostNormBias => "post_feedforward_layernorm.bias",
        Router if config.architecture == Architecture::Mixtral => "block_sparse_moe.gate.weight",
        Router => "mlp.gate.weight",
        SharedGate => "mlp.shared_expert.gate_proj.weight",
        SharedUp => "mlp.shared_expert.up_proj.weight",
        SharedDown => "mlp.shared_expert.down_proj.weight",
        SharedWeight => "mlp.shared_expert_gate.weight",
    }
}

fn gpt2(name: TensorName, config: &ModelConfig, prefix: &str) -> Vec<(String, Part)> {
    let TensorName::Layer(layer, tensor) = name else {
        let suffix = match name {
            TensorName::PositionEmbedding => "wpe.weight",
            TensorName::OutputNorm => "ln_f.weight",
            TensorName::OutputNormBias => "ln_f.bias",
            TensorName::Output => return whole("lm_head.weight".to_owned()),
            _ => "wte.weight",
        };
        return whole(format!("{prefix}{suffix}"));
    };
    let in_layer = |suffix: &str| format!("{prefix}h.{layer}.{suffix}");
    let columns =
        |suffix: &str, of: usize| vec![(in_layer(suffix), Part::Columns { first: 0, of })];
    if let Some((first, of)) = in_qkv(tensor, config) {
        return match tensor {
            AttnQ | AttnK | AttnV => {
                vec![(in_layer("attn.c_attn.weight"), Part::Columns { first, of })]
            }
            _ => vec![(in_layer("attn.c_attn.bias"), Part::Rows { first, of })],
        };
    }
    match tensor {
        AttnOutput => columns("attn.c_proj.weight", config.hidden_size),
        FfnUp => columns("mlp.c_fc.weight", config.ffn_size),
        FfnDown => columns("mlp.c_proj.weight", config.hidden_size),
        AttnNorm => whole(in_layer("ln_1.weight")),
        AttnNormBias => whole(in_layer("ln_1.bias")),
        FfnNorm => whole(in_layer("ln_2.weight")),
        FfnNormBias => whole(in_layer("ln_2.bias")),
        AttnOutputBias => whole(in_layer("attn.c_proj.bias")),
        FfnUpBias => whole(in_layer("mlp.c_fc.bias")),
        FfnDownBias => whole(in_layer("mlp.c_proj.bias")),
        other => whole(in_layer(llama_layer_name(other, config))),
    }
}

fn gpt_neox(name: TensorName, prefix: &str) -> Vec<(String, Part)> {
    let TensorName::Layer(layer, tensor) = name else {
        let suffix = match name {
            TensorName::OutputNorm => "final_layer_norm.weight",
            TensorName::OutputNormBias => "final_layer_norm.bias",
            TensorName::Output => return whole("embed_out.weight".to_owned()),
            _ => "embed_in.weight",
        };
        return whole(format!("{prefix}{suffix}"));
    };
    let suffix = match tensor {
        AttnQ | AttnK | AttnV => "attention.query_key_value.weight",
        AttnQBias | AttnKBias | AttnVBias => "attention.query_key_value.bias",
        AttnNorm => "input_layernorm.weight",
        AttnNormBias => "input_layernorm.bias",
        AttnOutput => "attention.dense.weight",
        AttnOutputBias => "attention.dense.bias",
        FfnNorm => "post_attention_layernorm.weight",
        FfnNormBias => "post_attention_layernorm.bias",
        FfnUp => "mlp.dense_h_to_4h.weight",
        FfnUpBias => "mlp.dense_h_to_4h.bias",
        FfnDown => "mlp.dense_4h_to_h.weight",
        FfnDownBias => "mlp.dense_4h_to_h.bias",
        other => gguf_layer_name(other),
    };
    let part = match tensor {
        AttnQ | AttnQBias => Part::ThirdOfHeads(0),
        AttnK | AttnKBias => Part::ThirdOfHeads(1),
        AttnV | AttnVBias => Part::ThirdOfHeads(2),
        _ => Part::Whole,
    };
    vec![(format!("{prefix}layers.{layer}.{suffix}"), part)]
}

fn bert(name: TensorName, config: &ModelConfig, prefix: &str) -> Vec<(String, Part)> {
    let TensorName::Layer(layer, tensor) = name else {
        let suffix = match name {
            TensorName::PositionEmbedding => {
                let first = config.architecture.row().hf_unused_positions;
                let of = config.learned_positions.unwrap_or(0) + first;
                let name = format!("{prefix}embeddings.position_embeddings.weight");
                return vec![(name, Part::Rows { first, of })];
            }
            TensorName::TypeEmbedding => "token_type_embeddings.weight",
            TensorName::EmbeddingNorm => "LayerNorm.weight",
            TensorName::EmbeddingNormBias => "LayerNorm.bias",
            _ => "word_embeddings.weight",
        };
        return whole(format!("{prefix}embeddings.{suffix}"));
    };
    let suffix = match tensor {
        AttnQ => "attention.self.query.weight",
        AttnQBias => "attention.self.query.bias",
        AttnK => "attention.self.key.weight",
        AttnKBias => "attention.self.key.bias",
        AttnV => "attention.self.value.weight",
        AttnVBias => "attention.self.value.bias",
        AttnOutput => "attention.output.dense.weight",
        AttnOutputBias => "attention.output.dense.bias",
        AttnPostNorm => "attention.output.LayerNorm.weight",
        AttnPostNormBias => "attention.output.LayerNorm.bias",
        FfnUp => "intermediate.dense.weight",
        FfnUpBias => "intermediate.dense.bias",
        FfnDown => "output.dense.weight",
        FfnDownBias => "output.dense.bias",
        FfnPostNorm => "output.LayerNorm.weight",
        FfnPostNormBias => "output.LayerNorm.bias",
        other => gguf_layer_name(other),
    };
    whole(format!("{prefix}encoder.layer.{layer}.{suffix}"))
}

fn nomic_bert(name: TensorName, config: &ModelConfig, prefix: &str) -> Vec<(String, Part)> {
    let TensorName::Layer(layer, tensor) = name else {
        let suffix = match name {
            TensorName::TypeEmbedding => "embeddings.token_type_embeddings.weight",
            TensorName::EmbeddingNorm => "emb_ln.weight",
            TensorName::EmbeddingNormBias => "emb_ln.bias",
            _ => "embeddings.word_embeddings.weight",
        };
        return whole(format!("{prefix}{suffix}"));
    };
    let in_layer = |suffix: &str| format!("{prefix}encoder.layers.{layer}.{suffix}");
    if let Some((first, of)) = in_qkv(tensor, config) {
        return vec![(in_layer("attn.Wqkv.weight"), Part::Rows { first, of })];
    }
    let suffix = match tensor {
        AttnOutput => "attn.out_proj.weight",
        AttnPostNorm => "norm1.weight",
        AttnPostNormBias => "norm1.bias",
        FfnUp => "mlp.fc11.weight",
        FfnGate => "mlp.fc12.weight",
        FfnDown => "mlp.fc2.weight",
        FfnPostNorm => "norm2.weight",
        FfnPostNormBias => "norm2.bias",
        other => gguf_layer_name(other),
    };
    whole(in_layer(suffix))
}

fn modern_bert(name: TensorName, config: &ModelConfig, prefix: &str) -> Vec<(String, Part)> {
    let TensorName::Layer(layer, tensor) = name else {
        let suffix = match name {
            TensorName::EmbeddingNorm => "embeddings.norm.weight",
            TensorName::EmbeddingNormBias => "embeddings.norm.bias",
            TensorName::OutputNorm => "final_norm.weight",
            TensorName::OutputNormBias => "final_norm.bias",
            _ => "embeddings.tok_embeddings.weight",
        };
        return whole(format!("{prefix}{suffix}"));
    };
    let in_layer = |suffix: &str| format!("{prefix}layers.{layer}.{suffix}");
    if let Some((first, of)) = in_qkv(tensor, config) {
        let suffix = match tensor {
            AttnQ | AttnK | AttnV => "attn.Wqkv.weight",
            _ => "attn.Wqkv.bias",
        };
        return vec![(in_layer(suffix), Part::Rows { first, of })];
    }
    let ffn = config.ffn_size;
    let suffix = match tensor {
        FfnGate | FfnUp => {
            let first = if tensor == FfnGate { 0 } else { ffn };
            let fused = Part::Rows { first, of: 2 * ffn };
            return vec![(in_layer("mlp.Wi.weight"), fused)];
        }
        AttnNorm => "attn_norm.weight",
        AttnNormBias => "attn_norm.bias",
        AttnOutput => "attn.Wo.weight",
        AttnOutputBias => "attn.Wo.bias",
        FfnNorm => "mlp_norm.weight",
        FfnNormBias => "mlp_norm.bias",
        FfnDown => "mlp.Wo.weight",
        other => gguf_layer_name(other),
    };
    whole(in_layer(suffix))
}

/// Whether a tensor may be left unread: it is derived from the configuration, already part of it, tied, or part of
/// something that reading text does not need.
pub(super) fn is_harmless(name: &str, config: &ModelConfig) -> bool {
    let in_config = [
        "rope_freqs.weight",
        "rope_factors_short.weight",
        "rope_factors_long.weight",
    ];
    let tied = config.tied_embeddings
        && ["lm_head.weight", "language_model.lm_head.weight"].contains(&name);
    let derived = [
        ".rotary_emb.inv_freq",
        ".attention.bias",
        ".attention.masked_bias",
        ".attn.bias",
        ".attn.masked_bias",
        "embeddings.position_ids",
    ];
    // An encoder's heads for its training, and the pooler that vectors do without.
    let head = !config.has_output
        && [
            "cls.",
            "pooler.",
            "bert.pooler.",
            "roberta.pooler.",
            "lm_head.",
            "head.",
            "decoder.",
            "classifier.",
        ]
        .iter()
        .any(|p| name.starts_with(p));
    // Of a decoder that judges texts.
    let judges = config.causal && (name.starts_with("score.") || name.starts_with("cls."));
    let packed = config.int4.is_some()
        && [".qzeros", ".scales", ".g_idx"]
            .iter()
            .any(|end| name.ends_with(end));
    let for_images = [
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ];
    let scales = [".weight_scale", ".weight_scale_inv", ".input_scale"];
    in_config.contains(&name)
        || tied
        || head
        || judges
        || packed
        || for_images.iter().any(|begin| name.starts_with(begin))
        || derived.iter().any(|end| name.ends_with(end))
        || scales.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_enum_and_the_list_agree() {
        for (i, tensor) in LayerTensor::ALL.into_iter().enumerate() {
            assert_eq!(tensor as usize, i);
        }
        let name = TensorName::Layer(7, AttnQ);
        assert_eq!(name.to_string(), "blk.7.attn_q.weight");
    }
}
