//! What Keystile writes is what the generated types read, and the upstream gets the record's texts exactly. The input is the
//! texts of a record, separated by NUL: name of the key, name, email and role of the user, then scopes.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex},
};

use envoy_types::{
    ext_authz::v3::pb::{CheckRequest, HttpResponse},
    pb::{
        envoy::service::auth::v3::{
            AttributeContext,
            attribute_context::{self, HttpRequest},
        },
        google::protobuf::{Struct, value::Kind},
    },
};
use keystile::{
    clock::Timestamps,
    credential::Prefix,
    decision::Tier,
    ext_authz::EncodedRecord,
    record::{Budget, Expiry, KeyId, KeyRecord, Limits, Lock, PeriodBudgets, Restrictions, User, UserId},
    store::{KeyStore, Lookup, StoreError},
};
use prost::Message;

#[allow(clippy::duplicate_mod, reason = "the tests load two targets that share it")]
#[path = "../service.rs"]
mod service;

use service::Service;

const CREDENTIAL: &str = "ks_sampleCredentialOfUnitTests";
const SHA256: &str = "$sha256$45351b373195cd8db117799da567f26932de918c88a9e6a05d6a64ca992e1bf8";

/// Of a value or a list that is longer, a header has this.
const TRUNCATED: &str = "!truncated";

/// A store that has the record of the input.
struct Keys(Arc<Mutex<Option<KeyRecord>>>);

impl KeyStore<EncodedRecord> for Keys {
    async fn records(&self, _: Prefix, _: Timestamps) -> Result<Arc<Lookup<EncodedRecord>>, StoreError> {
        let record = self.0.lock().expect("no panic").clone();
        let records: Vec<_> =
            record.into_iter().map(|record| Arc::new(EncodedRecord::from(record))).collect();
        Ok(Arc::new(Lookup::fresh(records, Tier::Database)))
    }
}

struct Bench {
    record: Arc<Mutex<Option<KeyRecord>>>,
    service: Service<Keys>,
}

/// One input at a time.
static BENCH: LazyLock<Mutex<Bench>> = LazyLock::new(|| {
    let record = Arc::new(Mutex::new(None));
    Mutex::new(Bench { service: Service::start(Keys(Arc::clone(&record))), record })
});

/// Fails if a fact does not hold for this input.
pub fn check(text: &str) {
    let mut texts = text.split('\0').map(str::to_owned);
    let mut next = || texts.next().filter(|text| !text.is_empty());
    let (key, name, email, role) = (next(), next(), next(), next());
    let scopes: Vec<_> = texts.filter(|scope| !scope.is_empty()).collect();
    let record = record(key.clone(), [name.clone(), email.clone(), role.clone()], scopes.clone());

    let bench = BENCH.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    *bench.record.lock().expect("no panic") = Some(record);
    let answer = bench.service.ask(&request());
    drop(bench);

    assert_eq!(answer.status.expect("an explicit status").code, 0);
    let Some(HttpResponse::OkResponse(ok)) = answer.http_response else { panic!("the key is good") };
    let mut headers = BTreeMap::new();
    for header in ok.headers.iter().filter_map(|option| option.header.as_ref()) {
        assert!(header.value.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{header:?}");
        assert_eq!(headers.insert(&*header.key, &*header.value), None, "{} twice", header.key);
    }
    for (header, text) in [
        ("x-auth-key-name", &key),
        ("x-auth-user-name", &name),
        ("x-auth-user-email", &email),
        ("x-auth-user-role", &role),
    ] {
        says(headers.get(header).copied(), text.as_deref());
    }
    match headers.get("x-auth-scopes").copied() {
        None => assert!(scopes.is_empty()),
        Some(TRUNCATED) => assert!(scopes.concat().len() > 1000),
        Some(list) => {
            let items: Vec<_> = list.split(',').map(decoded).collect();
            assert_eq!(items, scopes);
        }
    }

    let metadata = answer.dynamic_metadata.expect("metadata");
    let [user, key_fields] = ["user", "key"].map(|name| object(&metadata, name));
    for (fields, field, text) in
        [(user, "name", &name), (user, "email", &email), (user, "role", &role), (key_fields, "name", &key)]
    {
        let read = fields.fields.get(field).and_then(|value| value.kind.as_ref());
        match (read, text) {
            (Some(Kind::StringValue(read)), Some(text)) => assert_eq!(read, text, "{field}"),
            (None, None) => {}
            other => panic!("{field}: {other:?}"),
        }
    }
}

/// A header has the text, in a form from which it comes back exactly.
fn says(value: Option<&str>, text: Option<&str>) {
    match (value, text) {
        (Some(TRUNCATED), Some(text)) => assert!(text.len() > 1000, "{text}"),
        (Some(value), Some(text)) => assert_eq!(decoded(value), text),
        (value, text) => assert_eq!(value, text),
    }
}

/// Percent-decodes, and trims the spaces that no reader of a header sees.
fn decoded(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value.trim_matches(' ');
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        bytes.push(u8::from_str_radix(&after[..2], 16).expect("an escape"));
        rest = &after[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).expect("UTF-8")
}

fn object<'a>(metadata: &'a Struct, name: &str) -> &'a Struct {
    match metadata.fields[name].kind.as_ref() {
        Some(Kind::StructValue(fields)) => fields,
        other => panic!("{name}: {other:?}"),
    }
}

fn request() -> Vec<u8> {
    let headers = [("x-api-key".to_owned(), CREDENTIAL.to_owned())].into();
    let http = HttpRequest { method: "GET".into(), path: "/".into(), headers, ..HttpRequest::default() };
    let context = AttributeContext {
        request: Some(attribute_context::Request { http: Some(http), ..Default::default() }),
        ..AttributeContext::default()
    };
    CheckRequest { attributes: Some(context) }.encode_to_vec()
}

fn record(key: Option<String>, [name, email, role]: [Option<String>; 3], scopes: Vec<String>) -> KeyRecord {
    KeyRecord {
        id: KeyId(7),
        name: key,
        prefix: Prefix::parse(&CREDENTIAL[..Prefix::LEN]).expect("a prefix"),
        hash: SHA256.parse().expect("an accepted hash"),
        is_active: true,
        is_deleted: false,
        expiry: Expiry::Never,
        user: User {
            id: UserId(42),
            name,
            email,
            role,
            is_active: true,
            is_superuser: false,
            lock: Lock::Open,
        },
        scopes,
        tags: Vec::new(),
        permissions: None,
        allowed: Restrictions::default(),
        limits: Limits::default(),
        limit_id: KeyId(7),
        chain: None,
        budget: Budget { unlimited: Some(true), limit_cents: None, kind: None, spent_cents: None },
        period_budgets: PeriodBudgets::default(),
    }
}
