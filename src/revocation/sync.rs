//! The locks of the fence. A test that explores schedules compiles the fence with others.

pub(super) use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};
