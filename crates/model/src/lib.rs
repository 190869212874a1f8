//! Models of Neap.
#![deny(unsafe_code)]

pub mod chat;
pub mod config;
pub mod gguf;
pub mod mmap;
pub mod source;
pub mod tokenizer;
