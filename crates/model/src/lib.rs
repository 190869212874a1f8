//! Models of Neap.
#![deny(unsafe_code)]

pub mod adapter;
pub mod chat;
pub mod classify;
pub mod config;
pub mod convert;
pub mod decoder;
pub mod embed;
pub mod gguf;
pub mod inspect;
pub mod mmap;
pub mod safetensors;
pub mod source;
pub mod tokenizer;
