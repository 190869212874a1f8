//! Running servers and conversations, as their operators see them.

mod kill;
mod kill_serve;
mod log;
mod lora;
mod memory;
mod models;
mod reload;
mod remote;
mod s3;
mod s3_server;
mod server;
mod session;
