//! The input of every check of a policy.

use time::OffsetDateTime;

use crate::{
    attributes::{Attributes, route::RouteSettings},
    record::KeyRecord,
};

/// The key, the request and the time of one decision.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The key.
    pub record: &'a KeyRecord,
    /// The request.
    pub attributes: &'a Attributes<'a>,
    /// What the request's route demands.
    pub route: &'a RouteSettings,
    /// The time of the decision.
    pub now: OffsetDateTime,
}
