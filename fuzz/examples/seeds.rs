//! Writes small valid models for the fuzzer to start from:
//! `cargo +nightly run --example seeds` in this folder fills `corpus/`.

use std::path::Path;

use neap_kernels::format::WeightFormat;
use neap_model::config::ARCHITECTURES;
use serde_json::json;
use tiny::{Tiny, write_gguf, write_safetensors};

#[path = "../../crates/model/tests/files/tiny.rs"]
#[allow(dead_code)]
mod tiny;

fn main() -> std::io::Result<()> {
    for row in ARCHITECTURES {
        let tiny = Tiny {
            architecture: row.architecture,
            vocab: 4,
            hidden: 4,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 2,
            ffn: 4,
            tied: row.needs_qk_norm,
            format: WeightFormat::F32,
        };
        for format in [WeightFormat::F32, WeightFormat::Q8_0, WeightFormat::Q4_0] {
            let tiny = Tiny {
                format,
                hidden: if format == WeightFormat::F32 { 4 } else { 32 },
                ..tiny.clone()
            };
            let name = format!("{}-{}", row.hf_name, format.name());
            write("gguf", &name, &quantized(&tiny))?;
        }
        let name = row.hf_name.to_owned();
        write("safetensors", &name, &folder(&tiny, json!({})))?;
        let scaled = json!({
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        });
        write(
            "safetensors",
            &format!("{name}-llama3"),
            &folder(&tiny, scaled),
        )?;
    }
    Ok(())
}

/// The model with every matrix whose rows fill whole blocks in the format, the others in F32.
fn quantized(tiny: &Tiny) -> Vec<u8> {
    let plain = Tiny {
        format: WeightFormat::F32,
        ..tiny.clone()
    };
    let mut tensors = plain.gguf_tensors();
    for (_, shape, format, bytes) in &mut tensors {
        let len: usize = shape.iter().product();
        let cols = *shape.last().unwrap_or(&0);
        if shape.len() < 2 || cols % tiny.format.block_len() != 0 {
            continue;
        }
        *format = tiny.format;
        *bytes = vec![0; len / format.block_len() * format.block_bytes()];
    }
    write_gguf(&tiny.metadata(), &tensors)
}

fn folder(tiny: &Tiny, changes: serde_json::Value) -> Vec<u8> {
    let mut config = tiny.config_json();
    for (key, value) in changes.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    let mut bytes = config.to_string().into_bytes();
    bytes.push(0);
    bytes.extend(write_safetensors(&tiny.hf_tensors()));
    bytes
}

fn write(target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    std::fs::create_dir_all(&folder)?;
    println!("{target}/{name}: {} bytes", bytes.len());
    std::fs::write(folder.join(name), bytes)
}
