//! Texts that must not appear, and the search for them in each encoding.

use data_encoding::{BASE64, BASE64URL, Encoding, HEXLOWER, HEXUPPER};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rand::{RngExt, distr::Alphanumeric};

/// A secret that appears nowhere by chance.
#[derive(Debug, Clone)]
pub struct Canary {
    pub name: &'static str,
    pub text: String,
}

/// What was said or kept in one place.
#[derive(Debug)]
pub struct Evidence {
    pub place: String,
    pub text: String,
}

/// A secret that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leak {
    pub place: String,
    pub canary: &'static str,
    pub form: &'static str,
}

/// The shortest half that is looked for: a key's prefix, which is shown, is shorter.
const LEAST_HALF: usize = 12;

impl Canary {
    pub fn new(name: &'static str, text: &str) -> Self {
        assert!(text.len() >= 2 * LEAST_HALF, "{name} is too short to be unique in halves");
        Self { name, text: text.to_owned() }
    }

    /// A random text of letters and digits.
    pub fn random(name: &'static str) -> Self {
        Self::with(name, "", "")
    }

    /// A random text between others.
    pub fn with(name: &'static str, before: &str, after: &str) -> Self {
        let random: String =
            rand::rng().sample_iter(Alphanumeric).take(2 * LEAST_HALF + 8).map(char::from).collect();
        Self::new(name, &format!("{before}{random}{after}"))
    }

    /// What is looked for.
    pub fn forms(&self) -> Vec<(&'static str, String)> {
        let bytes = self.text.as_bytes();
        let (first, second) = self.text.split_at(self.text.len() / 2);
        let mut forms = vec![
            ("plain", self.text.clone()),
            ("first half", first.to_owned()),
            ("second half", second.to_owned()),
            ("percent-encoded", utf8_percent_encode(&self.text, NON_ALPHANUMERIC).to_string()),
            ("hex", HEXLOWER.encode(bytes)),
            ("upper-case hex", HEXUPPER.encode(bytes)),
            ("escaped for JSON", self.text.replace('/', "\\/")),
        ];
        for before in 0..3 {
            forms.push(("base64", within(&BASE64, before, bytes)));
            forms.push(("base64 for URLs", within(&BASE64URL, before, bytes)));
        }
        forms
    }
}

/// The characters of the encoding that these bytes alone decide, with so many others before them.
fn within(encoding: &Encoding, before: usize, bytes: &[u8]) -> String {
    let all = encoding.encode(&[&vec![0; before], bytes].concat());
    let first = (before * 8).div_ceil(6);
    let end = (before + bytes.len()) * 8 / 6;
    all[first..end].to_owned()
}

/// All that is found.
pub fn leaks(evidence: &[Evidence], canaries: &[Canary]) -> Vec<Leak> {
    let forms: Vec<_> = canaries.iter().map(|canary| (canary.name, canary.forms())).collect();
    let mut leaks = Vec::new();
    for Evidence { place, text } in evidence {
        for (canary, forms) in &forms {
            let found = forms.iter().find(|(_, form)| text.contains(form));
            leaks.extend(found.map(|(form, _)| Leak { place: place.clone(), canary, form }));
        }
    }
    leaks
}

#[test]
fn canary_is_found_in_each_form_and_nothing_else_is() {
    let canary = Canary::with("planted", "ks_/", "+=~");
    let other = Canary::random("other");
    let evidence = |text: String| [Evidence { place: "here".into(), text }];
    for (form, text) in canary.forms() {
        let found = leaks(&evidence(format!("before {text} after")), &[canary.clone(), other.clone()]);
        assert_eq!(found.len(), 1, "{form}");
        assert_eq!(found[0].canary, "planted");
    }
    for padding in ["", "a", "ab"] {
        let whole = BASE64.encode(format!("{padding}{}{padding}", canary.text).as_bytes());
        assert_eq!(leaks(&evidence(whole), std::slice::from_ref(&canary)).len(), 1);
    }
    assert!(leaks(&evidence(canary.text[..11].to_owned()), std::slice::from_ref(&canary)).is_empty());
}
