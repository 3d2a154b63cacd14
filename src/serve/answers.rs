//! The answers that Keystile itself causes: one line when they begin and one when they end, with their number.
//!
//! Each of them should follow from a fault that a dependency has reported. If none has, the line says so, so that a
//! cause without a fault of its own is logged too. Checks are only counted. This reads the counters.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::{
    decision::Reason,
    dependencies::{Dependency, DependencyState, State},
    metrics::{CHECKS, Metrics},
};

/// Follows the counters of these answers.
#[derive(Default)]
pub(super) struct AnswerWatch {
    seen: [u64; Reason::ALL.len()],
    episodes: [Option<Episode>; Reason::ALL.len()],
}

/// Answers with one reason, without a pause of [`QUIET`].
#[derive(Debug, Clone, Copy)]
struct Episode {
    since: Instant,
    last: Instant,
    answers: u64,
    logged: Instant,
}

/// How long there must be no such answer before the episode ends.
const QUIET: Duration = Duration::from_secs(10);

/// Time between two lines while an episode continues.
const AGAIN: Duration = Duration::from_secs(600);

/// What is logged of a reason.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Begins(u64),
    Continues(u64),
    Ended { answers: u64, lasted: Duration },
}

/// The dependencies that can cause an answer, and where to look. `None`: the caller, or the key, causes it.
fn causes(reason: Reason) -> Option<(&'static [Dependency], &'static str)> {
    use Dependency::{Bcrypt, Budgets, Database, Memory, RedisLimits};
    match reason {
        Reason::Unavailable => {
            Some((&[Database, Budgets, RedisLimits], "/readyz and the runbook, KeystileErrors"))
        }
        Reason::Overloaded => Some((
            &[Bcrypt, Database, Memory, RedisLimits],
            "keystile_first_proofs_total and the runbook, KeystileErrors",
        )),
        Reason::TooManyAttempts => {
            Some((&[Bcrypt], "keystile_first_proofs_total and docs/reference/denials.md"))
        }
        Reason::RouteMisconfigured => {
            Some((&[], "the line that names the setting, and docs/reference/routes.md"))
        }
        Reason::MalformedRequest
        | Reason::NotHttp
        | Reason::MissingCredential
        | Reason::MalformedCredential
        | Reason::AmbiguousCredential
        | Reason::InvalidCredential
        | Reason::Disabled
        | Reason::Expired
        | Reason::UserInactive
        | Reason::IpNotAllowed
        | Reason::EndpointNotAllowed
        | Reason::ModelNotAllowed
        | Reason::ScopeMissing
        | Reason::ChatbotNotAllowed
        | Reason::AgentNotAllowed
        | Reason::ExtractTemplateNotAllowed
        | Reason::BudgetExhausted
        | Reason::RateLimited => None,
    }
}

impl AnswerWatch {
    /// Reads the counters. To be called each second.
    pub(super) fn look(&mut self, metrics: &Metrics, now: Instant) {
        let states = metrics.states().snapshot();
        for reason in Reason::ALL {
            let Some((dependencies, look_at)) = causes(reason) else { continue };
            let answers = metrics.sum(CHECKS, &[("reason", reason.code())]);
            if let Some(entry) = self.entry(reason, answers, now) {
                write(reason, &entry, &faults(&states, dependencies), look_at);
            }
        }
    }

    /// The line that is due. `answers`: the number of answers since the start.
    fn entry(&mut self, reason: Reason, answers: u64, now: Instant) -> Option<Entry> {
        let place = reason as usize;
        let new = answers.saturating_sub(std::mem::replace(&mut self.seen[place], answers));
        let Some(episode) = &mut self.episodes[place] else {
            if new == 0 {
                return None;
            }
            self.episodes[place] = Some(Episode { since: now, last: now, answers: new, logged: now });
            return Some(Entry::Begins(new));
        };
        episode.answers += new;
        if new > 0 {
            episode.last = now;
        } else if now.saturating_duration_since(episode.last) >= QUIET {
            let Episode { since, last, answers, .. } = *episode;
            self.episodes[place] = None;
            return Some(Entry::Ended { answers, lasted: last.saturating_duration_since(since) });
        }
        if now.saturating_duration_since(episode.logged) >= AGAIN {
            episode.logged = now;
            return Some(Entry::Continues(episode.answers));
        }
        None
    }
}

/// The faults that explain an answer, as `dependency: cause`.
fn faults(states: &[DependencyState], dependencies: &[Dependency]) -> String {
    let states =
        states.iter().filter(|state| dependencies.contains(&state.dependency) && state.state != State::Up);
    let faults = states.flat_map(|state| {
        state.faults.iter().map(|fault| format!("{}: {}", state.dependency.name(), fault.cause))
    });
    faults.collect::<Vec<_>>().join(", ")
}

fn write(reason: Reason, entry: &Entry, faults: &str, look_at: &str) {
    let code = reason.code();
    let cause = match (faults, reason) {
        ("", Reason::RouteMisconfigured) => "a setting of a route in Envoy",
        ("", _) => "not known: no dependency reports a fault",
        (faults, _) => faults,
    };
    match *entry {
        Entry::Begins(answers) => {
            warn!(reason = code, answers, cause, look_at, "checks are denied by a fault")
        }
        Entry::Continues(answers) => {
            warn!(reason = code, answers, cause, look_at, "checks are still denied by a fault")
        }
        Entry::Ended { answers, lasted } => {
            let lasted = humantime::format_duration(Duration::from_secs(lasted.as_secs())).to_string();
            info!(reason = code, answers, lasted, "checks are no longer denied by a fault");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_with_status_503_or_429_for_a_flood_has_its_causes() {
        for reason in Reason::ALL {
            let is_own = reason.status() == 503 || reason == Reason::TooManyAttempts;
            assert_eq!(causes(reason).is_some(), is_own, "{reason:?}");
        }
    }

    #[test]
    fn an_episode_is_logged_when_it_begins_and_when_it_ends_with_its_number() {
        let (mut watch, start) = (AnswerWatch::default(), Instant::now());
        let mut lines = Vec::new();
        for second in 0..40 {
            let answers = 100 * (second + 1).min(20);
            lines.extend(watch.entry(Reason::Overloaded, answers, start + Duration::from_secs(second)));
        }
        assert_eq!(
            lines,
            [Entry::Begins(100), Entry::Ended { answers: 2000, lasted: Duration::from_secs(19) }]
        );
    }

    #[test]
    fn an_answer_without_a_fault_is_not_explained() {
        let fault = crate::dependencies::Fault { cause: "refused", problem: "no".into(), fix: "none".into() };
        let state = DependencyState {
            dependency: Dependency::Usage,
            state: State::Down,
            faults: vec![fault],
            failed_calls: 0,
        };
        assert_eq!(faults(std::slice::from_ref(&state), &[Dependency::Database]), "");
        assert_eq!(faults(&[state], &[Dependency::Usage]), "usage: refused");
    }
}
