//! How long bcrypt takes by itself: verifies one key again and again in some threads, and says how many a second.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the rules of the library")]

use std::{thread, time::Instant};

use clap::Parser;

/// Measures bcrypt.
#[derive(Debug, Parser)]
struct Options {
    #[arg(long)]
    cost: u32,
    /// Verifications altogether.
    #[arg(long)]
    count: usize,
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let hash = bcrypt::hash("the key", options.cost)?;
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..options.threads {
            scope.spawn(|| {
                for _ in 0..options.count / options.threads {
                    assert!(bcrypt::verify("the key", &hash).is_ok_and(|matches| matches));
                }
            });
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    println!("{}", serde_json::json!({ "per_second": options.count as f64 / seconds }));
    Ok(())
}
