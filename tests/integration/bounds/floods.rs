//! Frames by the thousand, and peers that do not read.
