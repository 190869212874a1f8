//! Writes small valid models for the fuzzer to start from:
//! `cargo +nightly run --example seeds` in this folder fills `corpus/`.

use std::path::Path;

use neap_kernels::Isa;
use neap_kernels::format::WeightFormat;
use neap_kernels::kv::{KvFormat, KvLayout, max_packed_bytes, pack_int4};
use neap_memory::codec::{BlockCodec, Packed};
use neap_model::config::{ARCHITECTURES, QkNorm};
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
            tied: row.qk_norm == QkNorm::Heads,
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
    requests()?;
    answers()?;
    packed()
}

/// A body for each path, with what makes reading it most work.
fn requests() -> std::io::Result<()> {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["a"],
        "properties": {
            "a": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 9},
            "b": {"anyOf": [{"type": "integer", "minimum": 1}, {"$ref": "#/$defs/c"}]},
        },
        "$defs": {"c": {"type": "array", "items": {"enum": ["x", null]}, "maxItems": 3}},
    });
    let function = json!({"name": "f", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}});
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"q\": \"x\"}"}});
    let chat = json!({
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "7"},
        ],
        "tools": [{"type": "function", "function": function}], "tool_choice": "auto", "n": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
    });
    let completion = json!({
        "prompt": ["a", "b"], "max_tokens": 5, "stop": ["x"], "logit_bias": {"5": -1}, "seed": 1,
        "response_format": {"type": "json_schema", "json_schema": {"strict": true, "schema": schema}},
    });
    let response = json!({
        "input": [
            {"role": "user", "content": "hi"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "7"},
        ],
        "instructions": "Be brief.", "store": false,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}},
    });
    for (which, body) in [chat, completion, response].iter().enumerate() {
        let bytes = [&[which as u8], body.to_string().as_bytes()].concat();
        write("request", &which.to_string(), &bytes)?;
    }
    Ok(())
}

/// Calls in every form, cut into pieces, as answers to every question.
fn answers() -> std::io::Result<()> {
    let said = [
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"q\": \"x\"}}\n</tool_call>",
        "{\"tool_calls\": [{\"name\": \"f\", \"arguments\": {\"q\": \"}\"}}, {\"name\": \"f\", \"arguments\": {}}]}",
        "{\"name\": \"f\", \"parameters\": {\"q\": \"\\\"\"}}",
        "once upon\n\ndata: a time",
    ];
    for which in 0..8_u8 {
        for (index, text) in said.iter().enumerate() {
            let mut bytes = vec![which];
            for piece in text.as_bytes().chunks(3 + index) {
                bytes.extend_from_slice(piece);
                bytes.push(0xFF);
            }
            write("answer", &format!("{which}-{index}"), &bytes)?;
        }
    }
    Ok(())
}

/// Packed blocks of zeros and of something, lossless and of four bits.
fn packed() -> std::io::Result<()> {
    for head_dim in [8_u8, 40, 64] {
        let hot: Vec<u8> = (0..2 * usize::from(head_dim)).map(|i| (i % 5) as u8).collect();
        let mut out = vec![0; Packed.max_encoded_bytes(hot.len())];
        let len = Packed.encode(&hot, &mut out).expect("room");
        let seed = [&[0, head_dim - 1], &out[..len]].concat();
        write("packed", &format!("lossless-{head_dim}"), &seed)?;
        let layout = KvLayout::new(1, 2, usize::from(head_dim)).expect("a layout");
        let mut block = vec![0; layout.block_bytes(KvFormat::Int4)];
        let mut out = vec![0; max_packed_bytes(&layout)];
        for (name, step) in [("zeros", 0), ("steps", 1)] {
            for (i, byte) in block.iter_mut().enumerate() {
                *byte = (i / 7 % 4 * step * 0x11) as u8;
            }
            let len = pack_int4(Isa::Scalar, &layout, &block, &mut out).expect("room");
            let seed = [&[1, head_dim - 1], &out[..len]].concat();
            write("packed", &format!("{name}-{head_dim}"), &seed)?;
        }
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
