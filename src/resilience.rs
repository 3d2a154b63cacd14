//! Calls to what may fail or be slow: bounded, with a deadline and a breaker, and made once for many callers.

mod breaker;
mod dependency;
mod singleflight;

pub use dependency::{CAPACITY, CallError, DependencyGuard, Rejected};
pub use singleflight::{Abandoned, Singleflight};
