//! How small and how fast each codec is, on a model's own blocks.

use std::path::Path;
use std::time::Instant;

use neap_kernels::attention::bench::{AttentionBench, BenchModel};
use neap_kernels::kv::KvFormat;
use neap_memory::codec::{BlockCodec, Packed};
use neap_memory::{BlockTable, Level};

use super::{PACKED, PACKED_INT4, values_of};
use crate::failure::Failure;
use crate::loading::Parts;

/// How often everything is timed; the least time counts.
const REPEATS: usize = 5;

/// What one codec makes of real blocks.
pub(super) struct Coding {
    pub name: &'static str,
    pub bits_per_value: f64,
    pub encode_gb_per_s: f64,
    pub decode_gb_per_s: f64,
}

/// Encodes and decodes the full blocks of a hot table by every codec.
pub(super) fn measure(parts: &Parts, table: &BlockTable) -> Result<Vec<Coding>, Failure> {
    let lossless: (&'static str, &dyn BlockCodec) = (PACKED, &Packed);
    let lossy = parts.quantized.iter().map(|codec| (codec.name(), &**codec));
    let packed = parts.quantized.packed.as_deref();
    std::iter::once(lossless)
        .chain(lossy)
        .chain(packed.map(|codec| (PACKED_INT4, codec)))
        .map(|(name, codec)| measure_codec(parts, table, name, codec))
        .collect()
}

fn measure_codec(
    parts: &Parts,
    table: &BlockTable,
    name: &'static str,
    codec: &dyn BlockCodec,
) -> Result<Coding, Failure> {
    let (hot_bytes, decoded_bytes) = (parts.kv.block_bytes(), decoded_bytes(parts, codec));
    let mut encoded = vec![0; codec.max_encoded_bytes(hot_bytes)];
    let mut decoded = vec![0; decoded_bytes];
    let failed = |why| Failure::new(format!("a block does not come back: {why}"));
    let (mut bytes, mut encode_s, mut decode_s) = (0, 0.0, 0.0);
    let blocks = table.len_full_blocks();
    for index in 0..blocks {
        let (mut encode, mut decode, mut len) = (f64::INFINITY, f64::INFINITY, 0);
        for _ in 0..REPEATS {
            let start = Instant::now();
            len = codec
                .encode(table.block(index), &mut encoded)
                .map_err(failed)?;
            encode = encode.min(start.elapsed().as_secs_f64());
            let start = Instant::now();
            codec
                .decode(&encoded[..len], &mut decoded)
                .map_err(failed)?;
            decode = decode.min(start.elapsed().as_secs_f64());
        }
        (bytes, encode_s, decode_s) = (bytes + len, encode_s + encode, decode_s + decode);
    }
    let gb = |each: usize| (blocks * each) as f64 / 1e9;
    Ok(Coding {
        name,
        bits_per_value: 8.0 * bytes as f64 / (values_of(parts) * blocks) as f64,
        encode_gb_per_s: gb(hot_bytes) / encode_s,
        decode_gb_per_s: gb(decoded_bytes) / decode_s,
    })
}

/// Bytes of a block that a codec decodes.
fn decoded_bytes(parts: &Parts, codec: &dyn BlockCodec) -> usize {
    let hot_bytes = parts.kv.block_bytes();
    match parts.quantized.at(codec.decodes_to()) {
        Some(level) => level.max_encoded_bytes(hot_bytes),
        None => hot_bytes,
    }
}

/// Writes the full blocks of a hot table into a folder, a file for each level that is attended to, one block behind the
/// other; those of [`PACKED_INT4`] as they come back.
pub(super) fn dump(parts: &Parts, table: &BlockTable, folder: &Path) -> Result<(), Failure> {
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name.replace(' ', "-"));
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&path, bytes))
            .map_err(|why| Failure::new(format!("{} can't be written: {why}", path.display())))
    };
    let blocks = 0..table.len_full_blocks();
    let hot: Vec<&[u8]> = blocks.map(|index| table.block(index)).collect();
    write(Level::Hot.name(), &hot.concat())?;
    let mut encoded = Vec::new();
    let failed = |why| Failure::new(format!("a block does not come back: {why}"));
    for codec in parts.quantized.iter() {
        let mut all = Vec::new();
        encoded.resize(codec.max_encoded_bytes(parts.kv.block_bytes()), 0);
        for block in &hot {
            let len = codec.encode(block, &mut encoded).map_err(failed)?;
            all.extend_from_slice(&encoded[..len]);
        }
        write(codec.name(), &all)?;
    }
    if let Some(codec) = parts.quantized.packed.as_deref() {
        let mut all = Vec::new();
        encoded.resize(codec.max_encoded_bytes(parts.kv.block_bytes()), 0);
        let mut decoded = vec![0; decoded_bytes(parts, codec)];
        for block in &hot {
            let len = codec.encode(block, &mut encoded).map_err(failed)?;
            codec
                .decode(&encoded[..len], &mut decoded)
                .map_err(failed)?;
            all.extend_from_slice(&decoded);
        }
        write(PACKED_INT4, &all)?;
    }
    Ok(())
}

/// How many times as fast as f16 a token attends to `tokens` of blocks of a level; `None` if it is not attended to.
pub(super) fn attention_speedup(
    parts: &Parts,
    level: &str,
    tokens: usize,
) -> Result<Option<f64>, Failure> {
    let format = match Level::ALL.into_iter().find(|l| l.name() == level) {
        Some(Level::Hot) => KvFormat::F16,
        Some(Level::Int8) => KvFormat::Int8,
        Some(Level::Int4) => KvFormat::Int4,
        _ => return Ok(None),
    };
    let config = parts.source.config();
    let model = BenchModel {
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        layers: parts.decoder.model().kv_layout().layers(),
    };
    let context = parts.decoder.context();
    let seconds = |format| -> Result<Option<f64>, Failure> {
        let Some(mut bench) = AttentionBench::new(context, model, format, tokens + 1) else {
            return Ok(None);
        };
        let row = bench.run(context, 1, tokens, 1, 4 * REPEATS);
        Ok(Some(
            row.map_err(|why| Failure::new(why.to_string()))?.seconds,
        ))
    };
    let (Some(exact), Some(own)) = (seconds(KvFormat::F16)?, seconds(format)?) else {
        return Ok(None);
    };
    Ok(Some(exact / own))
}
