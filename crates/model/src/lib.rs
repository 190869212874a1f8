//! Models of Neap.
