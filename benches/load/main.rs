//! Sends checks, or requests to Envoy, at a fixed rate or as fast as they are answered, and says how long they took.
//!
//! At a fixed rate each request has a time at which it is due, whether or not the ones before it have been answered, and its
//! latency counts from then: a server that stalls is charged for everybody who would have waited.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the rules of the library")]

use std::{
    collections::VecDeque,
    io,
    num::NonZeroU64,
    path::PathBuf,
    process::ExitCode,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use keystile::config::Listen;

#[path = "../credential.rs"]
mod credential;
mod http2;
mod request;

use http2::{Event, Receiver, Sender};
use request::{Request, Senders, Verdict};

/// Sends requests and measures the answers.
#[derive(Debug, Parser)]
struct Options {
    /// `ADDRESS:PORT` or `unix:/PATH`.
    #[arg(long)]
    target: Listen,
    /// A recorded CheckRequest to send; without one, a GET to Envoy.
    #[arg(long)]
    check: Option<PathBuf>,
    /// The keys that are used, from this number on.
    #[arg(long, default_value_t = 0)]
    first: u32,
    /// How many keys are used.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    keys: u32,
    /// Takes the keys in turn instead of at random.
    #[arg(long)]
    in_turn: bool,
    /// Requests altogether.
    #[arg(long)]
    count: u64,
    /// Requests a second; as fast as they are answered when absent.
    #[arg(long)]
    rate: Option<f64>,
    #[arg(long, default_value_t = 1)]
    connections: u64,
    /// Requests under way on each connection where there is no rate.
    #[arg(long, default_value_t = 1)]
    streams: u64,
    /// At a fixed rate, how many are due at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    burst: u64,
    /// Addresses that Envoy would name as the client's, in turn, several by comma; `{}` is another number each time.
    #[arg(long, value_delimiter = ',')]
    clients: Vec<String>,
    /// Sends another wrong secret each time; those of another salt are others.
    #[arg(long)]
    wrong: Option<u64>,
    /// Reports every latency, in microseconds.
    #[arg(long)]
    latencies: bool,
    /// What every answer has to be.
    #[arg(long, value_enum, default_value = "allow")]
    expect: Expected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Expected {
    Allow,
    Deny,
    /// Either.
    Any,
}

/// What one connection saw.
#[derive(Default)]
struct Tally {
    latencies: Vec<Duration>,
    unexpected: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {}: {error}", options.target);
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<serde_json::Value> {
    let (wrong, salt) = (options.wrong.is_some(), options.wrong.unwrap_or(0) << 20);
    let senders = Senders { clients: options.clients.clone(), wrong, salt };
    let request = request::request(options.check.as_ref(), senders).map_err(io::Error::other)?;
    let mut connections = Vec::new();
    for _ in 0..options.connections {
        connections.push(http2::connect(&options.target, request.headers(), request.varied_name())?);
    }
    let begun = Instant::now();
    let tallies = match options.rate {
        Some(rate) => at_rate(options, &request, connections, rate)?,
        None => as_answered(options, &request, connections)?,
    };
    Ok(report(tallies, begun.elapsed(), options.latencies))
}

/// Each connection in a thread of its own, with as many requests under way as it may have.
fn as_answered(
    options: &Options,
    request: &Request,
    connections: Vec<(Sender, Receiver)>,
) -> io::Result<Vec<Tally>> {
    thread::scope(|scope| {
        let numbered = connections.into_iter().enumerate();
        let threads: Vec<_> = numbered
            .map(|(at, (sender, receiver))| {
                scope.spawn(move || keep_busy(options, request, at as u64, sender, receiver))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| io::Error::other("panicked"))?).collect()
    })
}

fn keep_busy(
    options: &Options,
    request: &Request,
    at: u64,
    mut sender: Sender,
    mut receiver: Receiver,
) -> io::Result<Tally> {
    let mut mine = (at..options.count).step_by(options.connections as usize);
    let total = mine.clone().count();
    let mut sent = VecDeque::new();
    let (mut under_way, mut body) = (0, Vec::new());
    let mut answers = Answers::new(request, options.expect);
    while answers.tally.latencies.len() < total {
        while under_way < options.streams && sender.has_room(request.len()) {
            let Some(serial) = mine.next() else { break };
            let varied = request.write(key(options, serial), serial, &mut body);
            sender.queue(varied.as_deref(), &body);
            sent.push_back(Instant::now());
            under_way += 1;
        }
        if !sender.is_idle() {
            sender.flush()?;
        }
        let before = answers.tally.latencies.len();
        receiver.receive(|event| match event {
            Event::Control(control) => sender.heed(control),
            event => answers.see(event, |stream| sent[stream].elapsed()),
        })?;
        under_way -= (answers.tally.latencies.len() - before) as u64;
    }
    Ok(answers.tally)
}

/// One thread sends what is due on all connections in turn; each has a thread that receives.
fn at_rate(
    options: &Options,
    request: &Request,
    connections: Vec<(Sender, Receiver)>,
    rate: f64,
) -> io::Result<Vec<Tally>> {
    let (senders, receivers): (Vec<_>, Vec<_>) = connections.into_iter().unzip();
    let senders: Vec<_> = senders.into_iter().map(|sender| (Mutex::new(sender), Condvar::new())).collect();
    // A little later, so that all threads are there for the first.
    let start = Instant::now() + Duration::from_millis(20);
    let due = |serial: u64| start + Duration::from_secs_f64((serial - serial % options.burst) as f64 / rate);
    thread::scope(|scope| {
        let threads: Vec<_> = receivers
            .into_iter()
            .zip(&senders)
            .enumerate()
            .map(|(at, (mut receiver, (sender, room)))| {
                scope.spawn(move || {
                    let total = (at as u64..options.count).step_by(options.connections as usize).count();
                    let mut answers = Answers::new(request, options.expect);
                    while answers.tally.latencies.len() < total {
                        receiver.receive(|event| match event {
                            Event::Control(control) => {
                                let mut sender = lock(sender);
                                sender.heed(control);
                                room.notify_one();
                            }
                            event => answers.see(event, |stream| {
                                let serial = at as u64 + stream as u64 * options.connections;
                                Instant::now().saturating_duration_since(due(serial))
                            }),
                        })?;
                        let mut sender = lock(sender);
                        if !sender.is_idle() {
                            sender.flush()?;
                        }
                    }
                    Ok(answers.tally)
                })
            })
            .collect();
        // The system may wake us 50 us late otherwise, which would be charged to the server.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        let mut body = Vec::new();
        for serial in 0..options.count {
            if let Some(early) = due(serial).checked_duration_since(Instant::now()) {
                thread::sleep(early);
            }
            let (sender, room) = &senders[(serial % options.connections) as usize];
            let varied = request.write(key(options, serial), serial, &mut body);
            let mut sender = lock(sender);
            while !sender.has_room(body.len()) {
                sender = room.wait(sender).unwrap_or_else(PoisonError::into_inner);
            }
            sender.queue(varied.as_deref(), &body);
            sender.flush()?;
        }
        threads.into_iter().map(|thread| thread.join().map_err(|_| io::Error::other("panicked"))?).collect()
    })
}

/// Reads the answers of one connection.
struct Answers<'a> {
    request: &'a Request,
    expected: Option<Verdict>,
    /// By number of the stream, from 0.
    verdicts: Vec<Verdict>,
    tally: Tally,
}

impl<'a> Answers<'a> {
    fn new(request: &'a Request, expected: Expected) -> Self {
        let expected = match expected {
            Expected::Allow => Some(Verdict::Allowed),
            Expected::Deny => Some(Verdict::Denied),
            Expected::Any => None,
        };
        Self { request, expected, verdicts: Vec::new(), tally: Tally::default() }
    }

    /// `latency` is that of the stream with this number.
    fn see(&mut self, event: Event, latency: impl Fn(usize) -> Duration) {
        let (stream, verdict) = match event {
            Event::Headers { stream, block } => (stream, self.request.verdict(Some(block), None)),
            Event::Data { stream, bytes } => (stream, self.request.verdict(None, Some(bytes))),
            Event::End { stream } | Event::Reset { stream } => {
                let number = number(stream);
                let verdict = self.verdicts.get(number).copied().unwrap_or(Verdict::Neither);
                let unexpected =
                    verdict == Verdict::Neither || self.expected.is_some_and(|expected| expected != verdict);
                self.tally.unexpected += u64::from(unexpected);
                return self.tally.latencies.push(latency(number));
            }
            Event::Control(_) => return,
        };
        let number = number(stream);
        if self.verdicts.len() <= number {
            self.verdicts.resize(number + 1, Verdict::Neither);
        }
        if self.verdicts[number] == Verdict::Neither {
            self.verdicts[number] = verdict.unwrap_or(Verdict::Neither);
        }
    }
}

/// Clients number their streams 1, 3, 5.
fn number(stream: u32) -> usize {
    stream as usize / 2
}

/// Which key the request with this number is made with.
fn key(options: &Options, serial: u64) -> u32 {
    // The finaliser of MurmurHash3: the same keys in each run, in no order that a cache would like.
    let mut mixed = serial.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^= mixed >> 33;
    let chosen = if options.in_turn { serial } else { mixed };
    options.first + (chosen % u64::from(options.keys)) as u32
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn report(tallies: Vec<Tally>, took: Duration, all: bool) -> serde_json::Value {
    let unexpected: u64 = tallies.iter().map(|tally| tally.unexpected).sum();
    let mut latencies: Vec<_> = tallies.into_iter().flat_map(|tally| tally.latencies).collect();
    latencies.sort_unstable();
    let at = |share: f64| {
        let position = (latencies.len() as f64 * share).ceil() as usize;
        latencies[position.saturating_sub(1)].as_nanos() as f64 / 1000.0
    };
    serde_json::json!({
        "answers": latencies.len(),
        "unexpected": unexpected,
        "seconds": took.as_secs_f64(),
        "p50_us": at(0.5),
        "p99_us": at(0.99),
        "p999_us": at(0.999),
        "max_us": at(1.0),
        "latencies_us": all.then(|| latencies.iter().map(|latency| latency.as_micros() as u64).collect::<Vec<_>>()),
    })
}
