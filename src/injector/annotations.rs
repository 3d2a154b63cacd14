//! Reads a pod's labels and annotations under `keystile.dev/`.

use serde_json::Value;

use super::pod::InvalidPod;
use crate::config::Quantity;

/// Prefix of every label and annotation.
const DOMAIN: &str = "keystile.dev/";
/// The label that turns injection on or off for a pod.
const LABEL: &str = "keystile.dev/inject";
/// The annotation that records what was injected.
pub(super) const STATUS: &str = "keystile.dev/status";
const ANNOTATIONS: &str = "config, keys-secret, envoy-container, log-level, cpu-request, memory-request, \
                           cpu-limit, memory-limit, native-sidecar";
const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Which pods of a namespace are injected. The path of the webhook decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Pods with the label `keystile.dev/inject: "true"`.
    LabelledPods,
    /// All pods but those with the label `keystile.dev/inject: "false"`.
    EnabledNamespace,
}

/// The options that a pod sets by annotation.
#[derive(Debug, Default, PartialEq)]
pub(super) struct PodOptions {
    pub(super) config: Option<String>,
    pub(super) keys_secret: Option<String>,
    pub(super) envoy_container: Option<String>,
    pub(super) log_level: Option<String>,
    pub(super) cpu_request: Option<Quantity>,
    pub(super) memory_request: Option<Quantity>,
    pub(super) cpu_limit: Option<Quantity>,
    pub(super) memory_limit: Option<Quantity>,
    pub(super) no_native_sidecar: bool,
}

impl PodOptions {
    /// Reads a pod's metadata. `None` for a pod that is not to be injected.
    pub(super) fn parse(pod: &Value, scope: Scope) -> Result<Option<Self>, InvalidPod> {
        let labels = under_domain(&pod["metadata"]["labels"], "labels")?;
        if let Some((name, _)) = labels.iter().find(|(name, _)| *name != "inject") {
            return Err(InvalidPod(format!(
                "label {DOMAIN}{name} of the pod is unknown; pods have {LABEL}, namespaces keystile.dev/injection"
            )));
        }
        match (labels.first().map(|(_, value)| *value), scope) {
            (Some("true"), _) | (None, Scope::EnabledNamespace) => {}
            (Some("false"), _) | (None, Scope::LabelledPods) => return Ok(None),
            (Some(value), _) => {
                return Err(InvalidPod(format!(
                    "label {LABEL}: {value:?} is neither \"true\" nor \"false\""
                )));
            }
        }
        let mut options = Self::default();
        for (name, value) in under_domain(&pod["metadata"]["annotations"], "annotations")? {
            options
                .set(name, value)
                .map_err(|problem| InvalidPod(format!("annotation {DOMAIN}{name}: {value:?} {problem}")))?;
        }
        Ok(Some(options))
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "config" => self.config = Some(object_name(value)?),
            "keys-secret" => self.keys_secret = Some(object_name(value)?),
            "envoy-container" => self.envoy_container = Some(object_name(value)?),
            "log-level" => self.log_level = Some(log_level(value)?),
            "cpu-request" => self.cpu_request = Some(cpu(value)?),
            "cpu-limit" => self.cpu_limit = Some(cpu(value)?),
            "memory-request" => self.memory_request = Some(memory(value)?),
            "memory-limit" => self.memory_limit = Some(memory(value)?),
            "native-sidecar" => self.no_native_sidecar = !boolean(value)?,
            // An earlier review wrote it. No decision rests on it.
            "status" => {}
            _ => return Err(format!("has a name that is none of {ANNOTATIONS}")),
        }
        Ok(())
    }
}

/// The labels or annotations under `keystile.dev/`, without that prefix.
fn under_domain<'a>(object: &'a Value, what: &str) -> Result<Vec<(&'a str, &'a str)>, InvalidPod> {
    let found = object
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.strip_prefix(DOMAIN)?, value)));
    found
        .map(|(name, value)| match value.as_str() {
            Some(text) => Ok((name, text)),
            None => Err(InvalidPod(format!("{what}: {DOMAIN}{name} is not a string"))),
        })
        .collect()
}

/// A DNS subdomain, as the names of ConfigMaps and Secrets are.
fn object_name(value: &str) -> Result<String, String> {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(inner)
    };
    if value.len() <= 253 && value.split('.').all(label) {
        Ok(value.to_owned())
    } else {
        Err("is not a valid Kubernetes name: lowercase letters, digits, hyphens and dots".into())
    }
}

fn log_level(value: &str) -> Result<String, String> {
    if LOG_LEVELS.contains(&value) {
        Ok(value.to_owned())
    } else {
        Err(format!("is none of {}", LOG_LEVELS.join(", ")))
    }
}

fn boolean(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "is neither \"true\" nor \"false\"".into())
}

fn cpu(value: &str) -> Result<Quantity, String> {
    quantity(value, 1e-3, "is finer than a thousandth of a cpu")
}

fn memory(value: &str) -> Result<Quantity, String> {
    quantity(value, 1.0, "is not a whole number of bytes; m is a thousandth, M a million")
}

fn quantity(value: &str, unit: f64, otherwise: &str) -> Result<Quantity, String> {
    let quantity: Quantity = value.parse()?;
    if quantity.is_multiple_of(unit) { Ok(quantity) } else { Err(otherwise.into()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(
        label: Option<&str>,
        annotations: Value,
        scope: Scope,
    ) -> Result<Option<PodOptions>, InvalidPod> {
        let labels = label.map_or(json!({ "app": "cart" }), |value| json!({ LABEL: value }));
        PodOptions::parse(&json!({ "metadata": { "labels": labels, "annotations": annotations } }), scope)
    }

    #[test]
    fn label_overrides_the_namespace() {
        let is_injected = |label, scope| parse(label, Value::Null, scope).expect("parses").is_some();
        assert!(is_injected(Some("true"), Scope::LabelledPods));
        assert!(!is_injected(None, Scope::LabelledPods));
        assert!(!is_injected(Some("false"), Scope::EnabledNamespace));
        assert!(is_injected(None, Scope::EnabledNamespace));
        let InvalidPod(message) =
            parse(Some("yes"), Value::Null, Scope::EnabledNamespace).expect_err("refused");
        assert!(message.contains("keystile.dev/inject") && message.contains("yes"), "{message}");
    }

    #[test]
    fn annotations_are_read() {
        let options = parse(
            Some("true"),
            json!({
                "keystile.dev/config": "cart.keystile",
                "keystile.dev/keys-secret": "keys",
                "keystile.dev/envoy-container": "proxy",
                "keystile.dev/log-level": "debug",
                "keystile.dev/cpu-request": "10m",
                "keystile.dev/memory-limit": "1Gi",
                "keystile.dev/native-sidecar": "false",
                "keystile.dev/status": "anything",
                "other.dev/unknown": "left alone",
            }),
            Scope::LabelledPods,
        );
        let expected = PodOptions {
            config: Some("cart.keystile".into()),
            keys_secret: Some("keys".into()),
            envoy_container: Some("proxy".into()),
            log_level: Some("debug".into()),
            cpu_request: Some("10m".parse().expect("an amount")),
            memory_limit: Some("1Gi".parse().expect("an amount")),
            no_native_sidecar: true,
            ..PodOptions::default()
        };
        assert_eq!(options.expect("parses"), Some(expected));
    }

    #[test]
    fn invalid_annotation_is_refused_by_name() {
        for (name, value) in [
            ("keystile.dev/cofnig", "x"),
            ("keystile.dev/config", "Not A Name"),
            ("keystile.dev/config", ""),
            ("keystile.dev/keys-secret", "-x"),
            ("keystile.dev/log-level", "verbose"),
            ("keystile.dev/cpu-request", "lots"),
            ("keystile.dev/cpu-limit", "0.0001"),
            ("keystile.dev/memory-request", "128m"),
            ("keystile.dev/memory-limit", "-1Gi"),
            ("keystile.dev/native-sidecar", "no"),
        ] {
            let options = parse(Some("true"), json!({ name: value }), Scope::LabelledPods);
            let InvalidPod(message) = options.expect_err(name);
            assert!(message.contains(name) && message.contains(value), "{message}");
        }
        let typo = json!({ "metadata": { "labels": { "keystile.dev/injection": "enabled" } } });
        let InvalidPod(message) = PodOptions::parse(&typo, Scope::EnabledNamespace).expect_err("refused");
        assert!(message.contains("keystile.dev/injection"), "{message}");
    }
}
