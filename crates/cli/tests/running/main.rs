//! Running servers and conversations, as their operators see them.

mod memory;
mod server;
