//! What is in `k8s/`, checked by the tools of its field.

mod commands;
mod custom_resources;
mod injected;
mod manifests;
mod monitoring;
mod policies;
