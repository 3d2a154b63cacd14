//! What is left in the memory of a process.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
};

use super::*;

/// Whether the memory of a process holds a text.
fn holds(pid: u32, text: &str) -> io::Result<bool> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw")))
    {
        let (start, end) =
            line.split_once(' ').and_then(|(range, _)| range.split_once('-')).expect("a range");
        let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).expect("a number"));
        let mut bytes = vec![0; usize::try_from(end - start).expect("a size")];
        // Some pages cannot be read, and some are gone by now.
        let length = memory.read_at(&mut bytes, start).unwrap_or(0);
        if String::from_utf8_lossy(&bytes[..length]).contains(text) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_secret_is_wiped_once_it_is_read() {
    let secret = Canary::random("cache secret");
    let setup = Setup::new();
    let file = setup.path("cache-secret-of-this-test");
    std::fs::write(&file, format!("{}\n", secret.text)).unwrap();
    let path = file.to_str().unwrap().to_owned();
    let Keystile { setup: _setup, process } = setup.start(&[("KEYSTILE_CACHE_SECRET_FILE", &path)]).await;
    match holds(process.0.id(), &path) {
        // Containers often have no right to read other processes.
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}"),
        Ok(is_found) => {
            assert!(is_found, "the setting is not found in memory; otherwise this test shows nothing");
            for (form, text) in secret.forms() {
                assert!(!holds(process.0.id(), &text).unwrap(), "the {form} of the secret is in memory");
            }
        }
    }
}
