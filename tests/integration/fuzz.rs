//! The facts that `make fuzz` looks for exceptions to, for its seeds and for inputs near them. It needs no fuzzer, and finds
//! facts that no longer build or hold.

use std::{collections::BTreeSet, fs, panic, path::Path};

use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::IndexedRandom};

#[path = "../../fuzz/facts/address_list.rs"]
mod address_list;
#[path = "../../fuzz/facts/admission_review.rs"]
mod admission_review;
#[path = "../../fuzz/facts/check_request.rs"]
mod check_request;
#[path = "../../fuzz/facts/check_response.rs"]
mod check_response;
#[path = "../../fuzz/facts/config_values.rs"]
mod config_values;
#[path = "../../fuzz/facts/credential.rs"]
mod credential;
#[allow(clippy::duplicate_mod, reason = "two targets share it")]
#[path = "../../fuzz/fields.rs"]
mod fields;
#[path = "../../fuzz/facts/frames.rs"]
mod frames;
#[path = "../../fuzz/facts/import_line.rs"]
mod import_line;
#[path = "../../fuzz/facts/key_hash.rs"]
mod key_hash;
#[path = "../../fuzz/facts/media_type.rs"]
mod media_type;
#[path = "../../fuzz/facts/model.rs"]
mod model;
#[path = "../../fuzz/facts/path.rs"]
mod path;
#[path = "../../fuzz/facts/pod_review.rs"]
mod pod_review;
#[path = "../../fuzz/facts/postgres_url.rs"]
mod postgres_url;
#[path = "../../fuzz/facts/route_settings.rs"]
mod route_settings;
#[path = "../../fuzz/facts/sealed_entry.rs"]
mod sealed_entry;
#[path = "../../fuzz/facts/timestamp.rs"]
mod timestamp;
#[path = "../../fuzz/facts/wire.rs"]
mod wire;

/// Inputs near each seed. A fuzzer tries millions.
const MUTATIONS: usize = 500;

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut seeds: Vec<_> = files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty(), "{target}");
    seeds.sort();
    seeds
}

/// Removes, repeats, changes or takes over some bytes. The same in each run.
fn mutated(seeds: &[Vec<u8>], rng: &mut SmallRng) -> Vec<u8> {
    let mut input = seeds.choose(rng).cloned().unwrap_or_default();
    for _ in 0..rng.random_range(1..=3) {
        let start = rng.random_range(0..=input.len());
        let end = rng.random_range(start..=input.len().min(start + 8));
        let part = match rng.random_range(0..4) {
            0 => Vec::new(),
            1 => input[start..end].repeat(2),
            2 => (start..end).map(|_| rng.random_range(b' '..=b'~')).collect(),
            _ => {
                let other = seeds.choose(rng).map_or(&[][..], Vec::as_slice);
                let from = rng.random_range(0..=other.len());
                other[from..other.len().min(from + 16)].to_vec()
            }
        };
        input.splice(start..end, part);
    }
    input
}

fn holds(target: &str, check: impl Fn(&[u8])) {
    holds_near(target, MUTATIONS, check);
}

fn holds_near(target: &str, mutations: usize, check: impl Fn(&[u8])) {
    let seeds = seeds(target);
    seeds.iter().for_each(|seed| check(seed));
    let mut rng = SmallRng::seed_from_u64(1);
    for _ in 0..mutations * seeds.len() {
        check(&mutated(&seeds, &mut rng));
    }
}

fn holds_of_text(target: &str, check: impl Fn(&str)) {
    holds(target, |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            check(text);
        }
    });
}

#[test]
fn facts_hold_for_the_seeds_and_inputs_near_them() {
    holds("address_list", address_list::check);
    holds("admission_review", admission_review::check);
    holds("check_request", check_request::check);
    holds("credential", credential::check);
    holds("media_type", media_type::check);
    holds("model", model::check);
    holds("pod_review", pod_review::check);
    holds("wire", wire::check);
    holds_of_text("check_response", check_response::check);
    holds_of_text("config_values", config_values::check);
    holds_of_text("import_line", import_line::check);
    holds_of_text("key_hash", key_hash::check);
    holds_of_text("path", path::check);
    holds_of_text("postgres_url", postgres_url::check);
    holds_of_text("route_settings", route_settings::check);
    holds_of_text("sealed_entry", sealed_entry::check);
    holds_of_text("timestamp", timestamp::check);
}

/// Each of these is a connection.
#[test]
fn facts_hold_for_frames_that_a_listener_gets() {
    holds_near("frames", MUTATIONS / 10, frames::check);
}

/// The targets for requests and responses rest on it.
#[test]
fn unknown_and_doubled_fields_of_a_response_are_noticed() {
    let status: &[u8] = &[0x0a, 2, 8, 7];
    let metadata: &[u8] = &[0x22, 9, 0x0a, 7, 0x0a, 1, b'a', 0x12, 2, 0x20, 1];
    let header: &[u8] = &[0x1a, 9, 0x12, 7, 0x0a, 3, 0x0a, 1, b'a', 0x18, 2];
    fields::checked(&[status, metadata, &[0x22, 0], header].concat());
    for (what, wrong) in [
        ("a field that is unknown", [status, &[0x78, 1]].concat()),
        ("a field that is unknown in another", vec![0x0a, 4, 8, 7, 0x78, 1]),
        ("a number twice", vec![0x0a, 4, 8, 7, 8, 7]),
        ("a message twice", [status, status].concat()),
        ("both responses", [header, &[0x12, 0]].concat()),
        ("a name twice in the metadata", [status, metadata, metadata].concat()),
        ("a default that is written", vec![0x0a, 2, 8, 0]),
    ] {
        assert!(panic::catch_unwind(|| fields::checked(&wrong)).is_err(), "{what}");
    }
}

#[test]
fn every_target_is_built_and_has_seeds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let names = |folder: &str| -> BTreeSet<String> {
        let files = fs::read_dir(root.join(folder)).unwrap().map(|file| file.unwrap().path());
        files.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let targets = names("targets");
    for target in &targets {
        assert!(manifest.contains(&format!("path = \"targets/{target}.rs\"")), "{target}");
    }
    assert_eq!(targets, names("seeds"));
    assert_eq!(targets, names("facts"));
    // Each of them is tried here as well.
    let tried = include_str!("fuzz.rs");
    for target in &targets {
        assert!(
            tried.contains(&format!("(\"{target}\", {target}::check);")) || target == "frames",
            "{target}"
        );
    }
}
