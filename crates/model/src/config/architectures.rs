//! The table of architectures: what of a model its family fixes. Everything else is read from the file.

use serde::Serialize;

/// A family of models that differ only in numbers and options: a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Llama 1 to 3.x and what is built alike (SmolLM2, TinyLlama, Mistral and Mixtral in GGUF files).
    Llama,
    /// Mistral, as Hugging Face folders call it: Llama with an optional sliding window.
    Mistral,
    /// Mixtral, as Hugging Face folders call it: Mistral with experts.
    Mixtral,
    /// Qwen 2 and 2.5: Llama with biases on queries, keys and values.
    Qwen2,
    /// Qwen 1.5 and 2 with experts, one of them shared by all tokens.
    Qwen2Moe,
    /// Qwen 3: Llama with a norm on every query and key head.
    Qwen3,
    /// Qwen 3 with experts.
    Qwen3Moe,
    /// Gemma 2: norms before and after, GeGLU, capped scores and logits, every second layer with a window.
    Gemma2,
    /// Gemma 3: as Gemma 2 without caps, with norms on heads; five layers with a window, then one without.
    Gemma3,
    /// Phi-3, 3.5 and 4: Llama with fused matrices and LongRoPE.
    Phi3,
    /// Granite 3: Llama with multipliers.
    Granite,
    /// OLMo 2: norms after attention and feed-forward networks, and on whole queries and keys.
    Olmo2,
    /// OLMoE: experts, and norms on whole queries and keys.
    Olmoe,
    /// StableLM: LayerNorm and partial rotary embedding.
    StableLm,
    /// SmolLM3: Llama with layers that have no rotary embedding.
    SmolLm3,
    /// GPT-2: learned positions, LayerNorm, a feed-forward network without a gate.
    Gpt2,
    /// GPT-NeoX and Pythia: attention and feed-forward network side by side.
    GptNeox,
    /// BERT and MiniLM: encoders, whose tokens attend to those before and after them.
    Bert,
    /// RoBERTa: BERT whose positions begin after two rows that nothing uses.
    Roberta,
    /// XLM-RoBERTa and bge-m3: RoBERTa with a Unigram vocabulary.
    #[serde(rename = "xlm-roberta")]
    XlmRoberta,
    /// nomic-embed-text: BERT with rotary embedding, a gate, and no biases but those of norms.
    #[serde(rename = "nomic-bert")]
    NomicBert,
    /// ModernBERT: norms before, rotary embedding, a gate; two of three layers with a window to both sides.
    #[serde(rename = "modern-bert")]
    ModernBert,
}

/// How rows are normalized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NormKind {
    /// Divided by the root mean square (Zhang and Sennrich 2019).
    Rms,
    /// Mean taken off, divided by the deviation (Ba et al. 2016).
    Layer,
}

/// Where norms stand around a part `f` of a layer (attention, feed-forward network).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormPlace {
    /// `x + f(norm(x))`.
    Before,
    /// `x + norm(f(x))`.
    After,
    /// `x + norm(f(norm(x)))`, with two norms.
    Both,
    /// `norm(x + f(x))`.
    AfterSum,
}

impl NormPlace {
    /// Whether there is a norm before `f`.
    pub fn is_before(self) -> bool {
        matches!(self, Self::Before | Self::Both)
    }
}

/// Norms on queries and keys before rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum QkNorm {
    /// None.
    None,
    /// Every head by itself.
    Heads,
    /// All heads together.
    Whole,
}

/// The function inside a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU by its tanh form.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
}

/// Which layers have the sliding window, where a file does not list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowPattern {
    /// All, if there is a window.
    All,
    /// All but every n-th.
    AllButEvery(usize),
    /// All but the first of every n.
    AllButFirstOf(usize),
}

/// Which way of naming tensors the Hugging Face folders of an architecture follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HfNaming {
    /// `model.layers.N.self_attn.q_proj.weight` and so on.
    Llama,
    /// `transformer.h.N.attn.c_attn.weight`: matrices are stored transposed.
    Gpt2,
    /// `gpt_neox.layers.N.attention.query_key_value.weight`: queries, keys and values head by head.
    GptNeox,
    /// `encoder.layer.N.attention.self.query.weight`.
    Bert,
    /// `encoder.layers.N.attn.Wqkv.weight`.
    NomicBert,
    /// `layers.N.attn.Wqkv.weight`.
    ModernBert,
}

/// What is fixed for an architecture.
#[derive(Clone, Copy, Debug)]
pub struct ArchitectureRow {
    /// The row's key.
    pub architecture: Architecture,
    /// `general.architecture` in GGUF files, if they know it.
    pub gguf_name: Option<&'static str>,
    /// `model_type` in `config.json`.
    pub hf_name: &'static str,
    /// How its Hugging Face folders name tensors.
    pub hf_naming: HfNaming,
    /// Which elements RoPE pairs in GGUF files. (In Hugging Face folders always [`RopeLayout::Halves`].)
    pub gguf_rope_layout: RopeLayout,
    /// Whether GGUF files hold queries, keys and values in one tensor.
    pub gguf_fused_qkv: bool,
    /// Whether GGUF files hold the gate before the up projection in one tensor.
    pub gguf_fused_gate: bool,
    /// Whether the tensors for biases on queries, keys and values must be there.
    pub needs_qkv_bias: bool,
    /// The norms of queries and keys that must be there.
    pub qk_norm: QkNorm,
    /// How rows are normalized.
    pub norm: NormKind,
    /// Whether norms have a bias.
    pub norm_bias: bool,
    /// Whether Hugging Face folders hold the weights of norms less 1.
    pub hf_norm_less_one: bool,
    /// Where norms stand.
    pub norm_place: NormPlace,
    /// Whether embeddings are normalized; where norms stand before, the first layer does without its own then.
    pub embedding_norm: bool,
    /// The activation where the file does not name it.
    pub activation: Activation,
    /// Whether the feed-forward network has a gate.
    pub gated: bool,
    /// Whether the projections of the feed-forward network have biases.
    pub ffn_bias: bool,
    /// Whether embeddings are multiplied by the root of their width.
    pub scales_embedding: bool,
    /// Whether attention and feed-forward network stand side by side where the file does not say.
    pub parallel_residual: bool,
    /// Which layers have the window.
    pub window_pattern: WindowPattern,
    /// Every n-th layer has no rotary embedding.
    pub no_rope_step: Option<usize>,
    /// Whether positions are learned, instead of rotary embedding.
    pub learned_positions: bool,
    /// Rows before those of learned positions in Hugging Face folders; GGUF files leave them out.
    pub hf_unused_positions: usize,
    /// Whether the probabilities of the chosen experts are brought to a sum of 1 where the file does not say.
    pub normalizes_experts: bool,
    /// Whether a token attends only to itself and those before it.
    pub causal: bool,
}

const LLAMA: ArchitectureRow = ArchitectureRow {
    architecture: Architecture::Llama,
    gguf_name: Some("llama"),
    hf_name: "llama",
    hf_naming: HfNaming::Llama,
    gguf_rope_layout: RopeLayout::Interleaved,
    gguf_fused_qkv: false,
    gguf_fused_gate: false,
    needs_qkv_bias: false,
    qk_norm: QkNorm::None,
    norm: NormKind::Rms,
    norm_bias: false,
    hf_norm_less_one: false,
    norm_place: NormPlace::Before,
    embedding_norm: false,
    activation: Activation::Silu,
    gated: true,
    ffn_bias: false,
    scales_embedding: false,
    parallel_residual: false,
    window_pattern: WindowPattern::All,
    no_rope_step: None,
    learned_positions: false,
    hf_unused_positions: 0,
    normalizes_experts: true,
    causal: true,
};

const GEMMA2: ArchitectureRow = ArchitectureRow {
    architecture: Architecture::Gemma2,
    gguf_name: Some("gemma2"),
    hf_name: "gemma2",
    gguf_rope_layout: RopeLayout::Halves,
    hf_norm_less_one: true,
    norm_place: NormPlace::Both,
    activation: Activation::GeluTanh,
    scales_embedding: true,
    window_pattern: WindowPattern::AllButEvery(2),
    ..LLAMA
};

const GPT2: ArchitectureRow = ArchitectureRow {
    architecture: Architecture::Gpt2,
    gguf_name: Some("gpt2"),
    hf_name: "gpt2",
    hf_naming: HfNaming::Gpt2,
    gguf_rope_layout: RopeLayout::Halves,
    gguf_fused_qkv: true,
    needs_qkv_bias: true,
    norm: NormKind::Layer,
    norm_bias: true,
    activation: Activation::GeluTanh,
    gated: false,
    ffn_bias: true,
    learned_positions: true,
    ..LLAMA
};

const BERT: ArchitectureRow = ArchitectureRow {
    architecture: Architecture::Bert,
    gguf_name: Some("bert"),
    hf_name: "bert",
    hf_naming: HfNaming::Bert,
    gguf_fused_qkv: false,
    norm_place: NormPlace::AfterSum,
    embedding_norm: true,
    activation: Activation::GeluErf,
    causal: false,
    ..GPT2
};

const ROBERTA: ArchitectureRow = ArchitectureRow {
    architecture: Architecture::Roberta,
    gguf_name: None, // converted to "bert"
    hf_name: "roberta",
    hf_unused_positions: 2,
    ..BERT
};

/// All architectures.
pub const ARCHITECTURES: &[ArchitectureRow] = &[
    LLAMA,
    ArchitectureRow {
        architecture: Architecture::Mistral,
        gguf_name: None, // converted to "llama"
        hf_name: "mistral",
        ..LLAMA
    },
    ArchitectureRow {
        architecture: Architecture::Mixtral,
        gguf_name: None, // converted to "llama"
        hf_name: "mixtral",
        ..LLAMA
    },
    ArchitectureRow {
        architecture: Architecture::Qwen2,
        gguf_name: Some("qwen2"),
        hf_name: "qwen2",
        gguf_rope_layout: RopeLayout::Halves,
        needs_qkv_bias: true,
        ..LLAMA
    },
    ArchitectureRow {
        architecture: Architecture::Qwen2Moe,
        gguf_name: Some("qwen2moe"),
        hf_name: "qwen2_moe",
        gguf_rope_layout: RopeLayout::Halves,
        needs_qkv_bias: true,
        normalizes_experts: false,
        ..LLAMA
    },
    ArchitectureRow {
        architecture: Architecture::Qwen3,
        gguf_name: Some("qwen3"),
        hf_name: "qwen3",
        gguf_rope_layout: RopeLayout::Halves,
        qk_norm: QkNorm::Heads,
        ..LLAMA
    },
    ArchitectureRow {
        architecture: Architecture::Qwen3Moe,
        gguf_name: Some("qwen3moe"),
        hf_name: "qwen3_moe",
        gguf_rope_layout: RopeLayout::Halves,
        qk_norm: QkNorm::Heads,
        ..LLAMA
    },
    GEMMA2,
    ArchitectureRow {
        architecture: Architecture::Gemma3,
        gguf_name: Some("gemma3"),
        hf_name: "gemma3_text",
        qk_norm: QkNorm::Heads,
        window_pattern: WindowPattern::AllButEvery(6),
        ..GEMMA2
    },
    ArchitectureRow {
        architecture: Architecture::Phi3,
        gguf_name: Some("phi3"),
        hf_name: "phi3",
        gguf_rope_layout: RopeLayout::Halves,
        gguf_fused_qkv: true,
        gguf_fused_gate: true,
        ..LLAMA
    },
    ArchitectureRow {
        architecture: Architecture::Granite,
        gguf_name: Some("granite"),
        hf_name: "granite",
        ..LLAMA
    },
    ArchitectureRow {
        architecture: Architecture::Olmo2,
        gguf_name: Some("olmo2"),
        hf_name: "olmo2",
        gguf_rope_layout: RopeLayout::Halves,
        qk_norm: QkNorm::Whole,
        norm_place: NormPlace::After,
        ..LLAMA
    },
    ArchitectureRow {
        architecture: Architecture::Olmoe,
        gguf_name: Some("olmoe"),
        hf_name: "olmoe",
        gguf_rope_layout: RopeLayout::Halves,
        qk_norm: QkNorm::Whole,
        normalizes_experts: false,
        ..LLAMA
    },
    ArchitectureRow {
        architecture: Architecture::StableLm,
        gguf_name: Some("stablelm"),
        hf_name: "stablelm",
        gguf_rope_layout: RopeLayout::Halves,
        norm: NormKind::Layer,
        norm_bias: true,
        ..LLAMA
    },
    ArchitectureRow {
        architecture: Architecture::SmolLm3,
        gguf_name: Some("smollm3"),
        hf_name: "smollm3",
        no_rope_step: Some(4),
        ..LLAMA
    },
    GPT2,
    ArchitectureRow {
        architecture: Architecture::GptNeox,
        gguf_name: Some("gptneox"),
        hf_name: "gpt_neox",
        hf_naming: HfNaming::GptNeox,
        activation: Activation::GeluErf,
        parallel_residual: true,
        learned_positions: false,
        ..GPT2
    },
    BERT,
    ROBERTA,
    ArchitectureRow {
        architecture: Architecture::XlmRoberta,
        hf_name: "xlm-roberta",
        ..ROBERTA
    },
    ArchitectureRow {
        architecture: Architecture::NomicBert,
        gguf_name: Some("nomic-bert"),
        hf_name: "nomic_bert",
        hf_naming: HfNaming::NomicBert,
        gguf_rope_layout: RopeLayout::Halves,
        gguf_fused_qkv: true,
        norm: NormKind::Layer,
        norm_bias: true,
        norm_place: NormPlace::AfterSum,
        embedding_norm: true,
        causal: false,
        ..LLAMA
    },
    ArchitectureRow {
        architecture: Architecture::ModernBert,
        gguf_name: Some("modern-bert"),
        hf_name: "modernbert",
        hf_naming: HfNaming::ModernBert,
        gguf_rope_layout: RopeLayout::Halves,
        gguf_fused_qkv: true,
        gguf_fused_gate: true,
        norm: NormKind::Layer,
        embedding_norm: true,
        activation: Activation::GeluErf,
        window_pattern: WindowPattern::AllButFirstOf(3),
        causal: false,
        ..LLAMA
    },
];

impl Architecture {
    /// The row of the table.
    pub fn row(self) -> &'static ArchitectureRow {
        let row = ARCHITECTURES.iter().find(|row| row.architecture == self);
        row.expect("every architecture has a row")
    }
}

impl WindowPattern {
    /// Whether a layer has the window.
    pub fn holds(self, layer: usize) -> bool {
        match self {
            Self::All => true,
            Self::AllButEvery(n) => !(layer + 1).is_multiple_of(n),
            Self::AllButFirstOf(n) => !layer.is_multiple_of(n),
        }
    }
}

/// Which elements of a head rotary embedding pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RopeLayout {
    /// `(0, 1), (2, 3), …`: GGUF files of Llama.
    Interleaved,
    /// `(0, d/2), (1, d/2 + 1), …`: Hugging Face folders, and GGUF files of most other architectures.
    Halves,
}
