//! The resources of the sidecar container. Its pod keeps its quality-of-service class.

use serde_json::{Value, json};

use crate::{
    config::Quantity,
    injector::{
        annotations::PodOptions,
        pod::{InvalidPod, containers},
        sidecar::Sidecar,
    },
};

/// The sidecar's resources; none where the pod sets resources for all its containers together.
///
/// # Errors
/// [`InvalidPod`] when a request is above its limit.
pub(super) fn of(pod: &Value, options: &PodOptions, sidecar: &Sidecar) -> Result<Option<Value>, InvalidPod> {
    let has_pod_resources = pod["spec"]["resources"].as_object().is_some_and(|all| !all.is_empty());
    let (cpu, memory) = if has_pod_resources {
        (Share::default(), Share::default())
    } else if is_guaranteed(pod) {
        (Share::exactly(&sidecar.guaranteed_cpu), Share::exactly(&sidecar.memory_limit))
    } else {
        // No cpu limit: bcrypt would be throttled for half of every 100 ms and miss Envoy's deadline.
        (
            Share { request: Some(&sidecar.cpu_request), limit: None },
            Share { request: Some(&sidecar.memory_request), limit: Some(&sidecar.memory_limit) },
        )
    };
    let cpu = cpu.with("cpu", options.cpu_request.as_ref(), options.cpu_limit.as_ref())?;
    let memory = memory.with("memory", options.memory_request.as_ref(), options.memory_limit.as_ref())?;

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

    /// Applies the pod's annotations. A default that contradicts them gives way.
    fn with(
        self,
        name: &str,
        request: Option<&'a Quantity>,
        limit: Option<&'a Quantity>,
    ) -> Result<Self, InvalidPod> {
        let exceeds = |a: Option<&Quantity>, b: Option<&Quantity>| {
            a.zip(b).is_some_and(|(request, limit)| request.value() > limit.value())
        };
        if exceeds(request, limit) {
            return Err(InvalidPod(format!(
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

/// Whether every container's requests equal its limits, for both cpu and memory.
fn is_guaranteed(pod: &Value) -> bool {
    let exact = |container: &Value| {
        ["cpu", "memory"].iter().all(|name| {
            let limit = quantity(&container["resources"]["limits"][name]);
            let request = &container["resources"]["requests"][name];
            // Without a request, Kubernetes takes the limit.
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
