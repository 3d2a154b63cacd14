//! What the sidecar may use, so that its pod keeps its quality of service.

use serde_json::{Value, json};

use super::{Refused, Sidecar, containers};
use crate::{config::Quantity, injector::asked::Asked};

/// The sidecar's resources; none where the pod has set its own as a whole.
///
/// # Errors
/// When more is requested than may be used.
pub(super) fn of(pod: &Value, asked: &Asked, sidecar: &Sidecar) -> Result<Option<Value>, Refused> {
    let shares_the_pods = pod["spec"]["resources"].as_object().is_some_and(|all| !all.is_empty());
    let (cpu, memory) = match (shares_the_pods, is_guaranteed(pod)) {
        (true, _) => (Share::default(), Share::default()),
        (false, true) => (Share::exactly(&sidecar.guaranteed_cpu), Share::exactly(&sidecar.memory_limit)),
        (false, false) => (
            // No limit: bcrypt would be throttled for half of every 100 ms and miss Envoy's deadline.
            Share { request: Some(&sidecar.cpu_request), limit: None },
            Share { request: Some(&sidecar.memory_request), limit: Some(&sidecar.memory_limit) },
        ),
    };
    let cpu = cpu.with("cpu", asked.cpu_request.as_ref(), asked.cpu_limit.as_ref())?;
    let memory = memory.with("memory", asked.memory_request.as_ref(), asked.memory_limit.as_ref())?;

    let mut resources = json!({});
    for (name, share) in [("cpu", cpu), ("memory", memory)] {
        for (kind, amount) in [("requests", share.request), ("limits", share.limit)] {
            if let Some(amount) = amount {
                resources[kind][name] = json!(amount.to_string());
            }
        }
    }
    Ok(resources.as_object().is_some_and(|all| !all.is_empty()).then_some(resources))
}

/// A request and a limit.
#[derive(Debug, Clone, Copy, Default)]
struct Share<'a> {
    request: Option<&'a Quantity>,
    limit: Option<&'a Quantity>,
}

impl<'a> Share<'a> {
    fn exactly(amount: &'a Quantity) -> Self {
        Self { request: Some(amount), limit: Some(amount) }
    }

    /// What the pod asks for goes before; the default beside it gives way.
    fn with(
        self,
        name: &str,
        request: Option<&'a Quantity>,
        limit: Option<&'a Quantity>,
    ) -> Result<Self, Refused> {
        let exceeds = |a: Option<&Quantity>, b: Option<&Quantity>| {
            a.zip(b).is_some_and(|(request, limit)| request.value() > limit.value())
        };
        if exceeds(request, limit) {
            return Err(Refused(format!(
                "annotation keystile.dev/{name}-request is above keystile.dev/{name}-limit"
            )));
        }
        let must_be_equal = self.request.is_some() && self.request == self.limit;
        match (request, limit) {
            (Some(amount), None) | (None, Some(amount)) if must_be_equal => Ok(Self::exactly(amount)),
            (Some(_), None) if exceeds(request, self.limit) => Ok(Self { request, limit: request }),
            (None, Some(_)) if exceeds(self.request, limit) => Ok(Self { request: limit, limit }),
            _ => Ok(Self { request: request.or(self.request), limit: limit.or(self.limit) }),
        }
    }
}

/// Whether every container may use exactly what it requests, of both.
fn is_guaranteed(pod: &Value) -> bool {
    let exact = |container: &Value| {
        ["cpu", "memory"].iter().all(|name| {
            let limit = quantity(&container["resources"]["limits"][name]);
            let request = &container["resources"]["requests"][name];
            // A request that is not written is the limit's.
            limit.is_some() && (request.is_null() || quantity(request) == limit)
        })
    };
    let mut all = containers(pod).map(|(_, _, container)| container).peekable();
    all.peek().is_some() && all.all(exact)
}

/// An amount, whether it is written as text or as a number.
fn quantity(value: &Value) -> Option<f64> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.parse::<Quantity>().ok().map(|quantity| quantity.value())
}
