//! Neap.
fn main() {}
