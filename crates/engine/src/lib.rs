//! Engine of Neap.
