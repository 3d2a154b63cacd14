//! The lock types of the fence. A test that explores thread schedules compiles the fence with other lock types.

pub(super) use std::sync::atomic::{AtomicU64, Ordering};

pub(super) use parking_lot::{Mutex, MutexGuard};
