//! The locks of the fence. A test that explores schedules compiles the fence with others.

pub(super) use std::sync::atomic::{AtomicU64, Ordering};

pub(super) use parking_lot::{Mutex, MutexGuard};
