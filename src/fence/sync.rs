//! What the fence is built of. A test that explores schedules compiles it with others of these.

pub(super) use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
