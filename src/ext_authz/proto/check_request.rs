//! The fields of a `CheckRequest` that a check needs, found in its bytes without decoding the rest.
//!
//! Decoding the whole message costs more than the rest of a hot check. The fields that are read have the values that
//! the generated types read, and are refused where these refuse them: a property test and a fuzz target compare both
//! (`differential.rs`). All other fields are skipped.

use super::reader::{Fields, Result};

/// What a check needs of a `CheckRequest` (envoy/service/auth/v3/external_auth.proto). Absent text is empty.
#[derive(Debug, Default, PartialEq)]
pub struct CheckRequestView<'a> {
    /// `attributes.source.address.socket_address.address`.
    pub source: Option<&'a str>,
    /// `attributes.request.http`.
    pub http: HttpRequestView<'a>,
    /// `attributes.context_extensions`. Of a repeated name the last value counts.
    pub extensions: Vec<(&'a str, &'a str)>,
}

/// What a check needs of an `HttpRequest`.
#[derive(Debug, Default, PartialEq)]
pub struct HttpRequestView<'a> {
    /// Envoy's own id of the request.
    pub id: &'a str,
    /// `GET`, `POST` and so on.
    pub method: &'a str,
    /// With its query.
    pub path: &'a str,
    /// Of a repeated name the last value counts.
    pub headers: Vec<(&'a str, &'a str)>,
    /// In place of `headers`, with `encode_raw_headers`: each header with its bytes unchanged.
    pub header_map: Vec<(&'a str, &'a [u8])>,
    /// Length of the body in bytes; -1 or 0 when Envoy does not say.
    pub size: i64,
    /// The body, when it is text.
    pub body: &'a [u8],
    /// The body, with `pack_as_bytes`.
    pub raw_body: &'a [u8],
}

/// Number of headers that Envoy usually sends: room for them is made at once.
const HEADERS: usize = 32;

impl<'a> CheckRequestView<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// [`MalformedMessage`](super::reader::MalformedMessage) when a field that is needed cannot be read.
    pub fn read(message: &'a [u8]) -> Result<Self> {
        let mut check = Self::default();
        for field in Fields::new(message, 0) {
            if let (1, attributes) = field? {
                check.read_attributes(attributes.bytes()?)?;
            }
        }
        Ok(check)
    }

    fn read_attributes(&mut self, message: &'a [u8]) -> Result<()> {
        for field in Fields::new(message, 1) {
            match field? {
                (1, peer) => self.read_peer(peer.bytes()?)?,
                (4, request) => self.read_request(request.bytes()?)?,
                (10, entry) => self.extensions.push(read_entry(entry.bytes()?, 2)?),
                _ => {}
            }
        }
        Ok(())
    }

    fn read_peer(&mut self, message: &'a [u8]) -> Result<()> {
        for field in Fields::new(message, 2) {
            if let (1, address) = field? {
                self.read_address(address.bytes()?)?;
            }
        }
        Ok(())
    }

    /// An address has one of several kinds. The last one counts.
    fn read_address(&mut self, message: &'a [u8]) -> Result<()> {
        for field in Fields::new(message, 3) {
            match field? {
                (1, socket) => {
                    let mut address = self.source.unwrap_or_default();
                    for field in Fields::new(socket.bytes()?, 4) {
                        if let (2, text) = field? {
                            address = text.text()?;
                        }
                    }
                    self.source = Some(address);
                }
                (2 | 3, other) => {
                    other.bytes()?;
                    self.source = None;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_request(&mut self, message: &'a [u8]) -> Result<()> {
        for field in Fields::new(message, 2) {
            if let (2, http) = field? {
                self.http.read(http.bytes()?)?;
            }
        }
        Ok(())
    }
}

impl<'a> HttpRequestView<'a> {
    fn read(&mut self, message: &'a [u8]) -> Result<()> {
        for field in Fields::new(message, 3) {
            match field? {
                (1, id) => self.id = id.text()?,
                (2, method) => self.method = method.text()?,
                (3, entry) => {
                    if self.headers.is_empty() {
                        self.headers.reserve(HEADERS);
                    }
                    self.headers.push(read_entry(entry.bytes()?, 4)?);
                }
                (4, path) => self.path = path.text()?,
                (9, size) => self.size = size.number()?,
                (11, body) => self.body = body.text()?.as_bytes(),
                (12, body) => self.raw_body = body.bytes()?,
                (13, map) => {
                    for field in Fields::new(map.bytes()?, 4) {
                        if let (1, header) = field? {
                            self.header_map.push(read_header(header.bytes()?)?);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The value of a header in `headers`.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

/// The port that a client connected to: `attributes.destination.address.socket_address.port_value`. Not a field of the
/// view, since only a log needs it.
pub(crate) fn destination_port(message: &[u8]) -> Option<u32> {
    const SOCKET_ADDRESS: [u32; 4] = [1, 2, 1, 1];
    const PORT: u32 = 3;
    let last = |message, level, number| {
        let fields = Fields::new(message, level).filter_map(Result::ok);
        fields.filter(|(field, _)| *field == number).last().map(|(_, value)| value)
    };
    let address = SOCKET_ADDRESS
        .into_iter()
        .enumerate()
        .try_fold(message, |message, (level, number)| last(message, level, number)?.bytes().ok())?;
    last(address, SOCKET_ADDRESS.len(), PORT)?.number().ok()?.try_into().ok()
}

/// An entry of a map inside so many messages.
fn read_entry(message: &[u8], level: usize) -> Result<(&str, &str)> {
    let (mut key, mut value) = ("", "");
    for field in Fields::new(message, level) {
        match field? {
            (1, text) => key = text.text()?,
            (2, text) => value = text.text()?,
            _ => {}
        }
    }
    Ok((key, value))
}

/// A `HeaderValue`: its raw bytes, or its text where there are none.
fn read_header(message: &[u8]) -> Result<(&str, &[u8])> {
    let (mut key, mut value, mut raw) = ("", "", &[][..]);
    for field in Fields::new(message, 5) {
        match field? {
            (1, text) => key = text.text()?,
            (2, text) => value = text.text()?,
            (3, bytes) => raw = bytes.bytes()?,
            _ => {}
        }
    }
    Ok((key, if raw.is_empty() { value.as_bytes() } else { raw }))
}

#[cfg(test)]
mod differential;
#[cfg(test)]
mod tests;
