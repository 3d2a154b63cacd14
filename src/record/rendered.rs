//! What an adapter makes of a record, kept with it for as long as it lives.

use std::{fmt, sync::OnceLock};

/// Room for what is made of a record once. A copy of the record has none yet, and it is part of no comparison.
#[derive(Default)]
pub struct Slots {
    /// The answer for a key whose limits nobody counts.
    pub whole: OnceLock<Rendered>,
    /// The answer for one whose limits are counted, less what each request changes.
    pub lasting: OnceLock<Rendered>,
}

/// An encoded answer that lets a request pass, or a part of one.
#[derive(Debug)]
pub struct Rendered {
    /// Fields of the answer.
    pub rest: Box<[u8]>,
    /// Fields of the OK response in it.
    pub ok: Box<[u8]>,
}

impl Clone for Slots {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Slots {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slots(..)")
    }
}
