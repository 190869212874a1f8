//! Models of Neap.
#![deny(unsafe_code)]

pub mod chat;
pub mod config;
pub mod decoder;
pub mod gguf;
pub mod inspect;
pub mod mmap;
pub mod safetensors;
pub mod source;
pub mod tokenizer;
