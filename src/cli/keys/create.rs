//! The flags of `keystile keys create`.

use std::{fmt::Display, str::FromStr};

use clap::{Args, builder::NonEmptyStringValueParser};
use time::OffsetDateTime;

use super::credential_output::CredentialOutput;
use crate::{
    clock,
    config::{
        BcryptCost, DatabaseOptions,
        moment::{self, MomentError},
    },
    credential::generate::Brand,
    record::{Limits, endpoint::Endpoint, model::ModelPattern, network::Network},
    store::NewKey,
};

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Id or email of the key's user.
    #[arg(long)]
    user: String,
    /// Name of the key.
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Purpose of the key.
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    description: Option<String>,
    /// Expiry time, such as 2026-12-31T23:59:59Z, or a duration from now, such as 90d.
    #[arg(long, value_name = "TIME", value_parser = expiry)]
    expires_at: Option<OffsetDateTime>,
    /// Scope of the key; repeatable. Without any, the key has no scopes.
    #[arg(long = "scope", value_name = "SCOPE", value_parser = word)]
    scopes: Vec<String>,
    /// Tag of the key; repeatable.
    #[arg(long = "tag", value_name = "TAG", value_parser = NonEmptyStringValueParser::new())]
    tags: Vec<String>,
    /// Allowed model, such as gpt-4o or gpt-4*; repeatable. Without any, every model is allowed.
    #[arg(long = "allowed-model", value_name = "MODEL", value_parser = entry::<ModelPattern>, help_heading = "Restrictions")]
    models: Vec<String>,
    /// Allowed endpoint, such as 'POST /v1/chat/*' or '/v1/**'; repeatable.
    #[arg(long = "allowed-endpoint", value_name = "ENDPOINT", value_parser = entry::<Endpoint>, help_heading = "Restrictions")]
    endpoints: Vec<String>,
    /// Allowed client address or network, such as 10.0.0.0/8; repeatable.
    #[arg(long = "allowed-ip", value_name = "ADDRESS", value_parser = entry::<Network>, help_heading = "Restrictions")]
    ips: Vec<String>,
    /// Allowed chatbot; repeatable.
    #[arg(long = "allowed-chatbot", value_name = "CHATBOT", value_parser = NonEmptyStringValueParser::new(), help_heading = "Restrictions")]
    chatbots: Vec<String>,
    /// Allowed agent; repeatable.
    #[arg(long = "allowed-agent", value_name = "AGENT", value_parser = NonEmptyStringValueParser::new(), help_heading = "Restrictions")]
    agents: Vec<String>,
    /// Allowed extraction template; repeatable. Enforced by the upstream.
    #[arg(long = "allowed-extract-template", value_name = "TEMPLATE", value_parser = NonEmptyStringValueParser::new(), help_heading = "Restrictions")]
    extract_templates: Vec<String>,
    /// Maximum number of requests in a minute; 0 denies every request.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true, value_parser = count, help_heading = "Restrictions")]
    rate_limit_per_minute: Option<u64>,
    /// Maximum number of requests in an hour.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true, value_parser = count, help_heading = "Restrictions")]
    rate_limit_per_hour: Option<u64>,
    /// Maximum number of requests in a day.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true, value_parser = count, help_heading = "Restrictions")]
    rate_limit_per_day: Option<u64>,
    /// Budget in cents; 0 denies every request. Without it, the budget is unlimited.
    #[arg(long, value_name = "CENTS", allow_negative_numbers = true, value_parser = cents, help_heading = "Restrictions")]
    budget_limit_cents: Option<i64>,
    /// Period of the budget, such as total or monthly.
    #[arg(long, value_name = "TYPE", value_parser = NonEmptyStringValueParser::new(), requires = "budget_limit_cents", help_heading = "Restrictions")]
    budget_type: Option<String>,

    /// Beginning of the key: at most 4 characters.
    #[arg(long, env = "KEYSTILE_KEY_BRAND", default_value = "ks_", help_heading = "Making")]
    pub(super) brand: Brand,
    /// bcrypt cost of the hash. Each step doubles the work to prove the key, and to guess it. `auto` is 12.
    #[arg(long, env = "KEYSTILE_BCRYPT_COST", default_value = "auto", help_heading = "Making")]
    pub(super) cost: BcryptCost,

    #[command(flatten)]
    pub(super) output: CredentialOutput,
    #[command(flatten)]
    pub(super) database: DatabaseOptions,
}

impl Create {
    pub(super) fn new_key(&self) -> NewKey {
        NewKey {
            user: self.user.clone(),
            name: self.name.clone(),
            description: self.description.clone(),
            expires_at: self.expires_at,
            scopes: self.scopes.clone(),
            tags: self.tags.clone(),
            models: self.models.clone(),
            endpoints: self.endpoints.clone(),
            ips: self.ips.clone(),
            chatbots: self.chatbots.clone(),
            agents: self.agents.clone(),
            extract_templates: self.extract_templates.clone(),
            limits: Limits {
                minute: self.rate_limit_per_minute,
                hour: self.rate_limit_per_hour,
                day: self.rate_limit_per_day,
            },
            budget_limit_cents: self.budget_limit_cents,
            budget_type: self.budget_type.clone(),
            max_keys: None,
        }
    }
}

pub(super) fn expiry(text: &str) -> Result<OffsetDateTime, String> {
    expiry_at(text, clock::wall())
}

fn expiry_at(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, String> {
    match moment::ahead(text, now) {
        Err(MomentError::Form) => Err(moment::FORM.into()),
        Ok(end) if end <= now => Err("is in the past; the key would never work".into()),
        // Every database and every reader of it agrees on years of four digits.
        Ok(end) if end.year() <= 9999 => Ok(end),
        Ok(_) | Err(MomentError::Distance) => Err("is too far away; a key without it never expires".into()),
    }
}

/// Scopes are written with spaces between them, so none can have one.
pub(super) fn word(text: &str) -> Result<String, &'static str> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err("is not a single word; repeat --scope for several");
    }
    Ok(text.to_owned())
}

/// No more than an `integer` column holds.
pub(super) fn count(text: &str) -> Result<u64, &'static str> {
    let number = text.parse::<u64>().ok().filter(|number| i32::try_from(*number).is_ok());
    number.ok_or("is not a whole number from 0 to 2147483647")
}

pub(super) fn cents(text: &str) -> Result<i64, &'static str> {
    text.parse().ok().filter(|cents| *cents >= 0).ok_or("is not a whole number from 0")
}

/// A valid entry of a list. An invalid one would deny the key.
pub(super) fn entry<T: FromStr<Err: Display>>(text: &str) -> Result<String, String> {
    match text.parse::<T>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

    #[test]
    fn expiry_is_a_time_or_a_duration_from_now() {
        assert_eq!(expiry_at("2026-01-02T05:04:05+01:00", NOW), Ok(datetime!(2026-01-02 04:04:05 UTC)));
        assert_eq!(expiry_at("90d", NOW), Ok(datetime!(2026-04-02 03:04:05 UTC)));
        for bad in ["", "soon", "2026-01-02", "2026-01-02T03:04:05Z", "0s", "10000y"] {
            assert!(expiry_at(bad, NOW).is_err(), "{bad}");
        }
    }
}
