//! Facts about what is remembered and believed after changes.

use std::{sync::Arc, time::Instant};

use super::*;

fn snapshot(text: &str) -> Arc<Snapshot> {
    Arc::new(text.parse().expect(text))
}

fn log(changes: &[(Option<u8>, u64)], position: &str) -> News<u8> {
    News::Log(changes.iter().map(|(key, id)| Change { key: *key, id: *id }).collect(), snapshot(position))
}

fn admits(fence: &Fence<u8>, key: u8, ticket: Ticket, seen: Option<&str>) -> bool {
    let mut ran = false;
    let seen = seen.map(snapshot);
    let admitted = fence.admit(key, ticket, seen.as_deref(), || ran = true);
    assert_eq!(admitted, ran);
    admitted
}

#[test]
fn reading_that_began_before_a_change_was_heard_of_is_not_remembered() {
    let fence = Fence::new();
    let before = fence.ticket();
    fence.hear(log(&[(Some(1), 10)], "11:11:"), Instant::now(), || ());
    assert!(!admits(&fence, 1, before, None));
    assert!(admits(&fence, 2, before, None), "another key");
    assert!(admits(&fence, 1, fence.ticket(), None));
    fence.hear(log(&[(None, 11)], "12:12:"), Instant::now(), || ());
    assert!(!admits(&fence, 2, before, None), "everything changed");
}

#[test]
fn reading_of_a_server_that_lags_is_not_remembered() {
    let fence = Fence::new();
    fence.hear(log(&[(Some(1), 10)], "11:11:"), Instant::now(), || ());
    assert!(!admits(&fence, 1, fence.ticket(), Some("10:10:")));
    assert!(admits(&fence, 1, fence.ticket(), Some("11:11:")));
}

#[test]
fn another_process_is_believed_by_what_it_has_seen() {
    let fence = Fence::new();
    assert!(!fence.believes(1, Some(&snapshot("90:90:"))), "before the log has been read");
    fence.hear(log(&[(Some(1), 10), (Some(1), 14)], "11:20:15"), Instant::now(), || ());
    fence.set_up(true);
    for (seen, believed) in [("10:20:10", false), ("10:14:", false), ("11:20:14", false), ("11:15:", true)] {
        assert_eq!(fence.believes(1, Some(&snapshot(seen))), believed, "{seen}");
    }
    assert!(fence.believes(2, Some(&snapshot("1:1:"))), "nothing is known against it");
    assert!(!fence.believes(2, None), "where there is a log, it would say");
}

#[test]
fn after_a_gap_only_what_was_read_since_is_believed() {
    let fence = Fence::<u8>::new();
    fence.hear(News::Gap(snapshot("10:20:10")), Instant::now(), || ());
    fence.set_up(true);
    assert!(!fence.believes(1, Some(&snapshot("9:20:9,10"))));
    assert!(fence.believes(1, Some(&snapshot("10:20:10"))));
}

#[test]
fn without_a_log_a_changed_key_is_not_believed() {
    let fence = Fence::<u8>::new();
    assert!(fence.believes(1, None));
    fence.hear(News::Hint(vec![1]), Instant::now(), || ());
    assert_eq!((fence.believes(1, None), fence.believes(2, None)), (false, true));
}

#[test]
fn many_changes_cost_bounded_room_and_lose_nothing() {
    let fence = Fence::<u8>::new();
    for id in 0..100 {
        fence.hear(log(&[(Some(1), id)], &format!("{0}:{0}:", id + 1)), Instant::now(), || ());
    }
    fence.set_up(true);
    assert!(fence.kept(&1).1 <= 16);
    assert!(!fence.believes(1, Some(&snapshot("99:99:"))));
    assert!(fence.believes(1, Some(&snapshot("100:100:"))));
}

#[test]
fn changes_are_forgotten_in_time() {
    let fence = Fence::<u8>::new();
    let now = Instant::now();
    fence.hear(log(&[(Some(1), 10)], "11:11:"), now, || ());
    fence.hear(log(&[(Some(2), 11)], "12:12:"), now + MEMORY, || ());
    assert_eq!(fence.kept(&2).0, 1);
}
