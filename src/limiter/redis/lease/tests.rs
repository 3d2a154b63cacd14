//! Facts about one key's lease, and instances that lease a limit against a slow reference.

use std::num::NonZeroU32;

use proptest::prelude::*;

use super::{refusal_cache::REFUSAL_TTL, *};
use crate::limiter::redis::protocol::WindowReply;

mod world;

use world::{Entry, Fate, START, Server, World};

const ALONE: Fleet = Fleet { count: 1, position: 0 };

fn charge(minute: u64, hour: Option<u64>, cost: u32) -> Charge {
    let limits = Limits { minute: Some(minute), hour, day: None };
    Charge { key: KeyId(7), limits, cost: NonZeroU32::new(cost).expect("not 0") }
}

#[test]
fn busy_key_asks_redis_rarely_and_an_idle_key_leases_nothing() {
    let mut world = World::new(1);
    let charge = charge(100_000, None, 1);
    assert!(world.request(0, &charge, Fate::Answered));
    assert_eq!(world.server.sum(Span::Minute, Span::Minute.number(START), None), 1);
    for _ in 0..5_000 {
        world.passed += Duration::from_millis(1);
        assert!(world.request(0, &charge, Fate::Answered));
    }
    let grants = world.server.0.iter().filter(|entry| entry.amount > 0).count();
    assert!(grants < 50, "{grants} leases for 5000 requests");
}

#[test]
fn lease_shrinks_to_the_need_where_little_remains() {
    let mut state = KeyState { spent: 1_000, granted: Some(Instant::now()), ..KeyState::default() };
    let fleet = Fleet { count: 3, position: 0 };
    let mut grant = |used: u64| {
        let mut server = Server::default();
        let number = Span::Minute.number(START);
        server.0.push(Entry { span: Span::Minute, number, instance: 1, amount: used as i64 });
        let request = state.request_lease(&charge(100, None, 1), fleet, Instant::now());
        server.charge(0, &request, START).grant
    };
    assert_eq!([0, 50, 90, 94, 99, 100].map(&mut grant), [17, 9, 2, 1, 1, 0]);
}

#[test]
fn unused_lease_is_returned_to_every_window_that_has_not_ended() {
    let mut world = World::new(1);
    let charge = charge(1_000, Some(10_000), 1);
    for _ in 0..50 {
        world.request(0, &charge, Fate::Answered);
    }
    world.passed = Duration::from_secs(59);
    for _ in 0..50 {
        world.request(0, &charge, Fate::Answered);
    }
    let used = |world: &World| world.server.sum(Span::Hour, Span::Hour.number(START), None);
    assert!(used(&world) > 100, "{}", used(&world));
    world.passed += TERM;
    world.reconcile(0, Reconcile::Open);
    assert_eq!(used(&world), 100);
    assert_eq!(world.server.sum(Span::Minute, Span::Minute.number(world.now().1), None), 0);
}

#[test]
fn lease_is_not_used_past_the_end_of_its_window() {
    let mut world = World::new(1);
    world.passed = Duration::from_millis(59_900);
    let charge = charge(1_000, None, 1);
    for _ in 0..20 {
        world.request(0, &charge, Fate::Answered);
    }
    assert!(world.states[0].lease.remaining > 0);
    world.passed = Duration::from_secs(60);
    let (now, redis_now) = world.now();
    assert_eq!(world.states[0].take(&charge, now, redis_now), LeaseOutcome::Insufficient);
}

#[test]
fn reply_from_the_next_window_returns_the_old_lease() {
    let mut world = World::new(1);
    world.passed = Duration::from_millis(59_900);
    let (charge, costly) = (charge(1_000, Some(10_000), 1), charge(1_000, Some(10_000), 100));
    for _ in 0..20 {
        world.request(0, &charge, Fate::Answered);
    }
    let state = &mut world.states[0];
    let (left, sent) = (state.lease.remaining, world.begun + world.passed);
    assert!(left > 0);
    // Requested before the end of the minute, and answered after it.
    let request = state.request_lease(&costly, ALONE, sent);
    let reply = world.server.charge(0, &request, START + Duration::from_secs(60));
    state.apply_lease(&costly, &request, &reply, sent);
    assert_eq!(state.lease.remaining, reply.grant);
    assert_eq!(
        state.windows.map(|window| window.returned),
        [0, left, 0],
        "returned in the hour, which has not ended"
    );
}

#[test]
fn lease_is_not_used_for_other_limits_than_it_was_charged_against() {
    let mut world = World::new(1);
    for _ in 0..20 {
        world.request(0, &charge(1_000, None, 1), Fate::Answered);
    }
    assert!(world.states[0].lease.remaining > 0);
    let (now, redis_now) = world.now();
    assert_eq!(world.states[0].take(&charge(1_000, Some(5), 1), now, redis_now), LeaseOutcome::Insufficient);
}

#[test]
fn use_during_an_outage_is_reported_after_it() {
    let mut world = World::new(3);
    let charge = charge(100, Some(10_000), 1);
    let passed: Vec<_> =
        (0..3).map(|instance| (0..100).filter(|_| world.part(instance, &charge)).count()).collect();
    assert_eq!(passed, [34, 33, 33]);
    for instance in 0..3 {
        world.reconcile(instance, Reconcile::All);
        // Once is enough.
        world.reconcile(instance, Reconcile::All);
    }
    assert_eq!(world.server.sum(Span::Hour, Span::Hour.number(START), None), 100);
    assert!((0..3).all(|instance| !world.request(instance, &charge, Fate::Answered)));
}

#[test]
fn part_is_of_what_remained_at_the_last_reply() {
    let mut world = World::new(2);
    let charge = charge(100, None, 1);
    (0..90).for_each(|_| assert!(world.request(0, &charge, Fate::Answered)));
    assert!(world.request(1, &charge, Fate::Answered));
    let rest = world.server.sum(Span::Minute, Span::Minute.number(START), None);
    let passes = (0..100).filter(|_| world.part(1, &charge)).count() as u64;
    assert!(passes <= (100 - rest).div_ceil(2) + 1, "{passes} with {rest} used");
}

#[test]
fn lost_reply_costs_the_key_nothing() {
    let mut world = World::new(1);
    let charge = charge(100, None, 1);
    (0..10).for_each(|_| assert!(world.request(0, &charge, Fate::Answered)));
    world.passed += TERM;
    assert!(!world.request(0, &charge, Fate::LostOnTheWayBack));
    assert!(world.request(0, &charge, Fate::Answered));
    world.reconcile(0, Reconcile::Leaving);
    assert_eq!(world.server.sum(Span::Minute, Span::Minute.number(START), None), 11);
}

#[test]
fn use_that_redis_moves_along_when_its_clock_goes_back_is_not_returned() {
    let (mut state, charge, now) = (KeyState::default(), charge(100, None, 1), Instant::now());
    let reply = |number, used, grant| {
        let window = WindowReply { number, used, own: used };
        LeaseReply { now: START, grant, windows: [Some(window), None, None] }
    };
    let request = state.request_lease(&charge, ALONE, now);
    state.apply_lease(&charge, &request, &reply(1000, 60, 60), now);
    assert_eq!(state.lease.remaining, 60);
    state.lease.remaining = 0;
    // Set back by ten minutes: the use moves along into the earlier window.
    let request = state.request_lease(&charge, ALONE, now);
    state.apply_lease(&charge, &request, &reply(990, 61, 1), now);
    assert_eq!(state.windows[0].returned, 0);
    assert_eq!((state.windows[0].number, state.windows[0].used), (990, 61));
}

#[test]
fn reply_about_an_ended_window_does_not_change_the_present_one() {
    let (mut state, charge, now) = (KeyState::default(), charge(100, None, 1), Instant::now());
    let reply = |number, own, grant| {
        let window = WindowReply { number, used: own, own };
        LeaseReply { now: START, grant, windows: [Some(window), None, None] }
    };
    let first = state.request_lease(&charge, ALONE, now);
    let second = state.request(&charge);
    state.apply_lease(&charge, &first, &reply(11, 5, 5), now);
    // Sent before, and answered in the window before.
    state.apply_reconciliation(&second, &reply(10, 40, 0));
    assert_eq!((state.windows[0].number, state.windows[0].returned), (11, 0));
}

#[test]
fn remainder_of_a_lease_is_available_to_the_next_one() {
    let (mut world, charge) = (World::new(1), charge(100, None, 1));
    let mut passed = (0..30).filter(|_| world.request(0, &charge, Fate::Answered)).count();
    assert!(world.states[0].lease.remaining > 10, "{}", world.states[0].lease.remaining);
    // The lease has ended and is not reconciled yet.
    world.passed += TERM;
    passed += (0..200).filter(|_| world.request(0, &charge, Fate::Answered)).count();
    assert_eq!(passed, 100);
}

#[test]
fn refusal_holds_for_a_short_time_and_for_the_refused_cost() {
    let mut world = World::new(1);
    assert!(world.request(0, &charge(5, None, 4), Fate::Answered));
    let charges = |world: &World| world.server.0.len();
    assert!(!world.request(0, &charge(5, None, 4), Fate::Answered));
    let before = charges(&world);
    assert!(!world.request(0, &charge(5, None, 4), Fate::Answered));
    assert_eq!(charges(&world), before);
    assert!(world.request(0, &charge(5, None, 1), Fate::Answered));
    let request = world.states[0].request_lease(&charge(5, None, 1), ALONE, world.begun);
    assert_eq!(request.need, 1);
}

#[derive(Debug, Clone)]
enum Event {
    Requests {
        instance: usize,
        cost: u32,
        times: u64,
        fate: Fate,
    },
    Later {
        millis: u64,
    },
    Reconcile {
        instance: usize,
    },
    /// Redis forgets everything, and every instance notices.
    Flush,
}

fn events() -> impl Strategy<Value = Event> {
    let fate = prop_oneof![
        8 => Just(Fate::Answered),
        1 => Just(Fate::LostOnTheWay),
        1 => Just(Fate::LostOnTheWayBack),
    ];
    prop_oneof![
        6 => (0..3usize, 1..5u32, 1..30u64, fate)
            .prop_map(|(instance, cost, times, fate)| Event::Requests { instance, cost, times, fate }),
        3 => (1..20_000u64).prop_map(|millis| Event::Later { millis }),
        2 => (0..3usize).prop_map(|instance| Event::Reconcile { instance }),
        1 => Just(Event::Flush),
    ]
}

proptest! {
    /// `World::allow` checks each window as it goes.
    #[test]
    fn instances_together_never_exceed_a_limit(
        minute in 1..200u64,
        hour in proptest::option::of(1..400u64),
        events in proptest::collection::vec(events(), 1..60),
    ) {
        let mut world = World::new(3);
        for event in events {
            match event {
                Event::Requests { instance, cost, times, fate } => {
                    let charge = charge(minute, hour, cost);
                    for _ in 0..times {
                        world.request(instance, &charge, fate);
                    }
                }
                Event::Later { millis } => world.passed += Duration::from_millis(millis),
                Event::Reconcile { instance } => world.reconcile(instance, Reconcile::Open),
                Event::Flush => {
                    world.server.0.clear();
                    (0..3).for_each(|instance| world.reconcile(instance, Reconcile::All));
                }
            }
        }
        // The next reply finds every lost grant.
        world.passed += REFUSAL_TTL;
        for instance in 0..3 {
            world.request(instance, &charge(minute, hour, 1), Fate::Answered);
        }
        for what in [Reconcile::All, Reconcile::Leaving, Reconcile::Leaving] {
            (0..3).for_each(|instance| world.reconcile(instance, what));
        }
        for (span, _) in charge(minute, hour, 1).limited() {
            let used = world.server.sum(span, span.number(world.now().1), None);
            prop_assert_eq!(used, world.allowed(span), "in the {}", span.name());
        }
    }

    #[test]
    fn every_lease_is_returned_while_every_request_is_answered(
        limit in 1..500u64,
        requests in proptest::collection::vec((0..3usize, 1..5u32, 0..300u64), 1..200),
    ) {
        let mut world = World::new(3);
        for (instance, cost, millis) in requests {
            world.passed += Duration::from_millis(millis);
            world.request(instance, &charge(limit, None, cost), Fate::Answered);
            // The documented bound: together half of what remained, and less than one cost each.
            let held = |state: &KeyState| state.lease.remaining + state.windows[0].returned;
            let ahead: u64 = world.states.iter().map(held).sum();
            prop_assert!(ahead <= limit / 2 + 3 * 3, "{} of {} leased", ahead, limit);
        }
        (0..3).for_each(|instance| world.reconcile(instance, Reconcile::Leaving));
        let used = world.server.sum(Span::Minute, Span::Minute.number(world.now().1), None);
        prop_assert_eq!(used, world.allowed(Span::Minute));
    }
}
