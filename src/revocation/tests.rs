//! What is cached and believed after changes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::*;

/// In epoch 7.
fn position(text: &str) -> Arc<LogPosition> {
    Arc::new(format!("7/{text}").parse().expect(text))
}

fn log(changes: &[(Option<u8>, u64)], at: &str) -> Changes<u8> {
    Changes::Logged(changes.iter().map(|(key, id)| Change { key: *key, id: *id }).collect(), position(at))
}

fn admits(fence: &Fence<u8>, key: u8, generation: Generation, seen: Option<&str>) -> bool {
    let mut ran = false;
    let admitted = match seen {
        Some(seen) => fence.admit_read(key, generation, Some(&position(seen)), || ran = true),
        None => fence.admit(key, generation, || ran = true),
    };
    assert_eq!(admitted, ran);
    admitted
}

#[test]
fn reading_that_began_before_a_change_was_heard_of_is_not_remembered() {
    let fence = Fence::new(Instant::now());
    let before = fence.generation();
    fence.apply(log(&[(Some(1), 10)], "11:11:"), Instant::now(), || ());
    assert!(!admits(&fence, 1, before, None));
    assert!(admits(&fence, 2, before, None), "another key");
    assert!(admits(&fence, 1, fence.generation(), None));
    fence.apply(log(&[(None, 11)], "12:12:"), Instant::now(), || ());
    assert!(!admits(&fence, 2, before, None), "everything changed");
}

#[test]
fn reading_of_a_server_that_lags_is_not_remembered() {
    let fence = Fence::new(Instant::now());
    fence.apply(log(&[(Some(1), 10)], "11:11:"), Instant::now(), || ());
    assert!(!admits(&fence, 1, fence.generation(), Some("10:10:")));
    assert!(admits(&fence, 1, fence.generation(), Some("11:11:")));
}

#[test]
fn another_process_is_believed_by_what_it_has_seen() {
    let fence = Fence::new(Instant::now());
    assert!(!fence.believes(1, Some(&position("90:90:"))), "before the log has been read");
    fence.apply(log(&[(Some(1), 10), (Some(1), 14)], "11:20:15"), Instant::now(), || ());
    fence.set_state(None, Some(7));
    for (seen, believed) in [("10:20:10", false), ("10:14:", false), ("11:20:14", false), ("11:15:", true)] {
        assert_eq!(fence.believes(1, Some(&position(seen))), believed, "{seen}");
    }
    assert!(fence.believes(2, Some(&position("1:1:"))), "nothing is known against it");
    assert!(!fence.believes(2, None), "where there is a log, it would say");
}

#[test]
fn after_a_gap_only_what_was_read_since_is_believed() {
    let fence = Fence::<u8>::new(Instant::now());
    fence.apply(Changes::Everything(position("10:20:10")), Instant::now(), || ());
    fence.set_state(None, Some(7));
    assert!(!fence.believes(1, Some(&position("9:20:9,10"))));
    assert!(fence.believes(1, Some(&position("10:20:10"))));
}

#[test]
fn without_a_log_a_changed_key_is_not_believed() {
    let fence = Fence::<u8>::new(Instant::now());
    assert!(fence.believes(1, None));
    fence.apply(Changes::Hints(vec![1]), Instant::now(), || ());
    assert_eq!((fence.believes(1, None), fence.believes(2, None)), (false, true));
}

#[test]
fn many_changes_cost_bounded_room_and_lose_nothing() {
    let fence = Fence::<u8>::new(Instant::now());
    for id in 0..100 {
        fence.apply(log(&[(Some(1), id)], &format!("{0}:{0}:", id + 1)), Instant::now(), || ());
    }
    fence.set_state(None, Some(7));
    assert!(fence.kept(&1).1 <= 16);
    assert!(!fence.believes(1, Some(&position("99:99:"))));
    assert!(fence.believes(1, Some(&position("100:100:"))));
}

#[test]
fn changes_are_forgotten_in_time() {
    let fence = Fence::<u8>::new(Instant::now());
    let now = Instant::now();
    fence.apply(log(&[(Some(1), 10)], "11:11:"), now, || ());
    fence.apply(log(&[(Some(2), 11)], "12:12:"), now + MEMORY, || ());
    assert_eq!(fence.kept(&2).0, 1);
}

#[test]
fn read_from_another_epoch_or_a_standby_is_not_cached_where_there_is_a_log() {
    let fence = Fence::<u8>::new(Instant::now());
    fence.apply(Changes::Everything(position("10:10:")), Instant::now(), || ());
    let admits = |seen: Option<&LogPosition>| fence.admit_read(1, fence.generation(), seen, || ());
    assert!(admits(Some(&position("10:10:"))));
    assert!(!admits(Some(&"8/10:10:".parse().expect("a position"))), "of another server");
    assert!(!admits(None), "of a standby");
    assert!(!fence.believes(1, Some(&"8/10:10:".parse().expect("a position"))));
}

#[test]
fn epoch_that_ends_without_a_gap_leaves_no_read_behind() {
    let fence = Fence::<u8>::new(Instant::now());
    fence.apply(Changes::Everything(position("10:10:")), Instant::now(), || ());
    // As in SQLite, where each entry begins an epoch.
    fence.set_state(None, Some(8));
    let seen: LogPosition = "8/11:11:".parse().expect("a position");
    assert!(fence.believes(1, Some(&seen)));
    assert!(fence.admit_read(1, fence.generation(), Some(&seen), || ()));
}

#[test]
fn feed_that_does_not_report_is_not_up_for_long() {
    let (fence, now) = (Fence::<u8>::new(Instant::now()), Instant::now());
    assert!(!fence.is_up(now));
    fence.set_state(Some(now + Duration::from_secs(1)), Some(7));
    assert!(fence.is_up(now) && fence.is_up(now + Duration::from_millis(999)));
    assert!(!fence.is_up(now + Duration::from_secs(1)));
}
