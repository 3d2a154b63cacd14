//! Facts about one key's share, and sidecars that share a limit against a slow reference.

use std::{collections::HashMap, num::NonZeroU32};

use proptest::prelude::*;

use super::*;

const START: Duration = Duration::from_secs(1_795_600_800);
const ALONE: Fleet = Fleet { count: 1, place: 0 };

fn bill(minute: u64, hour: Option<u64>, cost: u32) -> Bill {
    let limits = Limits { minute: Some(minute), hour, day: None };
    Bill { key: KeyId(7), limits, cost: NonZeroU32::new(cost).expect("not 0") }
}

/// What Redis's script does, slowly: every charge is kept, and added up anew each time.
#[derive(Default)]
struct Server(Vec<Charge>);

struct Charge {
    span: Span,
    number: u64,
    sidecar: usize,
    amount: i64,
}

impl Server {
    fn sum(&self, span: Span, number: u64, sidecar: Option<usize>) -> u64 {
        let of = |charge: &&Charge| {
            (charge.span, charge.number) == (span, number)
                && sidecar.is_none_or(|sidecar| sidecar == charge.sidecar)
        };
        let sum: i64 = self.0.iter().filter(of).map(|charge| charge.amount).sum();
        sum.try_into().expect("nobody gives back what was not charged")
    }

    fn charge(&mut self, sidecar: usize, order: &Order, now: Duration) -> Reply {
        let lines = Span::ALL.into_iter().zip(order.windows);
        let lines: Vec<_> = lines.filter_map(|(span, line)| Some((span, line?))).collect();
        for (span, line) in &lines {
            if line.number == span.number(now) {
                let mine = self.sum(*span, line.number, Some(sidecar));
                let forgotten = line.mine.saturating_sub(mine);
                let amount = forgotten as i64 - line.back.min(mine + forgotten) as i64;
                self.0.push(Charge { span: *span, number: line.number, sidecar, amount });
            }
        }
        let left =
            |(span, line): &(Span, Line)| line.limit as i64 - self.sum(*span, span.number(now), None) as i64;
        let room = lines.iter().map(left).min().unwrap_or(0);
        let fits = order.need > 0 && room >= order.need as i64;
        let ahead = |room: u64| (order.want - order.need).min((room - order.need) / order.part);
        let grant = if fits { order.need + ahead(room as u64) } else { 0 };
        let mut windows = PerSpan::default();
        for (span, _) in lines {
            let number = span.number(now);
            self.0.push(Charge { span, number, sidecar, amount: grant as i64 });
            let (used, mine) = (self.sum(span, number, None), self.sum(span, number, Some(sidecar)));
            windows[span as usize] = Some(Told { number, used, mine });
        }
        Reply { now, grant, windows }
    }
}

/// What may become of an order.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Answered,
    LostOnTheWay,
    LostOnTheWayBack,
}

/// Sidecars, Redis, and what passed by window.
struct World {
    begun: Instant,
    passed: Duration,
    server: Server,
    slots: Vec<Slot>,
    allowed: HashMap<(Span, u64), u64>,
}

impl World {
    fn new(sidecars: usize) -> Self {
        let slots = (0..sidecars).map(|_| Slot::default()).collect();
        let (begun, passed) = (Instant::now(), Duration::ZERO);
        Self { begun, passed, server: Server::default(), slots, allowed: HashMap::new() }
    }

    fn now(&self) -> (Instant, Duration) {
        (self.begun + self.passed, START + self.passed)
    }

    fn fleet(&self, sidecar: usize) -> Fleet {
        Fleet { count: self.slots.len() as u64, place: sidecar as u64 }
    }

    /// A request at a sidecar; whether it passes.
    fn request(&mut self, sidecar: usize, bill: &Bill, fate: Fate) -> bool {
        let (now, redis_now) = self.now();
        loop {
            match self.slots[sidecar].take(bill, now, redis_now) {
                Taken::Yes(_) => {
                    self.allow(bill);
                    return true;
                }
                Taken::No(_) => return false,
                Taken::Ask => {}
            }
            let fleet = self.fleet(sidecar);
            self.slots[sidecar].wait(bill);
            let order = self.slots[sidecar].order_share(bill, fleet, now);
            if !self.send(sidecar, &order, fate, |slot, reply| slot.learn_share(bill, &order, reply, now)) {
                return false;
            }
        }
    }

    fn part(&mut self, sidecar: usize, bill: &Bill) -> bool {
        let (now, redis_now) = self.now();
        let fleet = self.fleet(sidecar);
        let slot = &mut self.slots[sidecar];
        let passes = matches!(slot.take(bill, now, redis_now), Taken::Yes(_))
            || slot.charge_part(bill, fleet, redis_now).is_ok();
        if passes {
            self.allow(bill);
        }
        passes
    }

    fn settle(&mut self, sidecar: usize, what: Settle) {
        let now = self.now().0;
        if let Some(order) = self.slots[sidecar].settlement(KeyId(7), now, what) {
            self.send(sidecar, &order, Fate::Answered, |slot, reply| slot.learn_settled(&order, reply));
        }
    }

    fn send(
        &mut self,
        sidecar: usize,
        order: &Order,
        fate: Fate,
        learn: impl FnOnce(&mut Slot, &Reply),
    ) -> bool {
        let now = self.now().1;
        if fate != Fate::LostOnTheWay {
            let reply = self.server.charge(sidecar, order, now);
            if fate == Fate::Answered {
                learn(&mut self.slots[sidecar], &reply);
                return true;
            }
        }
        self.slots[sidecar].miss();
        false
    }

    fn allow(&mut self, bill: &Bill) {
        for (span, limit) in bill.limited() {
            let allowed = self.allowed.entry((span, span.number(START + self.passed))).or_default();
            *allowed += bill.cost();
            assert!(*allowed <= limit, "{allowed} of {limit} a {}", span.name());
        }
    }

    fn allowed(&self, span: Span) -> u64 {
        self.allowed.get(&(span, span.number(self.now().1))).copied().unwrap_or(0)
    }
}

#[test]
fn busy_key_asks_redis_seldom_and_an_idle_one_takes_nothing_ahead() {
    let mut world = World::new(1);
    let bill = bill(100_000, None, 1);
    assert!(world.request(0, &bill, Fate::Answered));
    assert_eq!(world.server.sum(Span::Minute, Span::Minute.number(START), None), 1);
    for _ in 0..5_000 {
        world.passed += Duration::from_millis(1);
        assert!(world.request(0, &bill, Fate::Answered));
    }
    let grants = world.server.0.iter().filter(|charge| charge.amount > 0).count();
    assert!(grants < 50, "{grants} shares for 5000 requests");
}

#[test]
fn share_shrinks_to_the_need_where_little_is_left() {
    let mut slot = Slot { spent: 1_000, granted: Some(Instant::now()), ..Slot::default() };
    let fleet = Fleet { count: 3, place: 0 };
    let mut grant = |used: u64| {
        let mut server = Server::default();
        let number = Span::Minute.number(START);
        server.0.push(Charge { span: Span::Minute, number, sidecar: 1, amount: used as i64 });
        let order = slot.order_share(&bill(100, None, 1), fleet, Instant::now());
        server.charge(0, &order, START).grant
    };
    assert_eq!([0, 50, 90, 94, 99, 100].map(&mut grant), [17, 9, 2, 1, 1, 0]);
}

#[test]
fn share_that_is_not_used_is_given_back_to_every_window_that_goes_on() {
    let mut world = World::new(1);
    let bill = bill(1_000, Some(10_000), 1);
    for _ in 0..50 {
        world.request(0, &bill, Fate::Answered);
    }
    world.passed = Duration::from_secs(59);
    for _ in 0..50 {
        world.request(0, &bill, Fate::Answered);
    }
    let used = |world: &World| world.server.sum(Span::Hour, Span::Hour.number(START), None);
    assert!(used(&world) > 100, "{}", used(&world));
    world.passed += TERM;
    world.settle(0, Settle::Open);
    assert_eq!(used(&world), 100);
    assert_eq!(world.server.sum(Span::Minute, Span::Minute.number(world.now().1), None), 0);
}

#[test]
fn share_is_not_used_past_the_end_of_its_window() {
    let mut world = World::new(1);
    world.passed = Duration::from_millis(59_900);
    let bill = bill(1_000, None, 1);
    for _ in 0..20 {
        world.request(0, &bill, Fate::Answered);
    }
    assert!(world.slots[0].share.left > 0);
    world.passed = Duration::from_secs(60);
    let (now, redis_now) = world.now();
    assert_eq!(world.slots[0].take(&bill, now, redis_now), Taken::Ask);
}

#[test]
fn answer_from_the_next_window_leaves_the_old_share_behind() {
    let mut world = World::new(1);
    world.passed = Duration::from_millis(59_900);
    let (bill, costly) = (bill(1_000, Some(10_000), 1), bill(1_000, Some(10_000), 100));
    for _ in 0..20 {
        world.request(0, &bill, Fate::Answered);
    }
    let slot = &mut world.slots[0];
    let (left, sent) = (slot.share.left, world.begun + world.passed);
    assert!(left > 0);
    // Asked for before the edge, and answered after it.
    let order = slot.order_share(&costly, ALONE, sent);
    let reply = world.server.charge(0, &order, START + Duration::from_secs(60));
    slot.learn_share(&costly, &order, &reply, sent);
    assert_eq!(slot.share.left, reply.grant);
    assert_eq!(slot.windows.map(|seen| seen.back), [0, left, 0], "back in the hour, which goes on");
}

#[test]
fn share_is_not_used_for_other_limits_than_it_was_charged_against() {
    let mut world = World::new(1);
    for _ in 0..20 {
        world.request(0, &bill(1_000, None, 1), Fate::Answered);
    }
    assert!(world.slots[0].share.left > 0);
    let (now, redis_now) = world.now();
    assert_eq!(world.slots[0].take(&bill(1_000, Some(5), 1), now, redis_now), Taken::Ask);
}

#[test]
fn what_passed_without_redis_is_told_when_it_is_back() {
    let mut world = World::new(3);
    let bill = bill(100, Some(10_000), 1);
    let passed: Vec<_> =
        (0..3).map(|sidecar| (0..100).filter(|_| world.part(sidecar, &bill)).count()).collect();
    assert_eq!(passed, [34, 33, 33]);
    for sidecar in 0..3 {
        world.settle(sidecar, Settle::All);
        // Once is enough.
        world.settle(sidecar, Settle::All);
    }
    assert_eq!(world.server.sum(Span::Hour, Span::Hour.number(START), None), 100);
    assert!((0..3).all(|sidecar| !world.request(sidecar, &bill, Fate::Answered)));
}

#[test]
fn part_is_of_what_was_left_when_redis_was_seen_last() {
    let mut world = World::new(2);
    let bill = bill(100, None, 1);
    (0..90).for_each(|_| assert!(world.request(0, &bill, Fate::Answered)));
    assert!(world.request(1, &bill, Fate::Answered));
    let rest = world.server.sum(Span::Minute, Span::Minute.number(START), None);
    let passes = (0..100).filter(|_| world.part(1, &bill)).count() as u64;
    assert!(passes <= (100 - rest).div_ceil(2) + 1, "{passes} with {rest} used");
}

#[test]
fn answer_that_was_lost_costs_the_key_nothing_in_the_end() {
    let mut world = World::new(1);
    let bill = bill(100, None, 1);
    (0..10).for_each(|_| assert!(world.request(0, &bill, Fate::Answered)));
    world.passed += TERM;
    assert!(!world.request(0, &bill, Fate::LostOnTheWayBack));
    assert!(world.request(0, &bill, Fate::Answered));
    world.settle(0, Settle::Leaving);
    assert_eq!(world.server.sum(Span::Minute, Span::Minute.number(START), None), 11);
}

#[test]
fn what_redis_takes_along_when_its_clock_goes_back_is_not_given_back() {
    let (mut slot, bill, now) = (Slot::default(), bill(100, None, 1), Instant::now());
    let reply = |number, used, grant| {
        let told = Told { number, used, mine: used };
        Reply { now: START, grant, windows: [Some(told), None, None] }
    };
    let order = slot.order_share(&bill, ALONE, now);
    slot.learn_share(&bill, &order, &reply(1000, 60, 60), now);
    assert_eq!(slot.share.left, 60);
    slot.share.left = 0;
    // Set back by ten minutes: what was used goes along into the earlier window.
    let order = slot.order_share(&bill, ALONE, now);
    slot.learn_share(&bill, &order, &reply(990, 61, 1), now);
    assert_eq!(slot.windows[0].back, 0);
    assert_eq!((slot.windows[0].number, slot.windows[0].used), (990, 61));
}

#[test]
fn answer_about_a_window_that_is_over_is_not_taken_for_the_present_ones() {
    let (mut slot, bill, now) = (Slot::default(), bill(100, None, 1), Instant::now());
    let reply = |number, mine, grant| {
        let told = Told { number, used: mine, mine };
        Reply { now: START, grant, windows: [Some(told), None, None] }
    };
    let first = slot.order_share(&bill, ALONE, now);
    let settled = slot.order(&bill);
    slot.learn_share(&bill, &first, &reply(11, 5, 5), now);
    // Sent before, and answered in the window before.
    slot.learn_settled(&settled, &reply(10, 40, 0));
    assert_eq!((slot.windows[0].number, slot.windows[0].back), (11, 0));
}

#[test]
fn what_is_over_of_a_share_is_there_for_the_next_one() {
    let (mut world, bill) = (World::new(1), bill(100, None, 1));
    let mut passed = (0..30).filter(|_| world.request(0, &bill, Fate::Answered)).count();
    assert!(world.slots[0].share.left > 10, "{}", world.slots[0].share.left);
    // It is over, and nothing was settled yet.
    world.passed += TERM;
    passed += (0..200).filter(|_| world.request(0, &bill, Fate::Answered)).count();
    assert_eq!(passed, 100);
}

#[test]
fn parts_together_are_the_whole() {
    for count in 1..8 {
        for whole in 0..30 {
            let parts = (0..count).map(|place| Fleet { count, place }.part(whole));
            assert_eq!(parts.sum::<u64>(), whole);
        }
    }
}

#[test]
fn refusal_is_believed_for_a_moment_and_for_as_much() {
    let mut world = World::new(1);
    assert!(world.request(0, &bill(5, None, 4), Fate::Answered));
    let orders = |world: &World| world.server.0.len();
    assert!(!world.request(0, &bill(5, None, 4), Fate::Answered));
    let before = orders(&world);
    assert!(!world.request(0, &bill(5, None, 4), Fate::Answered));
    assert_eq!(orders(&world), before);
    assert!(world.request(0, &bill(5, None, 1), Fate::Answered));
    let fleet = ALONE;
    let order = world.slots[0].order_share(&bill(5, None, 1), fleet, world.begun);
    assert_eq!(order.need, 1);
}

#[derive(Debug, Clone)]
enum Event {
    Requests {
        sidecar: usize,
        cost: u32,
        times: u64,
        fate: Fate,
    },
    Later {
        millis: u64,
    },
    Settle {
        sidecar: usize,
    },
    /// Redis forgets everything, and every sidecar notices.
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
            .prop_map(|(sidecar, cost, times, fate)| Event::Requests { sidecar, cost, times, fate }),
        3 => (1..20_000u64).prop_map(|millis| Event::Later { millis }),
        2 => (0..3usize).prop_map(|sidecar| Event::Settle { sidecar }),
        1 => Just(Event::Flush),
    ]
}

proptest! {
    /// `World::allow` checks each window as it goes.
    #[test]
    fn sidecars_together_never_exceed_a_limit(
        minute in 1..200u64,
        hour in proptest::option::of(1..400u64),
        events in proptest::collection::vec(events(), 1..60),
    ) {
        let mut world = World::new(3);
        for event in events {
            match event {
                Event::Requests { sidecar, cost, times, fate } => {
                    let bill = bill(minute, hour, cost);
                    for _ in 0..times {
                        world.request(sidecar, &bill, fate);
                    }
                }
                Event::Later { millis } => world.passed += Duration::from_millis(millis),
                Event::Settle { sidecar } => world.settle(sidecar, Settle::Open),
                Event::Flush => {
                    world.server.0.clear();
                    (0..3).for_each(|sidecar| world.settle(sidecar, Settle::All));
                }
            }
        }
        // Whatever was lost on the way, it is found with the next answer, and nothing is stranded.
        world.passed += DRY;
        for sidecar in 0..3 {
            world.request(sidecar, &bill(minute, hour, 1), Fate::Answered);
        }
        for what in [Settle::All, Settle::Leaving, Settle::Leaving] {
            (0..3).for_each(|sidecar| world.settle(sidecar, what));
        }
        for (span, _) in bill(minute, hour, 1).limited() {
            let used = world.server.sum(span, span.number(world.now().1), None);
            prop_assert_eq!(used, world.allowed(span), "in the {}", span.name());
        }
    }

    #[test]
    fn nothing_is_stranded_while_every_order_is_answered(
        limit in 1..500u64,
        requests in proptest::collection::vec((0..3usize, 1..5u32, 0..300u64), 1..200),
    ) {
        let mut world = World::new(3);
        for (sidecar, cost, millis) in requests {
            world.passed += Duration::from_millis(millis);
            world.request(sidecar, &bill(limit, None, cost), Fate::Answered);
            // What is documented: together never more than half of what was left, and less than a cost each.
            let held = |slot: &Slot| slot.share.left + slot.windows[0].back;
            let ahead: u64 = world.slots.iter().map(held).sum();
            prop_assert!(ahead <= limit / 2 + 3 * 3, "{} of {} taken ahead", ahead, limit);
        }
        (0..3).for_each(|sidecar| world.settle(sidecar, Settle::Leaving));
        let used = world.server.sum(Span::Minute, Span::Minute.number(world.now().1), None);
        prop_assert_eq!(used, world.allowed(Span::Minute));
    }
}
