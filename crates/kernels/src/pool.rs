//! The thread pool.

/// Threads that run sub-millisecond parallel regions.
pub struct ThreadPool {}
