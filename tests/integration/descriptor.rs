//! The descriptors that gRPC reflection serves are those of the generated types.
//!
//! After an update of `envoy-types`: `KEYSTILE_BLESS=1 cargo test --test integration descriptor`.

use std::{collections::BTreeSet, path::PathBuf, process::Command};

use prost::Message;
use prost_types::FileDescriptorSet;

const SERVICE: &str = "envoy/service/auth/v3/external_auth.proto";

#[test]
fn reflection_describes_the_service_that_is_compiled_in() {
    let all = std::fs::read(envoy_types().join("src/generated/types.bin")).expect("types.bin is readable");
    let all = FileDescriptorSet::decode(&*all).expect("types.bin is a descriptor set");
    let wanted = imports_of(&all, SERVICE);
    let files = all.file.into_iter().filter(|file| wanted.contains(file.name()));
    // Comments are most of a descriptor, and nobody asks reflection for them.
    let file = files.map(|file| prost_types::FileDescriptorProto { source_code_info: None, ..file });
    let expected = FileDescriptorSet { file: file.collect() }.encode_to_vec();
    if std::env::var_os("KEYSTILE_BLESS").is_some() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/ext_authz/descriptor.bin");
        std::fs::write(path, &expected).expect("descriptor.bin is writable");
        return;
    }
    assert!(
        expected == keystile::ext_authz::DESCRIPTOR_SET,
        "descriptor.bin is out of date: see this file's head"
    );
}

/// Where cargo keeps the sources of `envoy-types`.
fn envoy_types() -> PathBuf {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--filter-platform", &host()])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value =
        serde_json::from_slice(&metadata.stdout).expect("cargo answers in JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let package = packages.iter().find(|package| package["name"] == "envoy-types").expect("a dependency");
    PathBuf::from(package["manifest_path"].as_str().expect("a path")).parent().expect("a folder").to_owned()
}

/// This machine's platform: without it cargo wants the sources of every platform's packages.
fn host() -> String {
    let version = Command::new("rustc").arg("-vV").output().expect("rustc runs").stdout;
    let version = String::from_utf8(version).expect("text");
    version.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host").to_owned()
}

fn imports_of(all: &FileDescriptorSet, root: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(name) = open.pop() {
        let Some(file) = all.file.iter().find(|file| file.name() == name) else { continue };
        if seen.insert(name) {
            open.extend(file.dependency.iter().cloned());
        }
    }
    seen
}
