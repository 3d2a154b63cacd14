//! What a fault came to: wrong answers, lost requests, added latency and the time to recover.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};

use super::{
    faults::{self, Fault},
    keys::Role,
    load::{Asked, Kind, Record},
    oracle::{self, Truth},
    world::World,
};
use crate::harness::promise::stalls_since;

/// When each instance last allowed a request with each key that it may have in memory.
#[derive(Debug, Default)]
pub struct Memory(HashMap<(usize, usize), Instant>);

impl Memory {
    /// Whether an instance has answered with the key as it was when the fault began.
    fn has(&self, asked: &Asked, began: Instant, world: &World) -> bool {
        let Some(at) = asked.key else { return false };
        let Some(answered) = self.0.get(&(asked.instance, at)) else { return false };
        // An answer of the first moment may be of before the change.
        let changed = world.keys[at].last_change(asked.span.received).max(world.last_drop(began));
        changed.is_none_or(|changed| changed + Duration::from_secs(2) < *answered) && *answered < began
    }

    /// Notes what was answered while a fault happened.
    pub fn note(&mut self, fault: Fault, asked: &[Asked]) {
        if fault.empties_memory() {
            self.0.clear();
        }
        let allowed = asked.iter().filter(|asked| asked.status == 200 && !fault.empties_memory());
        self.0.extend(allowed.filter_map(|asked| Some(((asked.instance, asked.key?), asked.span.sent))));
    }
}

/// When a fault began and ended.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub began: Instant,
    pub ended: Instant,
}

/// One fault.
#[derive(Debug)]
pub struct Row {
    pub fault: Fault,
    pub requests: usize,
    /// Requests that were let in although nothing allowed them.
    pub wrong_allows: Vec<String>,
    /// Good keys that were called wrong.
    pub wrong_denials: Vec<String>,
    /// Good keys that the instance had in memory and that got no decision.
    pub unavailable: Vec<String>,
    /// Good keys that were not in memory and got no decision.
    pub others_unavailable: usize,
    /// Latency of good keys in use, sorted.
    latencies: Vec<Duration>,
    pub recovered: Duration,
}

impl Row {
    /// Judges what was asked while the fault happened and until everything was as before.
    pub fn judge(
        fault: Fault,
        world: &World,
        record: &Record,
        memory: &Memory,
        asked: &[Asked],
        times: Times,
    ) -> Self {
        let ended = times.ended;
        let mut row = Self {
            fault,
            requests: asked.len(),
            wrong_allows: Vec::new(),
            wrong_denials: Vec::new(),
            unavailable: Vec::new(),
            others_unavailable: 0,
            latencies: Vec::new(),
            recovered: Duration::ZERO,
        };
        let mut lost = record.last_down(ended);
        for asked in asked {
            let key = asked.key.map(|at| &world.keys[at]);
            let is_known = key.is_some() && memory.has(asked, times.began, world);
            let is_good = asked.is_good(world);
            match asked.status {
                200 if !may_be(asked, Truth::Allowed, world, record) => {
                    row.wrong_allows.push(describe(asked, world, ended));
                }
                200 => {}
                401 | 403 if is_good && !may_be(asked, Truth::Denied, world, record) => {
                    row.wrong_denials.push(describe(asked, world, ended));
                }
                401 | 403 => {}
                // A limit that was reached.
                429 if asked.code == "rate_limited" => {}
                _ if !is_good => {}
                _ => {
                    lost = lost.max(Some(asked.span.received).filter(|at| *at > ended));
                    if is_known {
                        row.unavailable.push(describe(asked, world, ended));
                    } else {
                        row.others_unavailable += 1;
                    }
                }
            }
            if is_good && key.is_some_and(|key| key.role != Role::Fresh) && asked.status == 200 {
                row.latencies.push(asked.span.received - asked.span.sent);
            }
        }
        row.latencies.sort();
        row.recovered = lost.map_or(Duration::ZERO, |at| at - ended);
        row
    }

    /// Latency that this part of the requests stayed below.
    pub fn latency(&self, part: f64) -> Duration {
        let at = (self.latencies.len() as f64 * part) as usize;
        self.latencies.get(at.min(self.latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Summary { fault: self.fault, rows: vec![self] }.fmt(f)
    }
}

/// All times that one fault happened.
pub struct Summary<'a> {
    fault: Fault,
    rows: Vec<&'a Row>,
}

impl<'a> Summary<'a> {
    /// One for each fault, in the order of [`faults::ALL`].
    pub fn of(rows: &'a [Row]) -> Vec<Self> {
        let faults = [Fault::None].into_iter().chain(faults::ALL);
        let of_fault = |fault| rows.iter().filter(move |row| row.fault == fault).collect();
        let all = faults.map(|fault| Self { fault, rows: of_fault(fault) });
        all.filter(|summary| !summary.rows.is_empty()).collect()
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |number: fn(&Row) -> usize| self.rows.iter().map(|row| number(row)).sum::<usize>();
        let longest = |time: &dyn Fn(&Row) -> Duration| self.rows.iter().map(|row| time(row)).max();
        let longest = |time: &dyn Fn(&Row) -> Duration| longest(time).unwrap_or_default().as_secs_f64();
        write!(
            f,
            "| {} | {} | {} | {} | {} | {} | {} | {:.0} | {:.0} | {:.1} |",
            self.fault.name(),
            self.rows.len(),
            sum(|row| row.requests),
            sum(|row| row.wrong_allows.len()),
            sum(|row| row.wrong_denials.len()),
            sum(|row| row.unavailable.len()),
            sum(|row| row.others_unavailable),
            longest(&|row| row.latency(0.5)) * 1e3,
            longest(&|row| row.latency(0.99)) * 1e3,
            longest(&|row| row.recovered),
        )
    }
}

/// The head of the table of rows. Of several rows of one fault, the longest times are shown.
pub const HEAD: &str = "\
| fault | times | requests | wrong allows | wrong denials | known keys without an answer | others without an answer | p50, ms | p99, ms | recovery, s |
|---|---|---|---|---|---|---|---|---|---|";

/// Whether the answer may rest on this truth.
fn may_be(asked: &Asked, truth: Truth, world: &World, record: &Record) -> bool {
    let Some(key) = asked.key.map(|at| &world.keys[at]) else { return false };
    match asked.kind {
        Kind::MadeUp | Kind::WrongSecret | Kind::Elsewhere => return false,
        Kind::Key => {}
    }
    let is_up = record.is_up(asked.instance, asked.span);
    let span = asked.span;
    let from = span.sent.checked_sub(Duration::from_secs(40)).unwrap_or(span.sent);
    let outages = world.instances[asked.instance].outages(from, span.sent);
    let stalled = stalls_since(span.sent.checked_sub(Duration::from_secs(2)).unwrap_or(span.sent));
    key.may(truth, span, oracle::allowance(is_up, outages, stalled))
}

fn describe(asked: &Asked, world: &World, ended: Instant) -> String {
    let key = asked.key.map(|at| world.keys[at].describe(asked.span.sent));
    let after = asked.span.sent.saturating_duration_since(ended).as_secs_f64();
    let Asked { instance, kind, status, code, .. } = asked;
    format!("instance {instance}, {kind:?}: {status} {code} {after:.2} s after the end, {key:?}")
}
