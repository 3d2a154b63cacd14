//! The settings of the sidecar container that every injected pod gets.

use crate::config::{InjectOptions, Quantity, SidecarUser};

/// Settings of a sidecar container. A pod's annotations override some of them.
#[derive(Debug, Clone)]
pub struct Sidecar {
    pub(super) image: String,
    pub(super) image_pull_policy: String,
    pub(super) config: String,
    pub(super) keys_secret: String,
    pub(super) cpu_request: Quantity,
    pub(super) memory_request: Quantity,
    pub(super) memory_limit: Quantity,
    pub(super) guaranteed_cpu: Quantity,
    pub(super) admin_port: u16,
    pub(super) user: SidecarUser,
}

impl From<&InjectOptions> for Sidecar {
    fn from(options: &InjectOptions) -> Self {
        Self {
            image: options.image.clone(),
            image_pull_policy: options.image_pull_policy.clone(),
            config: options.config.clone(),
            keys_secret: options.keys_secret.clone(),
            cpu_request: options.cpu_request.clone(),
            memory_request: options.memory_request.clone(),
            memory_limit: options.memory_limit.clone(),
            guaranteed_cpu: options.guaranteed_cpu.clone(),
            admin_port: options.admin_port,
            user: options.user,
        }
    }
}
