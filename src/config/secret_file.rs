//! Files that hold one secret, as Docker, Kubernetes and systemd mount them.

use std::{fs::File, io::Read, path::Path};

use zeroize::Zeroizing;

/// A larger file is a mistake.
const MAX_BYTES: u64 = 64 << 10;

/// The text of the file without the line ends at its end. It is wiped when it is dropped.
///
/// # Errors
/// A sentence that names flag and file, and shows nothing of the content.
pub(super) fn read_secret_file(flag: &str, path: &Path) -> Result<Zeroizing<String>, String> {
    let wrong = |problem: &str| format!("{flag} {}: {problem}", path.display());
    // A buffer that grows would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES as usize + 1));
    let file = File::open(path).map_err(|error| wrong(&error.to_string()))?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| wrong(&error.to_string()))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(wrong("is larger than 64 KiB, and so is no secret"));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("is not UTF-8"))?;
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_ends_before_the_line_end_and_errors_show_nothing_of_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("writes");
            read_secret_file("--secret-file", &path).map(|text| text.to_string())
        };
        assert_eq!(read(b"hunter2\r\n\n").as_deref(), Ok("hunter2"));
        assert_eq!(read(b" hunter2 ").as_deref(), Ok(" hunter2 "));
        for bad in [&b"hunter2\xff"[..], &[b'x'; 64 * 1024 + 1]] {
            let error = read(bad).expect_err("refused");
            assert!(error.starts_with("--secret-file /") && !error.contains("hunter2"), "{error}");
        }
        assert!(read_secret_file("--secret-file", &folder.path().join("none")).is_err());
    }
}
