//! The input of every check of a policy.

use time::OffsetDateTime;

use crate::{
    attributes::{
        Attributes,
        body::{Models, NoName},
        route::RouteSettings,
    },
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

impl Facts<'_> {
    /// The models that the request's body names, in the fields that the route says.
    pub(super) fn models(&self) -> Result<Models, NoName> {
        self.attributes.body.models(&self.route.model_fields)
    }
}
