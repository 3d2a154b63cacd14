//! What is sent, and how the answer to it is read.

use std::path::{Path, PathBuf};

use crate::{credential::credential, http2::Header};

/// The kinds of requests.
pub(crate) enum Request {
    /// A check, as Envoy asks for it: the recorded message with another key and another id of the stream.
    Check { message: Vec<u8>, key_at: usize, id: Option<std::ops::Range<usize>>, senders: Senders },
    /// A `GET` to Envoy.
    Get,
}

/// Who sends the checks, and with what secret.
#[derive(Debug, Clone, Default)]
pub(crate) struct Senders {
    /// Addresses that take turns. `{}` is another number each time.
    pub(crate) clients: Vec<String>,
    /// Whether the secret is wrong, and another each time.
    pub(crate) wrong: bool,
    /// Makes it other secrets than those of an earlier run.
    pub(crate) salt: u64,
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    Denied,
    /// No answer that says either.
    Neither,
}

/// In the recorded requests Envoy's id of the stream, a number of about this many digits, is all zeros.
const ID: &str = "0000000000000000000";

impl Request {
    /// The recorded check in this file.
    pub(crate) fn check(file: &Path, senders: Senders) -> Result<Self, String> {
        let recorded = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let length = u32::try_from(recorded.len()).map_err(|error| error.to_string())?;
        // gRPC: not compressed, and this long.
        let message = [&[0], &length.to_be_bytes()[..], &recorded].concat();
        let key = credential(0);
        let key_at = find(&message, &key).ok_or(format!("{}: it has no {key}", file.display()))?;
        let id = find(&message, ID).map(|at| at..at + ID.len());
        Ok(Self::Check { message, key_at, id, senders })
    }

    /// The headers of each, but for the key.
    pub(crate) fn headers(&self) -> Vec<Header> {
        let check = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/envoy.service.auth.v3.Authorization/Check"),
            (":authority", "keystile"),
            ("te", "trailers"),
            ("grpc-timeout", "2000m"),
            ("content-type", "application/grpc"),
            ("x-envoy-internal", "true"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-client-ip", "127.0.0.1"),
        ];
        // The last, where it varies.
        let varies = matches!(self, Self::Check { senders, .. } if !senders.clients.is_empty());
        let check = &check[..check.len() - usize::from(varies)];
        // With those that Envoy adds, the 18 of an ordinary client behind a load balancer.
        let get = [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/v1/models?limit=20&after=gpt-4o-2024-11-20"),
            (":authority", "api.example.com"),
            (
                "user-agent",
                "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
            ),
            ("accept", "application/json"),
            ("accept-encoding", "gzip, deflate"),
            ("content-type", "application/json"),
            ("x-stainless-lang", "python"),
            ("x-stainless-package-version", "1.54.3"),
            ("x-stainless-runtime", "CPython"),
            ("x-stainless-async", "false"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ];
        let headers = if let Self::Get = self { &get[..] } else { check };
        headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
    }

    /// Name of the header that varies, if one does.
    pub(crate) fn varied_name(&self) -> &'static str {
        if let Self::Check { .. } = self { "x-client-ip" } else { "x-api-key" }
    }

    /// Bytes of body in each.
    pub(crate) fn len(&self) -> usize {
        if let Self::Check { message, .. } = self { message.len() } else { 0 }
    }

    /// Makes it that of this key, and unlike all before it. The header that varies, if one does; the body is in `body`.
    pub(crate) fn write(&self, key: u32, serial: u64, body: &mut Vec<u8>) -> Option<String> {
        body.clear();
        let credential = credential(key);
        let Self::Check { message, key_at, id, senders } = self else { return Some(credential) };
        body.extend(message);
        let key_ends = *key_at + credential.len();
        body[*key_at..key_ends].copy_from_slice(credential.as_bytes());
        if senders.wrong {
            let secret = format!("-{:09x}", senders.salt + serial);
            body[key_ends - secret.len()..key_ends].copy_from_slice(secret.as_bytes());
        }
        if let Some(id) = id {
            body[id.clone()].copy_from_slice(format!("{serial:019}").as_bytes());
        }
        let client = senders.clients.get(serial as usize % senders.clients.len().max(1))?;
        let number = serial / senders.clients.len() as u64 % 65_536;
        Some(match client.contains(':') {
            true => client.replace("{}", &format!("{number:x}")),
            false => client.replace("{}", &(number % 256).to_string()),
        })
    }

    /// Reads the beginning of an answer, its headers or its message.
    pub(crate) fn verdict(&self, block: Option<&[u8]>, message: Option<&[u8]>) -> Option<Verdict> {
        match self {
            Self::Check { .. } => message.map(check_verdict),
            Self::Get => block.map(get_verdict),
        }
    }
}

/// Of a `CheckResponse`: which of its fields is there, `denied_response` or `ok_response`.
fn check_verdict(message: &[u8]) -> Verdict {
    let mut rest = message.get(5..).unwrap_or_default();
    while let [tag, after @ ..] = rest {
        match tag {
            0x12 => return Verdict::Denied,
            0x1a => return Verdict::Allowed,
            _ => {}
        }
        // All of them are messages: a length, and so many bytes.
        let Some((length, after)) = varint(after) else { break };
        rest = after.get(length..).unwrap_or_default();
    }
    Verdict::Neither
}

/// Of an answer from Envoy: `:status: 200` is the first of its headers, and has an index.
fn get_verdict(block: &[u8]) -> Verdict {
    let is_size_update = |byte: &u8| byte & 0xe0 == 0x20;
    match block.iter().find(|byte| !is_size_update(byte)) {
        Some(0x88) => Verdict::Allowed,
        Some(_) => Verdict::Denied,
        None => Verdict::Neither,
    }
}

fn varint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let end = bytes.iter().position(|byte| byte & 0x80 == 0)?;
    let number = bytes[..=end].iter().rev().fold(0, |number, byte| number << 7 | usize::from(byte & 0x7f));
    Some((number, &bytes[end + 1..]))
}

fn find(message: &[u8], text: &str) -> Option<usize> {
    message.windows(text.len()).position(|window| window == text.as_bytes())
}

/// A file, or no file: a `GET`.
pub(crate) fn request(check: Option<&PathBuf>, senders: Senders) -> Result<Request, String> {
    check.map_or(Ok(Request::Get), |file| Request::check(file, senders))
}
