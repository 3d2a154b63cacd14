//! The bodies of requests and answers, as the OpenAPI document describes them. The columns that there are depend on the
//! database.
#![allow(dead_code, reason = "rows are written from the database's columns; these types describe them")]

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// A key. Columns that the database does not have are null.
#[derive(ToSchema)]
pub(super) struct Key {
    /// Number of the key.
    id: i64,
    /// The first eight characters of its credential. They prove nothing.
    key_prefix: String,
    name: Option<String>,
    description: Option<String>,
    user_id: Option<i64>,
    /// Whether it works. A revoked key does not.
    is_active: Option<bool>,
    created_at: Option<String>,
    updated_at: Option<String>,
    expires_at: Option<String>,
    deleted_at: Option<String>,
    deletion_reason: Option<String>,
    last_used_at: Option<String>,
    scopes: Option<Vec<String>>,
    tags: Option<Vec<String>>,
    permissions: Option<Value>,
    allowed_models: Option<Vec<String>>,
    allowed_endpoints: Option<Vec<String>>,
    allowed_ips: Option<Vec<String>>,
    allowed_chatbots: Option<Vec<Value>>,
    allowed_agents: Option<Vec<Value>>,
    allowed_extract_templates: Option<Vec<Value>>,
    rate_limit_per_minute: Option<i64>,
    rate_limit_per_hour: Option<i64>,
    rate_limit_per_day: Option<i64>,
    is_unlimited: Option<bool>,
    budget_limit_cents: Option<i64>,
    budget_type: Option<String>,
    total_requests: Option<i64>,
    total_tokens: Option<i64>,
    total_cost: Option<f64>,
    user_email: Option<String>,
    /// The version, also in the header `ETag`.
    version: String,
    /// The keys that it was rotated from and to, and itself. Absent for a key that was never rotated.
    chain: Option<Vec<i64>>,
    rotated_from: Option<i64>,
    /// When the key that it was rotated from ends, when that was used last, and how often since.
    predecessor_expires_at: Option<String>,
    predecessor_last_used_at: Option<String>,
    predecessor_requests_since_rotation: Option<i64>,
    rotated_to: Option<i64>,
    rotated_at: Option<String>,
    requests_since_rotation: Option<i64>,
    /// After a revocation: the other keys that were revoked with it.
    also_revoked: Option<Vec<i64>>,
    /// The API key, once: in the answer that created it, and in no replay.
    credential: Option<String>,
    /// With `wait`: the instances that have applied the change, and those that have not. Null if that is not known.
    instances: Option<Instances>,
}

/// The instances that have applied a change. A token with the scope `own` gets their numbers.
#[derive(ToSchema)]
pub(super) struct Instances {
    /// Those that have.
    confirmed: Value,
    /// Those that have not.
    missing: Value,
}

/// A page of keys.
#[derive(ToSchema)]
pub(super) struct KeyList {
    keys: Vec<Key>,
    /// The value of `after` for the next page. Null on the last one.
    next: Option<String>,
}

/// A key to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKeyBody {
    /// Id or email of its user. With a token of the scope `own`, it may be left out.
    user: Option<String>,
    #[schema(min_length = 1)]
    name: Option<String>,
    #[schema(min_length = 1)]
    description: Option<String>,
    /// Expiry time, such as 2030-12-31T23:59:59Z.
    expires_at: Option<String>,
    scopes: Option<Vec<String>>,
    tags: Option<Vec<String>>,
    allowed_models: Option<Vec<String>>,
    allowed_endpoints: Option<Vec<String>>,
    allowed_ips: Option<Vec<String>>,
    allowed_chatbots: Option<Vec<Value>>,
    allowed_agents: Option<Vec<Value>>,
    allowed_extract_templates: Option<Vec<Value>>,
    rate_limit_per_minute: Option<u32>,
    rate_limit_per_hour: Option<u32>,
    rate_limit_per_day: Option<u32>,
    budget_limit_cents: Option<u32>,
    #[schema(min_length = 1)]
    budget_type: Option<String>,
}

/// A change of a key (RFC 7386): null removes a value.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyPatch {
    name: Option<String>,
    description: Option<String>,
    is_active: Option<bool>,
    expires_at: Option<String>,
    deletion_reason: Option<String>,
    scopes: Option<Vec<String>>,
    tags: Option<Vec<String>>,
    permissions: Option<Value>,
    allowed_models: Option<Vec<String>>,
    allowed_endpoints: Option<Vec<String>>,
    allowed_ips: Option<Vec<String>>,
    allowed_chatbots: Option<Vec<Value>>,
    allowed_agents: Option<Vec<Value>>,
    allowed_extract_templates: Option<Vec<Value>>,
    rate_limit_per_minute: Option<u32>,
    rate_limit_per_hour: Option<u32>,
    rate_limit_per_day: Option<u32>,
    is_unlimited: Option<bool>,
    budget_limit_cents: Option<u32>,
    budget_type: Option<String>,
}

/// How to rotate a key.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RotationBody {
    /// How long both keys work, such as `7d`. Without it, the key ends at once.
    overlap: Option<String>,
    /// Expiry time of the successor. Without it, that of the key.
    expires_at: Option<String>,
    /// Name of the successor. Without it, that of the key.
    #[schema(min_length = 1)]
    name: Option<String>,
}

/// A key that was rotated.
#[derive(ToSchema)]
pub(super) struct RotatedKeyBody {
    /// The key that ends.
    predecessor: Key,
    /// The key in its place, with its credential.
    successor: Key,
    /// With `wait`: the instances that have applied the change, and those that have not.
    instances: Option<Instances>,
}

/// An API key whose row is looked for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CredentialBody {
    /// The whole API key.
    credential: String,
}

/// A request that is imagined.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExplainBody {
    /// Default: GET.
    method: Option<String>,
    /// Default: `/`.
    path: Option<String>,
    /// Address of the client.
    client: Option<String>,
    /// Model that the body names.
    model: Option<String>,
    /// Settings of the route.
    route: Option<std::collections::BTreeMap<String, String>>,
    /// Time of the request. Default: now.
    at: Option<String>,
}

/// What a request would get.
#[derive(ToSchema)]
pub(super) struct ExplanationBody {
    key_id: i64,
    /// `allow` or `deny`.
    decision: String,
    /// Whether the denial is only reported.
    shadowed: bool,
    /// The HTTP status.
    status: i32,
    /// The code of the first check that denies.
    code: Option<String>,
    detail: String,
    checks: Vec<CheckBody>,
    /// The rows of `budgets` of the key and of its user.
    budgets: Vec<BudgetBody>,
}

/// One check.
#[derive(ToSchema)]
pub(super) struct CheckBody {
    step: String,
    /// `pass`, `deny` or `skip`.
    result: String,
    code: Option<String>,
    /// The values that were compared.
    detail: String,
}

/// A row of `budgets`.
#[derive(ToSchema)]
pub(super) struct BudgetBody {
    budget_id: Option<i64>,
    /// Whether the row denies the request once it is spent.
    binds: bool,
    /// Whether the row denies the request now.
    denies: bool,
    detail: String,
    status: Option<String>,
}

/// A user. Columns that the database does not have are null.
#[derive(ToSchema)]
pub(super) struct User {
    /// Number of the user.
    id: i64,
    email: Option<String>,
    username: Option<String>,
    role: Option<String>,
    /// Whether the user's keys work.
    is_active: Option<bool>,
    /// Upstreams receive this flag. It allows nothing in Keystile.
    is_superuser: Option<bool>,
    account_locked: Option<bool>,
    account_locked_until: Option<String>,
    created_at: Option<String>,
    updated_at: Option<String>,
    last_login: Option<String>,
    /// The version, also in the header `ETag`.
    version: String,
    /// With `wait`: the instances that have applied the change, and those that have not. Null if that is not known.
    instances: Option<Instances>,
}

/// A page of users.
#[derive(ToSchema)]
pub(super) struct UserList {
    users: Vec<User>,
    /// The value of `after` for the next page. Null on the last one.
    next: Option<String>,
}

/// A user to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewUserBody {
    #[schema(min_length = 1)]
    email: String,
    #[schema(min_length = 1)]
    username: String,
    #[schema(min_length = 1)]
    role: Option<String>,
    is_superuser: Option<bool>,
}

/// A change of a user (RFC 7386): null removes a value.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UserPatch {
    email: Option<String>,
    username: Option<String>,
    role: Option<String>,
    is_active: Option<bool>,
    is_superuser: Option<bool>,
    account_locked: Option<bool>,
    account_locked_until: Option<String>,
}
