//! Memory core of Neap.
