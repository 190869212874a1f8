//! Any bytes as the body of a request: read, its grammar compiled, its conversation rendered and encoded, or refused.
//!
//! The first byte chooses the path.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use neap_model::chat::ChatTemplate;
use neap_model::source::ModelSource;
use neap_model::tokenizer::Tokenizer;
use neap_server::{ServedModel, prompt_tokens_of};

fn model() -> &'static ServedModel {
    static MODEL: OnceLock<ServedModel> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/neap-tiny.gguf");
        let source = ModelSource::open(&path).unwrap();
        let tokenizer = Tokenizer::from_source(&source).unwrap();
        let template = ChatTemplate::from_source(&source, &tokenizer).unwrap();
        ServedModel::new("tiny", 2048, tokenizer, template)
    })
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, body)) = bytes.split_first() else {
        return;
    };
    let path = ["/v1/chat/completions", "/v1/completions", "/v1/responses"][usize::from(which % 3)];
    if let Err((status, message)) = prompt_tokens_of(model(), path, body) {
        assert!((400..500).contains(&status), "{status} {message}");
        assert!(!message.is_empty());
    }
});
