//! Running servers and conversations, as their operators see them.

mod kill;
mod memory;
mod remote;
mod server;
