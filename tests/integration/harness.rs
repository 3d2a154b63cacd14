//! Real parts for tests: started once per process, gone when it ends.

pub mod keystile;
pub mod place;
pub mod postgres;
pub mod process;
