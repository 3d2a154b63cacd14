//! Names the form of a stored hash that Keystile does not accept, and shows nothing of the hash.

/// The form of a text that is no accepted hash, in words.
pub fn name(text: &str) -> String {
    let versions = ["$2a$", "$2b$", "$2y$"];
    if let Some(rest) = versions.iter().find_map(|version| text.strip_prefix(version)) {
        let cost = rest.get(..2).and_then(|cost| cost.parse::<u8>().ok());
        return match cost {
            Some(cost) if !(4..=14).contains(&cost) => format!("bcrypt with cost {cost}"),
            _ => "damaged bcrypt".to_owned(),
        };
    }
    let known = BEGINNINGS.iter().find(|(beginning, _)| text.starts_with(beginning));
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match (known, text.len()) {
        (Some((_, name)), _) => (*name).to_owned(),
        (None, 0) => "empty".to_owned(),
        (None, digits @ (32 | 40 | 56 | 64 | 96 | 128)) if is_hex => {
            format!("{digits} hexadecimal digits, such as SHA-2 without salt")
        }
        (None, _) => "unknown form".to_owned(),
    }
}

/// How other hashes begin.
const BEGINNINGS: [(&str, &str); 17] = [
    ("$sha256$", "damaged SHA-256"),
    ("$2x$", "bcrypt of version 2x"),
    ("$2$", "bcrypt of version 2"),
    ("$bcrypt-sha256$", "bcrypt-sha256 of passlib"),
    ("bcrypt_sha256$", "bcrypt-sha256 of Django"),
    ("bcrypt$", "bcrypt of Django"),
    ("$argon2", "Argon2"),
    ("argon2$", "Argon2"),
    ("$pbkdf2", "PBKDF2"),
    ("pbkdf2", "PBKDF2"),
    ("$scrypt$", "scrypt"),
    ("scrypt", "scrypt"),
    ("$7$", "scrypt"),
    ("$y$", "yescrypt"),
    ("$1$", "md5crypt"),
    ("$5$", "sha256crypt"),
    ("$6$", "sha512crypt"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_is_named_and_the_hash_is_not_shown() {
        let body = "N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy";
        for (text, expected) in [
            (format!("$2b$16${body}"), "bcrypt with cost 16"),
            (format!("$2b$03${body}"), "bcrypt with cost 3"),
            (format!("$2b$12${}", &body[1..]), "damaged bcrypt"),
            (format!("$2x$12${body}"), "bcrypt of version 2x"),
            (format!("$sha256${body}"), "damaged SHA-256"),
            (format!("$argon2id$v=19$m=65536,t=3,p=4${body}"), "Argon2"),
            (format!("pbkdf2:sha256:600000${body}"), "PBKDF2"),
            (format!("$6$rounds=5000${body}"), "sha512crypt"),
            (
                "0123456789abcdefABCDEF0123456789".repeat(2),
                "64 hexadecimal digits, such as SHA-2 without salt",
            ),
            ("ks_secretSecretSecret".into(), "unknown form"),
            (String::new(), "empty"),
        ] {
            assert_eq!(name(&text), expected);
        }
    }
}
