//! What a sidecar knows of one key: the share that it has taken ahead, and what it has used. Pure.
//!
//! A share is charged in Redis when it is taken. So whatever becomes of it, all sidecars together let no
//! more through than the limit.

use std::time::{Duration, Instant};

use crate::{
    limits::{Bill, Counted, PerSpan, Span, Standing},
    record::{KeyId, Limits},
};

/// A share lasts so long at the most, and is then given back.
pub(super) const TERM: Duration = Duration::from_secs(2);

/// A share is to last for about so long at the present rate.
const HORIZON: Duration = Duration::from_secs(1);

/// A burst shorter than this is taken for one of this length, or it would be taken for a flood.
const SHORTEST: Duration = Duration::from_millis(100);

/// A refusal is believed so long: others may give back what they do not need.
const DRY: Duration = Duration::from_millis(250);

mod order;

pub(super) use order::{Fleet, Line, Order, Reply, Told};

/// What is known of one key.
#[derive(Debug, Default)]
pub(super) struct Slot {
    windows: PerSpan<Seen>,
    share: Share,
    /// What callers wait for.
    waiting: u64,
    /// Taken since the last grant.
    spent: u64,
    granted: Option<Instant>,
    dry: Option<Box<Dry>>,
}

/// What is known of one window.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    number: u64,
    /// Used by all, as Redis said last.
    used: u64,
    /// Used by this sidecar, as Redis knows it; shares count as used.
    mine: u64,
    /// Used by this sidecar without Redis, which is still to be told.
    debt: u64,
    /// Of `mine`, what was not used after all.
    back: u64,
}

#[derive(Debug, Default)]
struct Share {
    left: u64,
    until: Option<Instant>,
    /// The limits that it was charged against.
    limits: Limits,
    numbers: PerSpan<u64>,
}

#[derive(Debug)]
struct Dry {
    room: u64,
    until: Instant,
    limits: Limits,
    standing: Standing,
}

/// What comes of asking for a part of the share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is taken.
    Yes(Standing),
    /// Redis has just said no.
    No(Standing),
    /// There is not enough: Redis is to be asked.
    Ask,
}

/// What is settled with Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settle {
    /// What it does not know, and shares that are over.
    Open,
    /// All that was used, since it may have forgotten.
    All,
    /// What it does not know, and all shares.
    Leaving,
}

impl Slot {
    /// Takes the cost from the share.
    pub(super) fn take(&mut self, bill: &Bill, now: Instant, redis_now: Duration) -> Taken {
        self.close(Some(bill.limits), now);
        if self.share.left >= bill.cost() {
            self.share.left -= bill.cost();
            self.spent += bill.cost();
            return Taken::Yes(self.standing(bill, redis_now));
        }
        let dry = self.dry.as_ref().filter(|dry| now < dry.until && dry.limits == bill.limits);
        match dry.filter(|dry| bill.cost() > dry.room) {
            Some(dry) => Taken::No(dry.standing),
            None => Taken::Ask,
        }
    }

    /// Notes that a caller waits for the cost.
    pub(super) fn wait(&mut self, bill: &Bill) {
        self.waiting += bill.cost();
    }

    /// Asks for the cost alone.
    pub(super) fn order(&self, bill: &Bill) -> Order {
        let limits = bill.limits.per_span();
        let line = |span: Span| {
            let Seen { number, mine, .. } = self.windows[span as usize];
            Some(Line { limit: limits[span as usize]?, number, mine, back: 0, debt: 0 })
        };
        let windows = Span::ALL.map(line);
        Order { key: bill.key, need: bill.cost(), want: bill.cost(), part: 1, windows }
    }

    /// Asks for the cost, for what others wait for, and for what will be needed soon, and gives back what is over. The
    /// more sidecars there are and the less is left, the less is taken ahead: at the end, nothing.
    pub(super) fn order_share(&mut self, bill: &Bill, fleet: Fleet, now: Instant) -> Order {
        let since = self.granted.map(|granted| now.saturating_duration_since(granted).max(SHORTEST));
        let ahead = since.map_or(0.0, |since| self.spent as f64 * HORIZON.div_duration_f64(since));
        let want = bill.cost().max(self.waiting) + ahead as u64;
        let mut order = Order { want, part: 2 * fleet.count, ..self.order(bill) };
        // What is left of the last share goes back with it, or it would be missing from what is left for this one.
        for (line, seen) in order.windows.iter_mut().zip(&self.windows) {
            line.iter_mut().for_each(|line| line.back = seen.back);
        }
        order
    }

    /// Tells Redis what it does not know, and gives back what is not needed; `None` if there is nothing.
    pub(super) fn settlement(&mut self, key: KeyId, now: Instant, what: Settle) -> Option<Order> {
        match what {
            Settle::Leaving => self.give_back(),
            Settle::Open | Settle::All => self.close(None, now),
        }
        let all = what == Settle::All;
        let is_open = |seen: &&Seen| seen.debt > 0 || seen.back > 0 || (all && seen.mine > 0);
        self.windows.iter().find(is_open)?;
        let windows = self.windows.map(|seen| {
            let Seen { number, mine, debt, back, .. } = seen;
            (mine + debt > 0).then_some(Line { limit: 0, number, mine: mine + debt, back, debt })
        });
        Some(Order { key, need: 0, want: 0, part: 1, windows })
    }

    /// Takes an answer of Redis into account.
    pub(super) fn learn(&mut self, order: &Order, reply: &Reply) {
        let lines = order.windows.iter().zip(&reply.windows);
        for (seen, (line, told)) in self.windows.iter_mut().zip(lines) {
            let (Some(line), Some(told)) = (line, told) else { continue };
            // Told before the window began that is known already.
            if told.number + 1 == seen.number {
                continue;
            }
            if seen.number != told.number {
                let Told { number, used, mine } = *told;
                *seen = Seen { number, used, mine, ..Seen::default() };
                continue;
            }
            // Of another window, Redis settled nothing.
            let (debt, back) = if line.number == told.number { (line.debt, line.back) } else { (0, 0) };
            seen.used = told.used;
            // Answers may come in another order than they were given.
            seen.mine = told.mine.max(seen.mine.saturating_sub(back));
            seen.debt = seen.debt.saturating_sub(debt);
            seen.back = seen.back.saturating_sub(back);
        }
    }

    /// The same, of an order for a share that was sent at `sent`.
    pub(super) fn learn_share(&mut self, bill: &Bill, order: &Order, reply: &Reply, sent: Instant) {
        self.waiting = 0;
        self.learn(order, reply);
        self.find_lost(order, reply);
        if reply.grant == 0 {
            let room = bill.limited().map(|(span, limit)| reply.remaining(span, limit)).min();
            // By then the window may be another.
            let until = sent + reply.ends_in(bill).min(DRY);
            let (limits, standing) = (bill.limits, reply.standing(bill));
            self.dry = Some(Box::new(Dry { room: room.unwrap_or(0), until, limits, standing }));
            return;
        }
        let numbers = reply.windows.map(|told| told.map_or(0, |told| told.number));
        if self.share.limits != bill.limits || self.share.numbers != numbers {
            self.give_back();
        }
        self.dry = None;
        self.spent = 0;
        self.granted = Some(sent);
        // From when it was sent: Redis read its clock later, so its window is not over before that.
        let until = Some(sent + reply.ends_in(bill).min(TERM));
        let left = self.share.left + reply.grant;
        self.share = Share { left, until, limits: bill.limits, numbers };
    }

    /// Takes the answer to a settlement into account.
    pub(super) fn learn_settled(&mut self, order: &Order, reply: &Reply) {
        self.learn(order, reply);
        self.find_lost(order, reply);
    }

    /// One order at a time is sent for a share. So what Redis has charged besides is of one whose answer
    /// was lost: to be given back.
    fn find_lost(&mut self, order: &Order, reply: &Reply) {
        let lines = order.windows.iter().zip(&reply.windows);
        for (seen, (line, told)) in self.windows.iter_mut().zip(lines) {
            let (Some(line), Some(told)) = (line, told) else { continue };
            // Told of a window that is over by now; or Redis's clock was set back, and it took along what was used.
            if seen.number != told.number || told.number < line.number {
                continue;
            }
            let known = if line.number == told.number { line.mine.saturating_sub(line.back) } else { 0 };
            seen.back += told.mine.saturating_sub(known + reply.grant);
        }
    }

    /// An order had no answer. What it would have settled stays to be settled: told twice, it counts once.
    pub(super) fn miss(&mut self) {
        self.waiting = 0;
    }

    /// Charges without Redis, against this sidecar's part of each limit.
    pub(super) fn charge_part(
        &mut self,
        bill: &Bill,
        fleet: Fleet,
        redis_now: Duration,
    ) -> Result<Standing, Standing> {
        for (span, _) in bill.limited() {
            let (seen, number) = (&mut self.windows[span as usize], span.number(redis_now));
            if seen.number < number {
                *seen = Seen { number, ..Seen::default() };
            }
        }
        let fits = bill.limited().all(|(span, limit)| self.part_left(span, limit, fleet) >= bill.cost());
        if fits {
            bill.limited().for_each(|(span, _)| self.windows[span as usize].debt += bill.cost());
        }
        let standing = bill.standing(Counted::Divided, |span, limit| {
            let number = self.windows[span as usize].number;
            (self.part_left(span, limit, fleet), span.ends_in(number, redis_now))
        });
        if fits { Ok(standing) } else { Err(standing) }
    }

    /// What this sidecar may still use by itself: its part of the limit less what it has used, and no
    /// more than its part of what was left when Redis was seen last.
    fn part_left(&self, span: Span, limit: u64, fleet: Fleet) -> u64 {
        let Seen { used, mine, debt, back, .. } = self.windows[span as usize];
        let of_limit = fleet.part(limit).saturating_sub(mine.saturating_sub(back) + debt);
        let of_rest = fleet.part(limit.saturating_sub(used)).saturating_sub(debt);
        of_limit.min(of_rest)
    }

    /// Whether nothing is lost with it.
    pub(super) fn is_over(&self, redis_now: Duration) -> bool {
        let over = |(span, seen): (Span, &Seen)| seen.number < span.number(redis_now);
        self.share.left == 0 && Span::ALL.into_iter().zip(&self.windows).all(over)
    }

    /// Ends a share that is too old, or was charged against other limits.
    fn close(&mut self, limits: Option<Limits>, now: Instant) {
        let is_over = self.share.until.is_some_and(|until| now >= until);
        if is_over || limits.is_some_and(|limits| limits != self.share.limits) {
            self.give_back();
        }
    }

    /// Notes what is left of the share as to be given back, in the windows that go on.
    fn give_back(&mut self) {
        let left = std::mem::take(&mut self.share.left);
        for (seen, (number, limit)) in
            self.windows.iter_mut().zip(self.share.numbers.iter().zip(self.share.limits.per_span()))
        {
            if limit.is_some() && seen.number == *number {
                seen.back += left;
            }
        }
    }

    /// What is left, as far as is known.
    pub(super) fn standing(&self, bill: &Bill, redis_now: Duration) -> Standing {
        bill.standing(Counted::Redis, |span, limit| {
            let Seen { number, used, .. } = self.windows[span as usize];
            let present = span.number(redis_now);
            if number < present {
                return (limit, span.ends_in(present, redis_now));
            }
            let remaining = limit.saturating_sub(used) + self.share.left;
            (remaining.min(limit), span.ends_in(number, redis_now))
        })
    }
}

#[cfg(test)]
mod tests;
