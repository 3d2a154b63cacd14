//! Query strings. An unknown or wrong parameter is an error that names it.

use std::{fmt::Display, num::NonZeroUsize, str::FromStr, time::Duration};

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use time::OffsetDateTime;

use super::{
    api::Api,
    problem::{Answer, Problem},
};
use crate::{
    clock,
    config::{
        duration_or_none,
        moment::{self, MomentError},
    },
    store::{KeyFilter, KeySort, KeyState, PageRequest},
};

/// The parameters of a request, in order.
pub(super) struct Parameters(Vec<(String, String)>);

/// Maximum number of keys or users in a page.
pub(super) const MAX_PAGE: usize = 200;
const DEFAULT_PAGE: usize = 50;

/// Maximum time to wait for instances.
const MAX_WAIT: Duration = Duration::from_secs(30);

impl FromRequestParts<Api> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, Problem> {
        let Query(parameters) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|_| Problem::malformed("the query string is malformed"))?;
        match parameters.iter().find(|(name, value)| name.contains('\0') || value.contains('\0')) {
            Some((name, _)) => Err(wrong(name, "has the character U+0000")),
            None => Ok(Self(parameters)),
        }
    }
}

impl Parameters {
    /// Takes a parameter that may be there once.
    pub(super) fn take(&mut self, name: &str) -> Answer<Option<String>> {
        let mut values = self.take_all(name);
        if values.len() > 1 {
            return Err(wrong(name, "is there more than once"));
        }
        Ok(values.pop())
    }

    fn take_all(&mut self, name: &str) -> Vec<String> {
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(|(other, _)| other == name);
        self.0 = left;
        let taken: Vec<(String, String)> = taken;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    pub(super) fn take_parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Answer<Option<T>> {
        let parse = |value: String| value.parse().map_err(|error: T::Err| wrong(name, error));
        self.take(name)?.map(parse).transpose()
    }

    /// Takes a parameter that is `true` or `false`.
    pub(super) fn take_flag(&mut self, name: &str) -> Answer<bool> {
        match self.take(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(wrong(name, "is neither true nor false")),
        }
    }

    /// Takes `wait`.
    pub(super) fn take_wait(&mut self) -> Answer<Option<Duration>> {
        let Some(text) = self.take("wait")? else { return Ok(None) };
        match duration_or_none(&text) {
            Ok(wait) if wait <= MAX_WAIT => Ok(Some(wait)),
            Ok(_) => Err(wrong("wait", "is over 30s")),
            Err(error) => Err(wrong("wait", error)),
        }
    }

    /// Takes the filters of a list of keys.
    pub(super) fn take_filter(&mut self) -> Answer<KeyFilter> {
        let state = match self.take("state")?.as_deref() {
            None | Some("active") => KeyState::Active,
            Some("revoked") => KeyState::Revoked,
            Some("all") => KeyState::Any,
            Some(_) => return Err(wrong("state", "is none of active, revoked, all")),
        };
        let expired = self.take_flag("expired")?;
        Ok(KeyFilter {
            user: self.take("user")?,
            tags: self.take_all("tag"),
            prefix: self.take("prefix")?,
            unused_since: self.take_moment("unused_since", moment::ago)?,
            expiring_before: self.take_moment("expiring_before", moment::ahead)?,
            expired,
            state,
        })
    }

    /// Takes the order and the place of a page.
    pub(super) fn take_page(&mut self) -> Answer<PageRequest> {
        let sort = match self.take("sort")?.as_deref() {
            None | Some("created") => KeySort::Created,
            Some("last-used") => KeySort::LastUsed,
            Some("expires") => KeySort::Expires,
            Some("name") => KeySort::Name,
            Some(_) => return Err(wrong("sort", "is none of created, last-used, expires, name")),
        };
        let reverse = self.take_flag("reverse")?;
        let page =
            PageRequest { sort, reverse, limit: Some(self.take_limit()?), after: self.take_parsed("after")? };
        if page.after.as_ref().is_some_and(|after| !after.fits(sort, reverse)) {
            return Err(wrong("after", "is the cursor of a list in another order"));
        }
        Ok(page)
    }

    /// Takes the size of a page.
    pub(super) fn take_limit(&mut self) -> Answer<NonZeroUsize> {
        let Some(text) = self.take("limit")? else {
            return Ok(NonZeroUsize::new(DEFAULT_PAGE).unwrap_or(NonZeroUsize::MIN));
        };
        let limit = text.parse().ok().filter(|limit: &NonZeroUsize| limit.get() <= MAX_PAGE);
        limit.ok_or_else(|| wrong("limit", format!("is not a number from 1 to {MAX_PAGE}")))
    }

    /// Takes a time, or its distance from now.
    fn take_moment(
        &mut self,
        name: &str,
        read: fn(&str, OffsetDateTime) -> Result<OffsetDateTime, MomentError>,
    ) -> Answer<Option<OffsetDateTime>> {
        let Some(text) = self.take(name)? else { return Ok(None) };
        read(&text, clock::wall()).map(Some).map_err(|_| wrong(name, moment::FORM))
    }

    /// Refuses parameters that are left.
    pub(super) fn finish(self) -> Answer<()> {
        match self.0.first() {
            Some((name, _)) => Err(wrong(name, "is no parameter of this operation")),
            None => Ok(()),
        }
    }
}

fn wrong(name: &str, problem: impl Display) -> Problem {
    Problem::malformed(format!("{name}: {problem}")).of_field(name)
}
