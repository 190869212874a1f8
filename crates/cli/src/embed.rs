//! `neap embed`: texts to vectors.

use std::io::{self, BufRead, Write};

use neap_model::embed::{Embedder, Pooling};
use neap_model::tokenizer::{EncodeOptions, Tokenizer};
use serde_json::json;

use crate::args::EmbedArgs;
use crate::failure::Failure;
use crate::loading;

pub fn run(args: &EmbedArgs) -> Result<(), Failure> {
    let parts = loading::load_embedder(&args.model, None)?;
    let tokenizer = Tokenizer::from_source(&parts.source)?;
    let pooling = match args.pooling {
        Some(pooling) => pooling,
        None => Pooling::of(&parts.source)?,
    };
    let mut embedder = Embedder::new(parts.decoder, parts.kv, pooling);
    let mut out = io::stdout().lock();
    let mut print = |text: &str| -> Result<(), Failure> {
        let tokens = tokenizer.encode(text, EncodeOptions::default())?;
        let vector = embedder.embed(&tokens, args.dimensions)?;
        let line = json!({ "text": text, "tokens": tokens.len(), "embedding": vector });
        writeln!(out, "{line}")?;
        Ok(())
    };
    if !args.texts.is_empty() {
        return args.texts.iter().try_for_each(|text| print(text));
    }
    for line in io::stdin().lock().lines() {
        print(&line?)?;
    }
    Ok(())
}

pub fn parse_pooling(name: &str) -> Result<Pooling, String> {
    Pooling::by_name(name).ok_or_else(|| format!("{name:?} is not one of mean, cls, last"))
}
