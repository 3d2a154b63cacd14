//! Budgets of a period: when they stand against a request, and against which.

use proptest::prelude::*;

use super::*;
use crate::record::{BudgetId, PeriodBudget, UnreadableBudget};

const TICK: Duration = Duration::NANOSECOND;

/// Spent, running now, about everything.
fn spent() -> PeriodBudget {
    PeriodBudget {
        id: BudgetId(3),
        limit_cents: 100,
        used_cents: 100.0,
        start: Expiry::At(NOW),
        end: Expiry::At(NOW + TICK),
        renews: true,
        is_hard: true,
        models: vec![],
        endpoints: vec![],
        shared: vec![],
    }
}

/// A key with one budget: the spent one, changed.
fn with(change: impl FnOnce(&mut PeriodBudget)) -> impl FnOnce(&mut Case) {
    let mut budget = spent();
    change(&mut budget);
    |case| case.record.period_budgets.rows.push(budget)
}

#[test]
fn use_of_other_keys_counts_during_the_period_of_their_row() {
    use crate::record::SharedUsage;
    let after = Expiry::At(NOW + TICK);
    let shared = |used_cents, start, end| SharedUsage { id: BudgetId(9), used_cents, start, end };
    for (own, renewed, shared, expected) in [
        (40.0, false, shared(60.0, Expiry::At(NOW), after), DENIED),
        (40.0, false, shared(59.0, Expiry::Always, Expiry::Never), Ok(())),
        (40.0, false, shared(60.0, Expiry::Always, Expiry::At(NOW)), Ok(())),
        (40.0, false, shared(60.0, after, Expiry::Never), Ok(())),
        // Its own use is that of an earlier period, the other's is not.
        (99.0, true, shared(99.0, Expiry::At(NOW), after), Ok(())),
        (0.0, true, shared(100.0, Expiry::At(NOW), after), DENIED),
    ] {
        let result = verdict(with(|budget| {
            (budget.used_cents, budget.shared) = (own, vec![shared.clone()]);
            if renewed {
                budget.end = Expiry::At(NOW);
            }
        }));
        assert_eq!(result, expected, "{own} {renewed} {shared:?}");
    }
}

/// A request that an otherwise spent budget of these models and endpoints is applied to.
fn verdict_of(models: &[&str], endpoints: &[&str], request: impl FnOnce(&mut Case)) -> Result<(), Reason> {
    let list = |entries: &[&str]| entries.iter().map(|entry| (*entry).to_owned()).collect();
    let (models, endpoints) = (list(models), list(endpoints));
    verdict(|case| {
        with(|budget| (budget.models, budget.endpoints) = (models, endpoints))(case);
        request(case);
    })
}

const DENIED: Result<(), Reason> = Err(Reason::BudgetExhausted);

#[test]
fn budget_denies_once_it_is_spent() {
    pair(Reason::BudgetExhausted, with(|budget| budget.used_cents = 99.99), with(|_| ()));
    pair(
        Reason::BudgetExhausted,
        with(|budget| budget.limit_cents = 101),
        with(|budget| budget.used_cents = 1e9),
    );
    for limit in [0, -1] {
        let none = |budget: &mut PeriodBudget| (budget.limit_cents, budget.used_cents) = (limit, -5.0);
        assert_eq!(verdict(with(none)), DENIED, "{limit}");
    }
}

#[test]
fn budget_without_a_hard_limit_never_denies() {
    for start in [NOW, NOW + TICK] {
        let soft = |budget: &mut PeriodBudget| {
            (budget.is_hard, budget.limit_cents, budget.start) = (false, 0, Expiry::At(start));
        };
        assert_eq!(verdict(with(soft)), Ok(()));
    }
}

#[test]
fn nothing_can_be_spent_before_the_period_begins() {
    let unused = |start| {
        with(move |budget| (budget.used_cents, budget.start, budget.end) = (0.0, start, Expiry::Never))
    };
    for (begun, ahead) in [(Expiry::At(NOW), Expiry::At(NOW + TICK)), (Expiry::Always, Expiry::Never)] {
        pair(Reason::BudgetExhausted, unused(begun), unused(ahead));
    }
}

#[test]
fn budget_that_renews_is_unused_from_its_end_on_and_any_other_binds_nobody() {
    let ended = |renews, limit, start| {
        with(move |budget| {
            (budget.renews, budget.limit_cents) = (renews, limit);
            (budget.start, budget.end) = (start, Expiry::At(NOW));
        })
    };
    let begun = Expiry::At(NOW - TICK);
    pair(Reason::BudgetExhausted, ended(true, 1, begun), ended(true, 0, begun));
    assert_eq!(verdict(ended(false, 0, begun)), Ok(()));
    // What is over has begun.
    assert_eq!(verdict(ended(true, 1, Expiry::Never)), Ok(()));
    assert_eq!(verdict(ended(false, 0, Expiry::Never)), Ok(()));
    let running = |renews| with(move |budget| budget.renews = renews);
    assert_eq!((verdict(running(true)), verdict(running(false))), (DENIED, DENIED));
}

#[test]
fn one_spent_budget_of_several_denies() {
    let several = |case: &mut Case| {
        with(|budget| budget.used_cents = 0.0)(case);
        with(|budget| budget.is_hard = false)(case);
    };
    pair(Reason::BudgetExhausted, several, |case| {
        with(|_| ())(case);
        several(case);
    });
}

#[test]
fn unlimited_key_is_bound_by_them_all_the_same() {
    let unlimited = |case: &mut Case| {
        with(|_| ())(case);
        case.record.budget = Budget { unlimited: Some(true), ..Budget::default() };
    };
    assert_eq!(verdict(unlimited), DENIED);
}

#[test]
fn budget_that_nobody_can_read_denies() {
    let unreadable = |case: &mut Case| {
        let budget = UnreadableBudget { id: Some(BudgetId(3)), column: "limit_cents", expected: "a value" };
        case.record.period_budgets.unreadable.push(budget);
    };
    assert_eq!(verdict(unreadable), DENIED);
}

#[test]
fn budget_of_some_models_is_about_these_alone() {
    let body = |body: Body<'static>| move |case: &mut Case| case.attributes.body = body;
    let model = |name: &str| body(Body::Whole(format!(r#"{{"model":"{name}"}}"#).into_bytes().into()));
    for (name, expected) in
        [("gpt-4o", DENIED), ("o1", DENIED), ("gpt-4o-mini", Ok(())), ("GPT-4o", DENIED), (" o1 ", DENIED)]
    {
        assert_eq!(verdict_of(&["o1", "gpt-4o"], &[], model(name)), expected, "{name}");
    }
    assert_eq!(verdict_of(&["gpt-*"], &[], model("gpt-4o")), Ok(()), "no patterns here");
    for unseen in [Body::Absent, Body::Unreadable, Body::Whole(b"{}".to_vec().into())] {
        assert_eq!(verdict_of(&["o1"], &[], body(unseen.clone())), DENIED, "{unseen:?} may be any");
        let no_model = |case: &mut Case| {
            case.attributes.body = unseen;
            case.route = route(&[("keystile.model", "ignore")]);
        };
        assert_eq!(verdict_of(&["o1"], &[], no_model), Ok(()), "left to the upstream");
    }
    let left = with(|budget| (budget.used_cents, budget.models) = (0.0, vec!["o1".into()]));
    let unseen_and_left = |case: &mut Case| {
        left(case);
        case.attributes.body = Body::Absent;
    };
    assert_eq!(verdict(unseen_and_left), Ok(()), "there is something left of it");
}

#[test]
fn budget_of_some_endpoints_is_about_these_alone() {
    let path = |path: &'static str| move |case: &mut Case| case.attributes.path = path;
    for (sent, expected) in [
        ("/v1/chat", DENIED),
        ("/v1/chats", Ok(())),
        ("/v1", Ok(())),
        ("/", Ok(())),
        // No way around: the same path in other words, and what may be any path.
        ("/v1/chat/", DENIED),
        ("/v1/Chat", DENIED),
        ("/v1/chat%20", DENIED),
        ("/v1/%63hat", DENIED),
        ("/v1//chat", DENIED),
        ("/v1/x/../chat", DENIED),
        ("/v1/chat;x", DENIED),
        ("", DENIED),
    ] {
        assert_eq!(verdict_of(&[], &["/v2", "/v1/chat"], path(sent)), expected, "{sent:?}");
    }
    for (sent, expected) in [
        ("/chat/completions", DENIED),
        ("/openai/v1/chat/completions", DENIED),
        ("/v1/Chat/completions/", DENIED),
        ("/v1/livechat/completions", Ok(())),
        ("/v1/completions", Ok(())),
        ("/v1/chat/completions/7", Ok(())),
    ] {
        assert_eq!(verdict_of(&[], &["chat/completions"], path(sent)), expected, "{sent:?}");
    }
    assert_eq!(verdict_of(&[], &["/v1/*", "/v1/**"], path("/v1/chat")), Ok(()), "no patterns here");
    for no_path in ["", "/v1/a;b", "POST /v1/chat", "/v1/../chat", "https://host/v1/chat"] {
        assert_eq!(verdict_of(&[], &[no_path], path("/v2")), DENIED, "{no_path:?} may mean any path");
    }
    for (models, endpoints, expected) in
        [(["gpt-4o"], ["/v1/chat"], DENIED), (["o1"], ["/v1/chat"], Ok(())), (["gpt-4o"], ["/v2"], Ok(()))]
    {
        assert_eq!(verdict_of(&models, &endpoints, path("/v1/chat")), expected, "both must fit");
    }
}

/// What becomes of an otherwise spent budget, changed, and a request.
fn binding(change: impl FnOnce(&mut PeriodBudget), request: impl FnOnce(&mut Case)) -> BudgetBinding {
    let case = Case::new(|case| {
        with(change)(case);
        request(case);
    });
    let mut all = bindings(&case.facts());
    let binding = all.pop().expect("one budget has one binding");
    assert_eq!(binding.denies, check(&case.facts()) == DENIED, "{binding:?}");
    binding
}

#[test]
fn explanation_says_where_a_budget_stands() {
    let at = crate::record::rfc3339(NOW);
    for (change, status, why) in [
        (
            &(|_: &mut PeriodBudget| ()) as &dyn Fn(&mut PeriodBudget),
            "spent: 100 of 100 cents until ",
            "it is for every path; it is for every model",
        ),
        (&|budget| budget.start = Expiry::Never, "begins at never", "it is for every path"),
        (
            &|budget| budget.end = Expiry::At(NOW),
            &format!("spent: 0 of 100 cents, renewed at {at}"),
            "it is for every path",
        ),
        (
            &|budget| (budget.end, budget.renews) = (Expiry::At(NOW), false),
            &format!("over at {at}"),
            "its period is over, and auto_renew is false",
        ),
        (
            &|budget| (budget.is_hard, budget.end) = (false, Expiry::Never),
            "spent: 100 of 100 cents",
            "enforce_hard_limit is false",
        ),
        (
            &|budget| (budget.start, budget.models) = (Expiry::Never, vec!["o1".into()]),
            "begins at never, models o1",
            "the request names none of its allowed_models",
        ),
    ] {
        let binding = binding(change, |_| ());
        assert!(binding.status.starts_with(status) && !binding.status.contains("until never"), "{binding:?}");
        assert!(binding.why.starts_with(why), "{binding:?}");
        assert_eq!(binding.binds, why.starts_with("it is"), "{binding:?}");
    }
}

#[test]
fn explanation_says_why_a_budget_binds_a_request_or_does_not() {
    let endpoints =
        |entry: &'static str| move |budget: &mut PeriodBudget| budget.endpoints = vec![entry.into()];
    let models = |entry: &'static str| move |budget: &mut PeriodBudget| budget.models = vec![entry.into()];
    let path = |path: &'static str| move |case: &mut Case| case.attributes.path = path;
    let ends = binding(endpoints("chat/completions"), path("/api/v1/llm/chat/completions"));
    assert_eq!(
        (ends.binds, ends.why.as_str()),
        (true, r#"the path matches "chat/completions"; it is for every model"#)
    );
    for (binding, binds, why) in [
        (binding(endpoints("chat/completions"), path("/v1/embeddings")), false, "the path matches none"),
        (
            binding(endpoints("/chat/completions"), path("/v1/chat/completions")),
            false,
            "the path matches none",
        ),
        (binding(endpoints("/v1/chat"), path("/v1/chat;x")), true, "servers read the path in different ways"),
        (binding(endpoints("POST /v1"), path("/v2")), true, r#""POST /v1" is not a path"#),
        (
            binding(models("gpt-4o"), |_| ()),
            true,
            r#"it is for every path; the request names the model "gpt-4o""#,
        ),
        (binding(models("o1"), |_| ()), false, "the request names none"),
        (
            binding(models("o1"), |case| case.attributes.body = Body::Absent),
            true,
            "it is for every path; the request could name any model: Envoy sent no body",
        ),
        (
            binding(models("gpt-4o"), |case| case.route = route(&[("keystile.model", "ignore")])),
            false,
            "keystile.model leaves models to the upstream",
        ),
    ] {
        assert!(binding.binds == binds && binding.why.starts_with(why), "{why}: {binding:?}");
    }
    let unreadable = Case::new(|case| {
        let budget = UnreadableBudget { id: None, column: "limit_cents", expected: "a whole number" };
        case.record.period_budgets.unreadable.push(budget);
    });
    let binding = bindings(&unreadable.facts()).remove(0);
    assert!(binding.binds && binding.denies && binding.why.contains("limit_cents is not a whole number"));
}

#[test]
fn explanation_of_the_check_names_the_budgets_that_bind() {
    let seen = |change: &dyn Fn(&mut Case)| {
        let check = CHECKS.iter().find(|check| check.name == "budget").expect("there is one");
        (check.looks_at)(&Case::new(change).facts())
    };
    let own = "spent: 12.5 of 5000 cents, total; budgets of a period: ";
    assert_eq!(seen(&|_| ()), format!("{own}none"));
    assert_eq!(seen(&with_each(&[true])), format!("{own}3"));
    assert_eq!(seen(&with_each(&[true, false, true])), format!("{own}3, 5"));
    assert_eq!(seen(&with_each(&[false])), format!("{own}none that binds this request"));
}

/// Budgets 3, 4 and so on, each with a hard limit or without.
fn with_each(hard: &'static [bool]) -> impl Fn(&mut Case) {
    move |case| {
        let budgets = hard.iter().zip(3..).map(|(hard, id)| PeriodBudget {
            id: BudgetId(id),
            is_hard: *hard,
            ..spent()
        });
        case.record.period_budgets.rows.extend(budgets);
    }
}

#[test]
fn budget_of_some_models_is_about_a_router_that_may_use_them() {
    let body = |text: &'static str| {
        move |case: &mut Case| case.attributes.body = Body::Whole(text.as_bytes().into())
    };
    for (text, expected) in [
        (r#"{"model":"a","models":["b"]}"#, Ok(())),
        (r#"{"model":"a","models":["b","O1"]}"#, DENIED),
        (r#"{"model":"a","fallbacks":["o1"]}"#, DENIED),
        (r#"{"model":"a","fallbacks":[{"a":["b"]}]}"#, DENIED),
        (r#"{"model":"a","routes":["o1"]}"#, Ok(())),
    ] {
        assert_eq!(verdict_of(&["o1"], &[], body(text)), expected, "{text}");
    }
}

/// Moments around now, the infinite ones among them.
fn moment() -> impl Strategy<Value = Expiry> {
    let near = (-2..=2_i64).prop_map(|ticks| Expiry::At(NOW + TICK * ticks as f64));
    prop_oneof![6 => near, 1 => Just(Expiry::Never), 1 => Just(Expiry::Always)]
}

fn some_of(names: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let list = proptest::sample::subsequence(names, 0..=names.len());
    list.prop_map(|names| names.into_iter().map(str::to_owned).collect())
}

prop_compose! {
    fn budget()(
        limit_cents in -1..3_i64, used in 0..3_u8, start in moment(), end in moment(), renews: bool, is_hard: bool,
        models in some_of(&["o1", "gpt-4o"]), endpoints in some_of(&["/a", "/b"]),
    ) -> PeriodBudget {
        let used_cents = used.into();
        PeriodBudget {
            id: BudgetId(1), limit_cents, used_cents, start, end, renews, is_hard, models, endpoints, shared: vec![],
        }
    }
}

/// The rules one after the other, as they are written down, with plain numbers for moments.
fn reference(budgets: &[PeriodBudget], model: &str, path: &str) -> bool {
    let nanoseconds = |moment| match moment {
        Expiry::Always => i128::MIN,
        Expiry::At(moment) => (moment - NOW).whole_nanoseconds(),
        Expiry::Never => i128::MAX,
    };
    for budget in budgets {
        let listed = |list: &[String], name: &str| list.is_empty() || list.iter().any(|entry| entry == name);
        if !budget.is_hard || !listed(&budget.models, model) || !listed(&budget.endpoints, path) {
            continue;
        }
        let (start, end) = (nanoseconds(budget.start), nanoseconds(budget.end));
        let mut used = budget.used_cents;
        if end <= 0 {
            if !budget.renews {
                continue;
            }
            used = 0.0;
        } else if start > 0 {
            return false;
        }
        if budget.limit_cents <= 0 || used >= budget.limit_cents as f64 {
            return false;
        }
    }
    true
}

proptest! {
    #[test]
    fn agrees_with_the_rules_one_after_the_other(
        budgets in proptest::collection::vec(budget(), 0..4),
        model in proptest::sample::select(&["o1", "gpt-4o", "other"][..]),
        path in proptest::sample::select(&["/a", "/b", "/c"][..]),
    ) {
        let passes = reference(&budgets, model, path);
        let verdict = verdict(|case| {
            case.record.period_budgets.rows = budgets;
            case.attributes.body = Body::Whole(format!(r#"{{"model":"{model}"}}"#).into_bytes().into());
            case.attributes.path = path.to_owned().leak();
        });
        prop_assert_eq!(verdict, if passes { Ok(()) } else { DENIED });
    }
}
