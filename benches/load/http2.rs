//! HTTP/2 as far as sending the same kind of request many times needs it: few system calls, nothing allocated a
//! request, so that on a small machine the cores are left to what is measured.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
};

use keystile::config::Listen;

/// Frame types and flags, by their names in RFC 9113.
mod frame {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;

    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const ACK: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;
    pub(crate) const PADDED: u8 = 8;
    pub(crate) const PRIORITY: u8 = 32;

    pub(crate) const HEAD: usize = 9;
}

/// The window that we give once, and again when half of it is used: answers never wait for one.
const WINDOW: u32 = (1 << 31) - 1;
/// What a connection may carry before anybody has said anything.
const FIRST_WINDOW: u32 = 65_535;

/// A header of each request. Those of a connection's first request are remembered by its peer, as Envoy's are.
pub(crate) type Header = (&'static str, String);

/// The half of a connection that sends.
pub(crate) struct Sender {
    socket: Box<dyn Write + Send>,
    buffer: Vec<u8>,
    headers: Vec<Header>,
    /// Name of the header that varies.
    varied_name: &'static str,
    next_stream: u32,
    window: i64,
}

/// The half that receives.
pub(crate) struct Receiver {
    socket: Box<dyn Read + Send>,
    buffer: Vec<u8>,
    received: u32,
}

/// What has come in.
pub(crate) enum Event<'a> {
    /// Headers or trailers, compressed as they came.
    Headers { stream: u32, block: &'a [u8] },
    /// A part of a body.
    Data { stream: u32, bytes: &'a [u8] },
    /// The answer is complete.
    End { stream: u32 },
    /// The answer will never be.
    Reset { stream: u32 },
    /// Something that the sender has to hear of: pass it to [`Sender::heed`].
    Control(Control),
}

/// What one half has to tell the other.
pub(crate) enum Control {
    Window(u32),
    Settings,
    Ping([u8; 8]),
    Replenish(u32),
}

/// Connects, and sends each request with these headers, of which the last may vary.
pub(crate) fn connect(
    target: &Listen,
    headers: Vec<Header>,
    varied_name: &'static str,
) -> io::Result<(Sender, Receiver)> {
    let (write, read): (Box<dyn Write + Send>, Box<dyn Read + Send>) = match target {
        Listen::Tcp(address) => {
            let socket = TcpStream::connect(address)?;
            socket.set_nodelay(true)?;
            (Box::new(socket.try_clone()?), Box::new(socket))
        }
        Listen::Unix(path) => {
            let socket = UnixStream::connect(path)?;
            (Box::new(socket.try_clone()?), Box::new(socket))
        }
    };
    let mut sender = Sender {
        socket: write,
        buffer: Vec::new(),
        headers,
        varied_name,
        next_stream: 1,
        window: FIRST_WINDOW.into(),
    };
    sender.buffer.extend(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    // INITIAL_WINDOW_SIZE, of each stream; the window update is the whole connection's.
    sender.frame(frame::SETTINGS, 0, 0, &[&[0, 4], &WINDOW.to_be_bytes()]);
    sender.frame(frame::WINDOW_UPDATE, 0, 0, &[&(WINDOW - FIRST_WINDOW).to_be_bytes()]);
    sender.flush()?;
    Ok((sender, Receiver { socket: read, buffer: Vec::new(), received: 0 }))
}

impl Sender {
    /// Whether the peer takes this many more bytes of body now.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.window >= bytes as i64
    }

    /// Puts a request with this body, and another last header where there is `varied`, among what is sent next.
    pub(crate) fn queue(&mut self, varied: Option<&str>, body: &[u8]) {
        let stream = self.next_stream;
        let block = self.block(varied);
        let end = if body.is_empty() { frame::END_STREAM } else { 0 };
        self.frame(frame::HEADERS, frame::END_HEADERS | end, stream, &[&block]);
        if !body.is_empty() {
            self.frame(frame::DATA, frame::END_STREAM, stream, &[body]);
            self.window -= body.len() as i64;
        }
        self.next_stream += 2;
    }

    /// Sends what is queued, in one system call.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.socket.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Heeds what came in; what has to be said to it is queued.
    pub(crate) fn heed(&mut self, control: Control) {
        match control {
            Control::Window(more) => self.window += i64::from(more),
            Control::Settings => self.frame(frame::SETTINGS, frame::ACK, 0, &[]),
            Control::Ping(payload) => self.frame(frame::PING, frame::ACK, 0, &[&payload]),
            Control::Replenish(used) => self.frame(frame::WINDOW_UPDATE, 0, 0, &[&used.to_be_bytes()]),
        }
    }

    /// Whether anything is queued.
    pub(crate) fn is_idle(&self) -> bool {
        self.buffer.is_empty()
    }

    /// HPACK: in full and to be remembered the first time, by index from then on.
    fn block(&self, varied: Option<&str>) -> Vec<u8> {
        let mut block = Vec::with_capacity(256);
        let constant = self.headers.len();
        for (position, (name, value)) in self.headers.iter().enumerate() {
            match self.next_stream {
                1 => {
                    block.push(0x40);
                    text(&mut block, name);
                    text(&mut block, value);
                }
                // 62 is the newest entry of the dynamic table.
                _ => number(&mut block, 0x80, 7, 62 + constant - 1 - position),
            }
        }
        if let Some(value) = varied {
            // Never indexed, as a secret ought to be sent.
            block.push(0x10);
            text(&mut block, self.varied_name);
            text(&mut block, value);
        }
        block
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[&[u8]]) {
        let length = payload.iter().map(|part| part.len()).sum::<usize>() as u32;
        self.buffer.extend(&length.to_be_bytes()[1..]);
        self.buffer.extend([kind, flags]);
        self.buffer.extend(stream.to_be_bytes());
        payload.iter().for_each(|part| self.buffer.extend(*part));
    }
}

impl Receiver {
    /// Waits until something comes, and passes on each whole frame of it.
    pub(crate) fn receive(&mut self, mut on: impl FnMut(Event)) -> io::Result<()> {
        let kept = self.buffer.len();
        self.buffer.resize(kept + 256 * 1024, 0);
        let read = self.socket.read(&mut self.buffer[kept..])?;
        self.buffer.truncate(kept + read);
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection"));
        }
        let mut used = 0;
        while let Some(head) = self.buffer[used..].first_chunk::<{ frame::HEAD }>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some(frame) = self.buffer[used + frame::HEAD..].get(..length) else { break };
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            self.received += if head[3] == frame::DATA { length as u32 } else { 0 };
            pass_on(head[3], head[4], stream, frame, &mut on)?;
            used += frame::HEAD + length;
        }
        self.buffer.drain(..used);
        if self.received > WINDOW / 2 {
            on(Event::Control(Control::Replenish(std::mem::take(&mut self.received))));
        }
        Ok(())
    }
}

fn pass_on(kind: u8, flags: u8, stream: u32, frame: &[u8], on: &mut impl FnMut(Event)) -> io::Result<()> {
    match kind {
        frame::DATA => on(Event::Data { stream, bytes: unpadded(frame, flags, 0) }),
        frame::HEADERS => {
            let priority = if flags & frame::PRIORITY == 0 { 0 } else { 5 };
            on(Event::Headers { stream, block: unpadded(frame, flags, priority) });
        }
        frame::RST_STREAM => on(Event::Reset { stream }),
        frame::SETTINGS if flags & frame::ACK == 0 => on(Event::Control(Control::Settings)),
        frame::PING if flags & frame::ACK == 0 => {
            let payload = frame.try_into().map_err(io::Error::other)?;
            on(Event::Control(Control::Ping(payload)));
        }
        frame::WINDOW_UPDATE if stream == 0 => {
            let more = u32::from_be_bytes(frame.try_into().map_err(io::Error::other)?);
            on(Event::Control(Control::Window(more)));
        }
        frame::GOAWAY => {
            let why = String::from_utf8_lossy(frame.get(8..).unwrap_or_default()).into_owned();
            return Err(io::Error::other(format!("the peer goes away: {why}")));
        }
        _ => {}
    }
    if matches!(kind, frame::DATA | frame::HEADERS) && flags & frame::END_STREAM != 0 {
        on(Event::End { stream });
    }
    Ok(())
}

fn unpadded(frame: &[u8], flags: u8, skip: usize) -> &[u8] {
    match flags & frame::PADDED {
        0 => &frame[skip..],
        _ => &frame[1 + skip..frame.len() - usize::from(frame[0])],
    }
}

/// A string of HPACK, not compressed.
fn text(block: &mut Vec<u8>, text: &str) {
    number(block, 0, 7, text.len());
    block.extend(text.as_bytes());
}

/// An integer of HPACK with this many bits in its first byte.
fn number(block: &mut Vec<u8>, first: u8, bits: u32, number: usize) {
    let most = (1 << bits) - 1;
    if number < most {
        return block.push(first | number as u8);
    }
    block.push(first | most as u8);
    let mut rest = number - most;
    while rest >= 128 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}
