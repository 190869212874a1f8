//! Model files: read, checked, refused.

mod config;
mod foreign;
mod fp8;
mod gguf;
mod hostile;
mod inspect;
mod safetensors;
mod source;
mod tiny;
