//! `neap inspect`: what a model file holds and what it will cost in memory.

use std::io::{self, Write};

use neap_kernels::kv::KvFormat;
use neap_kernels::pool;
use neap_model::decoder::{self, CpuDecoder, DecoderLimits, kv_layout};
use neap_model::inspect::Inspection;
use neap_model::source::ModelSource;

use crate::args::InspectArgs;
use crate::failure::Failure;
use crate::loading::LEAST_BLOCKS;
use crate::{disk_speed, hub, shipped};

/// Tokens of a step that the scratch estimate is for: the default of `--chunk`.
const BATCH_TOKENS: usize = 512;

fn source(args: &InspectArgs) -> Result<ModelSource, Failure> {
    match &args.path {
        Some(path) => Ok(ModelSource::open(hub::find(path)?)?),
        None => Ok(shipped::source()?),
    }
}

pub fn run(args: &InspectArgs) -> Result<(), Failure> {
    if args.batch == 0 || args.context == Some(0) {
        return Err(Failure::new("--context and --batch must be at least 1"));
    }
    let mut inspection = match &args.path {
        Some(path) => Inspection::open(hub::find(path)?)?,
        None => Inspection::of_gguf(shipped::gguf()?)?,
    };
    if let Some(config) = &inspection.config
        && let Ok(layout) = kv_layout(config)
    {
        let limits = DecoderLimits {
            batch_tokens: BATCH_TOKENS.max(args.batch),
            logit_rows: args.batch,
        };
        let scratch = CpuDecoder::scratch_bytes(config, &layout, limits, pool::available_threads());
        let context = args.context.unwrap_or(config.context_length);
        inspection.set_memory(context as u64, args.batch as u64, scratch);
        let kv_block = layout.block_bytes(KvFormat::F16) as u64;
        if let Some(budget) = args.memory
            && let Ok(source) = source(args)
        {
            let blocks = context.div_ceil(layout.block_tokens()) * args.batch;
            let other = scratch + kv_block * blocks.min(LEAST_BLOCKS) as u64;
            let streamed = budget
                .checked_sub(other)
                .and_then(|room| decoder::streamed_bytes_within(&source, room));
            let disk = streamed
                .filter(|&bytes| bytes > 0)
                .and(args.path.as_deref().and_then(disk_speed::of_file));
            inspection.set_budget(budget, streamed, disk);
        }
    }
    let text = if args.json {
        serde_json::to_string_pretty(&inspection)? + "\n"
    } else if args.tensors {
        format!("{inspection:#}")
    } else {
        inspection.to_string()
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever read the text has gone.
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
