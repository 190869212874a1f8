//! Running servers and conversations, as their operators see them.

mod kill;
mod memory;
mod reload;
mod remote;
mod server;
