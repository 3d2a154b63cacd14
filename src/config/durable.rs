//! Which proofs survive a restart.

use std::{fmt, str::FromStr};

use crate::credential::{Credential, generate};

/// Keys whose proofs are stored in the database.
///
/// With the cache secret and the table, a thief can try keys at the speed of HMAC. A random key withstands that, a
/// weak one does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DurableProofs {
    /// No key.
    None,
    /// Every key, also one that was imported and may be weak.
    All,
    /// Keys that are known to be random.
    Random {
        /// Those of the form and checksum that Keystile's own have.
        generated: bool,
        /// How others begin.
        brands: Vec<String>,
    },
}

/// The longest brand, in bytes.
const LONGEST_BRAND: usize = 32;

impl DurableProofs {
    /// Whether the proof of this key is stored.
    pub fn covers(&self, credential: &Credential) -> bool {
        let key = credential.expose();
        match self {
            Self::None => false,
            Self::All => true,
            Self::Random { generated, brands } => {
                brands.iter().any(|brand| key.starts_with(brand.as_str()))
                    || (*generated && generate::is_generated(key))
            }
        }
    }
}

impl FromStr for DurableProofs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => return Ok(Self::None),
            "all" => return Ok(Self::All),
            _ => {}
        }
        let (mut generated, mut brands) = (false, Vec::new());
        for word in text.split(',') {
            match word {
                "generated" => generated = true,
                "none" | "all" => return Err(format!("has {word} in a list; write it alone")),
                "" => {
                    return Err("has an empty entry; write none, all, or a list such as generated,en_".into());
                }
                word if ["generated", "none", "all"].iter().any(|known| word.eq_ignore_ascii_case(known)) => {
                    return Err(format!("has {word}; write it in small letters"));
                }
                // It may be a whole key.
                brand if brand.len() > LONGEST_BRAND => {
                    return Err(format!(
                        "has an entry of {} characters (not shown); a beginning of keys has at most {LONGEST_BRAND}",
                        brand.len()
                    ));
                }
                brand if !brand.bytes().all(|byte| byte.is_ascii_graphic()) => {
                    return Err(format!("has {brand:?}, which no API key begins with"));
                }
                brand => brands.push(brand.to_owned()),
            }
        }
        Ok(Self::Random { generated, brands })
    }
}

impl fmt::Display for DurableProofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::All => f.write_str("all"),
            Self::Random { generated, brands } => {
                let generated = generated.then_some("generated").into_iter();
                let words: Vec<_> = generated.chain(brands.iter().map(String::as_str)).collect();
                f.write_str(&words.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(setting: &str, key: &str) -> bool {
        let credential = Credential::parse(key.as_bytes()).expect("well-formed");
        setting.parse::<DurableProofs>().expect("a setting").covers(&credential)
    }

    #[test]
    fn only_keys_that_are_known_to_be_random_are_covered() {
        let own = generate::generate(&"ks_".parse().expect("a brand"), &mut rand::rng());
        for (setting, covers_own, covers_branded, covers_other) in [
            ("none", false, false, false),
            ("all", true, true, true),
            ("generated", true, false, false),
            ("en_", false, true, false),
            ("generated,en_", true, true, false),
        ] {
            assert_eq!(covers(setting, own.expose()), covers_own, "{setting}");
            assert_eq!(covers(setting, "en_password"), covers_branded, "{setting}");
            assert_eq!(covers(setting, "password-en_"), covers_other, "{setting}");
            assert_eq!(setting.parse::<DurableProofs>().expect("a setting").to_string(), setting);
        }
    }

    #[test]
    fn misspelt_words_are_refused() {
        for bad in ["", "Generated", "All", "generated,", "generated,none", "all,en_", "a b_", "\u{e9}_"] {
            assert!(bad.parse::<DurableProofs>().is_err(), "{bad}");
        }
    }
}
