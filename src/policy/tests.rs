//! One row that allows and one that denies for each thing a key record can say.

use std::net::IpAddr;

use time::{Duration, macros::datetime};

use time::OffsetDateTime;

use super::*;
use crate::{
    attributes::body::Body,
    credential::Credential,
    record::{AllowList, Budget, Expiry, Lock, fixtures},
};
use crate::{attributes::route::RouteSettings, record::KeyRecord};

mod budgets;

const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

struct Case {
    record: KeyRecord,
    attributes: Attributes<'static>,
    route: RouteSettings,
}

impl Case {
    fn new(change: impl FnOnce(&mut Self)) -> Self {
        let attributes = Attributes {
            credential: Ok(Credential::parse(fixtures::CREDENTIAL.as_bytes()).expect("well-formed")),
            request_id: "",
            stream_id: "",
            method: "POST",
            path: "/v1/bots/7/chat",
            client: Some(IpAddr::from([10, 1, 2, 3])),
            vouched_client: None,
            is_grpc: false,
            body: Body::Whole(br#"{"model":"gpt-4o"}"#.to_vec().into()),
            route: Ok(RouteSettings::default()),
        };
        let mut case = Self { record: fixtures::record(), attributes, route: RouteSettings::default() };
        change(&mut case);
        case
    }

    fn facts(&self) -> Facts<'_> {
        Facts { record: &self.record, attributes: &self.attributes, route: &self.route, now: NOW }
    }
}

fn verdict(change: impl FnOnce(&mut Case)) -> Result<(), Reason> {
    check(&Case::new(change).facts())
}

/// Allowed after `allowing`, denied with `reason` after `denying`.
fn pair(reason: Reason, allowing: impl FnOnce(&mut Case), denying: impl FnOnce(&mut Case)) {
    assert_eq!(verdict(allowing), Ok(()), "{reason:?}: the allowing half");
    assert_eq!(verdict(denying), Err(reason), "{reason:?}: the denying half");
}

fn only<T: std::str::FromStr<Err: std::fmt::Debug>>(entries: &[&str]) -> AllowList<T> {
    AllowList::Only(entries.iter().map(|entry| entry.parse().expect("an entry")).collect())
}

fn route(extensions: &[(&str, &str)]) -> RouteSettings {
    RouteSettings::parse(extensions.iter().copied()).expect("readable")
}

#[test]
fn unrestricted_key_is_allowed_whatever_the_request() {
    let odd = |case: &mut Case| {
        case.attributes.path = "/../a%2fb;c";
        case.attributes.client = None;
        case.attributes.body = Body::Unreadable;
    };
    assert_eq!(verdict(odd), Ok(()));
}

#[test]
fn life_of_the_key() {
    let tick = Duration::NANOSECOND;
    pair(Reason::Disabled, |_| (), |case| case.record.is_active = false);
    pair(Reason::Disabled, |_| (), |case| case.record.is_deleted = true);
    for expired in [Expiry::At(NOW), Expiry::At(NOW - tick), Expiry::Always] {
        pair(
            Reason::Expired,
            |case| case.record.expiry = Expiry::At(NOW + tick),
            |case| case.record.expiry = expired,
        );
    }
    pair(Reason::UserInactive, |_| (), |case| case.record.user.is_active = false);
    for locked in [Lock::Closed, Lock::Until(NOW + tick)] {
        pair(
            Reason::UserInactive,
            |case| case.record.user.lock = Lock::Until(NOW),
            |case| case.record.user.lock = locked,
        );
    }
}

#[test]
fn what_stands_first_against_a_key_is_told() {
    let everything = |case: &mut Case| {
        case.record.is_active = false;
        case.record.expiry = Expiry::Always;
        case.record.allowed.ips = AllowList::Unreadable;
    };
    assert_eq!(verdict(everything), Err(Reason::Disabled));
}

#[test]
fn superuser_bypasses_nothing() {
    let superuser = |case: &mut Case| {
        case.record.user.is_superuser = true;
        case.route = route(&[("keystile.scopes", "admin")]);
    };
    assert_eq!(verdict(superuser), Err(Reason::ScopeMissing));
}

#[test]
fn addresses() {
    let allowed = |case: &mut Case| case.record.allowed.ips = only(&["192.0.2.1", "10.0.0.0/8"]);
    pair(Reason::IpNotAllowed, allowed, |case| {
        allowed(case);
        case.attributes.client = Some(IpAddr::from([11, 1, 2, 3]));
    });
    pair(Reason::IpNotAllowed, allowed, |case| {
        allowed(case);
        case.attributes.client = None;
    });
    pair(Reason::IpNotAllowed, |_| (), |case| case.record.allowed.ips = AllowList::Unreadable);
}

#[test]
fn endpoints() {
    let allowed =
        |case: &mut Case| case.record.allowed.endpoints = only(&["GET /v1/models", "POST /v1/bots/*/chat"]);
    pair(Reason::EndpointNotAllowed, allowed, |case| {
        allowed(case);
        case.attributes.method = "DELETE";
    });
    for path in ["/v1/bots/7", "/v1/bots/7/../8/chat", "/v1//bots/7/chat", "", "/v1/bots/a%2fb/chat"] {
        pair(Reason::EndpointNotAllowed, allowed, |case| {
            allowed(case);
            case.attributes.path = path;
        });
    }
    pair(Reason::EndpointNotAllowed, |_| (), |case| case.record.allowed.endpoints = AllowList::Unreadable);
}

#[test]
fn models() {
    let allowed = |case: &mut Case| case.record.allowed.models = only(&["o1", "gpt-4*"]);
    for body in [Body::Absent, Body::Unreadable, Body::Whole(br#"{"model":"claude"}"#.to_vec().into())] {
        pair(Reason::ModelNotAllowed, allowed, |case| {
            allowed(case);
            case.attributes.body = body.clone();
        });
        // A route without models leaves the list to the upstream.
        let ignored = |case: &mut Case| {
            allowed(case);
            case.attributes.body = body.clone();
            case.route = route(&[("keystile.model", "ignore")]);
        };
        assert_eq!(verdict(ignored), Ok(()));
    }
    let unreadable = |case: &mut Case| {
        case.record.allowed.models = AllowList::Unreadable;
        case.route = route(&[("keystile.model", "ignore")]);
    };
    assert_eq!(verdict(unreadable), Err(Reason::ModelNotAllowed));
}

#[test]
fn every_model_that_a_router_may_use_must_be_allowed() {
    let request = |case: &mut Case, body: &'static str| {
        case.record.allowed.models = only(&["a", "b*"]);
        case.attributes.body = Body::Whole(body.as_bytes().into());
    };
    for (allowed, denied) in [
        (r#"{"model":"a","models":["b1","a"]}"#, r#"{"model":"a","models":["b1","c"]}"#),
        (r#"{"model":"a","fallbacks":["b1"]}"#, r#"{"model":"a","fallbacks":["c"]}"#),
        (r#"{"model":"a","fallbacks":null}"#, r#"{"model":"a","fallbacks":[{"a":["b1"]}]}"#),
        (r#"{"model":"a","routes":["c"]}"#, r#"{"model":"c","models":["a"]}"#),
    ] {
        pair(Reason::ModelNotAllowed, |case| request(case, allowed), |case| request(case, denied));
    }
    let fields = |case: &mut Case, fields: &str| {
        request(case, r#"{"engine":"a","routes":["c"]}"#);
        case.route = route(&[("keystile.model_fields", fields)]);
    };
    pair(Reason::ModelNotAllowed, |case| fields(case, "engine"), |case| fields(case, "engine,routes"));
}

#[test]
fn scopes() {
    pair(
        Reason::ScopeMissing,
        |case| case.route = route(&[("keystile.scopes", "embed chat")]),
        |case| case.route = route(&[("keystile.scopes", "chat admin")]),
    );
    let none = |case: &mut Case| {
        case.record.scopes.clear();
        case.route = route(&[("keystile.scopes", "chat")]);
    };
    assert_eq!(verdict(none), Err(Reason::ScopeMissing), "no scopes are no scopes, not all");
}

#[test]
fn chatbots_and_agents() {
    let by_path = |case: &mut Case, name: &str| {
        case.record.allowed.chatbots = only(&[name]);
        case.route = route(&[("keystile.chatbot", "segment:3")]);
    };
    pair(Reason::ChatbotNotAllowed, |case| by_path(case, "7"), |case| by_path(case, "8"));
    let nowhere = |case: &mut Case| {
        by_path(case, "7");
        case.attributes.path = "/v1/bots";
    };
    assert_eq!(verdict(nowhere), Err(Reason::ChatbotNotAllowed));
    let left_to_the_upstream = |case: &mut Case| case.record.allowed.chatbots = only(&["8"]);
    pair(Reason::ChatbotNotAllowed, left_to_the_upstream, |case| {
        case.record.allowed.chatbots = AllowList::Unreadable
    });

    let by_path = |case: &mut Case, name: &str| {
        case.record.allowed.agents = only(&[name]);
        case.route = route(&[("keystile.agent", "segment:3")]);
    };
    pair(Reason::AgentNotAllowed, |case| by_path(case, "7"), |case| by_path(case, "8"));
}

#[test]
fn agents_in_the_body() {
    let request = |case: &mut Case, body: &'static str| {
        case.record.allowed.agents = only(&["clerk", "7"]);
        case.attributes.body = Body::Whole(body.as_bytes().into());
        case.route = route(&[("keystile.agent", "body:agent_config_id")]);
    };
    for (allowed, denied) in [
        (r#"{"agent_config_id":7}"#, r#"{"agent_config_id":8}"#),
        (r#"{"agent_config_id":"7"}"#, r#"{"agent_config_id":7.0}"#),
        (r#"{"agent_config_id":"clerk"}"#, r#"{"agent_config_id":null}"#),
        (r#"{"a":1,"agent_config_id":7}"#, "{}"),
        (r#"{"agent_config_id":7}"#, r#"{"agent_config_id":7,"agent_config_id":8}"#),
    ] {
        pair(Reason::AgentNotAllowed, |case| request(case, allowed), |case| request(case, denied));
    }
    let unseen = |case: &mut Case| {
        request(case, "{}");
        case.attributes.body = Body::Absent;
    };
    assert_eq!(verdict(unseen), Err(Reason::AgentNotAllowed));
}

#[test]
fn extract_templates_are_left_to_the_upstream_unless_they_cannot_be_read() {
    let templates =
        |list: AllowList<String>| move |case: &mut Case| case.record.allowed.extract_templates = list;
    pair(Reason::ExtractTemplateNotAllowed, templates(only(&["invoice"])), templates(AllowList::Unreadable));
}

#[test]
fn ignored_lock_stops_no_key() {
    assert_eq!(verdict(|case| case.record.user.lock = Lock::Ignored), Ok(()));
    let inactive = |case: &mut Case| {
        case.record.user.lock = Lock::Ignored;
        case.record.user.is_active = false;
    };
    assert_eq!(verdict(inactive), Err(Reason::UserInactive));
}

#[test]
fn budgets() {
    let budget = |limit, spent, kind: &str| {
        let kind = Some(kind.to_owned());
        move |case: &mut Case| {
            case.record.budget =
                Budget { unlimited: Some(false), limit_cents: limit, kind, spent_cents: spent };
        }
    };
    pair(
        Reason::BudgetExhausted,
        budget(Some(100), Some(99.99), "total"),
        budget(Some(100), Some(100.0), "total"),
    );
    pair(Reason::BudgetExhausted, budget(None, Some(1e9), "total"), budget(Some(0), Some(0.0), "total"));
    pair(Reason::BudgetExhausted, budget(Some(100), Some(1e9), "monthly"), budget(Some(0), None, "monthly"));
    let unlimited = |case: &mut Case| {
        budget(Some(0), Some(1e9), "total")(case);
        case.record.budget.unlimited = Some(true);
    };
    assert_eq!(verdict(unlimited), Ok(()));
}

#[test]
fn every_check_has_a_reason_of_its_own_and_says_what_it_looks_at() {
    let case = Case::new(|_| ());
    for (at, check) in CHECKS.iter().enumerate() {
        assert!(CHECKS[..at].iter().all(|other| other.reason != check.reason), "{}", check.name);
        assert!(!(check.looks_at)(&case.facts()).is_empty(), "{}", check.name);
    }
}
