//! PostgreSQL's replication protocol, as far as a reader of the physical log needs it: chapter
//! "Streaming Replication Protocol" of PostgreSQL's manual.
//!
//! The messages are taken apart by `postgres_protocol`. Connections are to this machine only, so
//! there is no TLS.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use resurgam_model::Timestamp;
use resurgam_model::database::Lsn;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::segment::Size;

/// So long an answer may take, and so long a stream may be silent. The server says something at
/// least every half of its `wal_sender_timeout`, and at once when it is asked to.
const PATIENCE: Duration = Duration::from_secs(10);
/// Seconds from 1970 to 2000, where PostgreSQL's time begins.
const EPOCH: i64 = 946_684_800;
/// What a server says of log that it has removed: "undefined file".
const GONE: &str = "58P01";

/// What can go wrong with a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection is lost, or nobody is there.
    #[error("the connection to the database failed: {0}")]
    Connection(#[from] io::Error),
    /// The server does not have the log any more that was asked for.
    #[error("the server has removed that part of its log: {0}")]
    Gone(String),
    /// The server refuses.
    #[error("the server refuses: {message} ({code})")]
    Refused {
        /// The SQLSTATE.
        code: String,
        /// What it says.
        message: String,
    },
    /// It says something that cannot be understood.
    #[error("the server's answer is not understood: {0}")]
    Odd(String),
}

type Result<T, E = StreamError> = std::result::Result<T, E>;

/// What a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// Unique to each `initdb`.
    pub id: String,
    /// The timeline on which it writes.
    pub timeline: u32,
    /// What it has flushed.
    pub at: Lsn,
}

/// What comes out of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of the log.
    Data {
        /// Where they begin.
        start: Lsn,
        /// What the server had flushed just before it sent them.
        flushed: Lsn,
        /// When it sent them, by its clock.
        sent: Timestamp,
        /// The bytes.
        bytes: Bytes,
    },
    /// The server is there.
    Alive {
        /// Up to here it has sent the log; not: up to here it has flushed it.
        end: Lsn,
        /// When it said so, by its clock.
        sent: Timestamp,
        /// It wants an answer.
        answer: bool,
    },
    /// The timeline ends; the log goes on on another one.
    End,
}

/// A connection for replication.
#[derive(Debug)]
pub struct Replication {
    stream: TcpStream,
    received: BytesMut,
}

impl Replication {
    /// Connects and logs in.
    ///
    /// # Errors
    /// When nobody is there, or the server refuses.
    pub async fn connect(address: SocketAddr, user: &str, password: &str) -> Result<Self> {
        let stream = within(TcpStream::connect(address)).await?;
        stream.set_nodelay(true)?;
        let mut this = Self { stream, received: BytesMut::with_capacity(256 << 10) };
        let parameters = [
            ("user", user),
            ("replication", "true"),
            ("application_name", "resurgam_log"),
            ("client_encoding", "UTF8"),
        ];
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out)?;
        this.send(&out).await?;
        this.log_in(password).await?;
        Ok(this)
    }

    async fn log_in(&mut self, password: &str) -> Result<()> {
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        loop {
            let mut out = BytesMut::new();
            match self.message().await? {
                Message::AuthenticationSasl(_) => {
                    frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut out)?;
                }
                Message::AuthenticationSaslContinue(body) => {
                    scram.update(body.data())?;
                    frontend::sasl_response(scram.message(), &mut out)?;
                }
                Message::AuthenticationSaslFinal(body) => scram.finish(body.data())?,
                Message::AuthenticationOk
                | Message::ParameterStatus(_)
                | Message::NoticeResponse(_)
                | Message::BackendKeyData(_) => {}
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ErrorResponse(body) => return Err(refused(&body)),
                _ => {
                    return Err(StreamError::Odd(
                        "it wants another kind of password than scram-sha-256".to_owned(),
                    ));
                }
            }
            self.send(&out).await?;
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(within(self.stream.write_all(bytes)).await?)
    }

    /// The next message. What was read of it stays when this is dropped before it ends.
    async fn message(&mut self) -> Result<Message> {
        loop {
            // What the library does not know has the shape of what it knows.
            if let Some(tag @ &mut b'W') = self.received.first_mut() {
                *tag = b'H';
            }
            if let Some(message) = Message::parse(&mut self.received)? {
                return Ok(message);
            }
            if within(self.stream.read_buf(&mut self.received)).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// Asks something; the fields of the first row.
    async fn ask(&mut self, query: &str) -> Result<Vec<Option<Bytes>>> {
        let mut out = BytesMut::new();
        frontend::query(query, &mut out)?;
        self.send(&out).await?;
        let (mut row, mut error) = (None, None);
        loop {
            match self.message().await? {
                Message::DataRow(body) if row.is_none() => {
                    let buffer = body.buffer_bytes().clone();
                    let fields = body.ranges().map(|r| Ok(r.map(|r| buffer.slice(r)))).collect();
                    row = Some(fields?);
                }
                Message::ErrorResponse(body) => error = Some(refused(&body)),
                Message::ReadyForQuery(_) => break,
                _ => {}
            }
        }
        match error {
            Some(error) => Err(error),
            None => row.ok_or_else(|| StreamError::Odd(format!("{query} has no answer"))),
        }
    }

    /// What the server is.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn identify(&mut self) -> Result<System> {
        let row = self.ask("IDENTIFY_SYSTEM").await?;
        let odd = || StreamError::Odd("IDENTIFY_SYSTEM has another answer".to_owned());
        let field = |n: usize| text(row.get(n)).ok_or_else(odd);
        Ok(System {
            id: field(0)?.to_owned(),
            timeline: field(1)?.parse().map_err(|_| odd())?,
            at: field(2)?.parse().map_err(|_| odd())?,
        })
    }

    /// How large the segments of its log are.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn segment_size(&mut self) -> Result<Size> {
        let row = self.ask("SHOW wal_segment_size").await?;
        let size = text(row.first()).and_then(|text| {
            let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
            let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
            let shift = match unit {
                "B" => 0,
                "kB" => 10,
                "MB" => 20,
                "GB" => 30,
                _ => return None,
            };
            Size::new(number.checked_shl(shift)?)
        });
        size.ok_or_else(|| StreamError::Odd("wal_segment_size has another answer".to_owned()))
    }

    /// The history file of a timeline. The first one has none.
    ///
    /// # Errors
    /// When the server does not have it.
    pub async fn history(&mut self, timeline: u32) -> Result<Vec<u8>> {
        if timeline <= 1 {
            return Ok(Vec::new());
        }
        let row = self.ask(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let content = row.into_iter().nth(1).flatten();
        let content = content.map(|content| content.to_vec());
        content.ok_or_else(|| StreamError::Odd("TIMELINE_HISTORY has another answer".to_owned()))
    }

    /// Lets the log of a timeline come, from a position on.
    ///
    /// # Errors
    /// [`StreamError::Gone`] when the server has removed that part of it.
    pub async fn start(&mut self, timeline: u32, from: Lsn) -> Result<()> {
        let mut out = BytesMut::new();
        let query = format!("START_REPLICATION PHYSICAL {from} TIMELINE {timeline}");
        frontend::query(&query, &mut out)?;
        self.send(&out).await?;
        loop {
            match self.message().await? {
                Message::CopyOutResponse(_) => return Ok(()),
                Message::ErrorResponse(body) => return Err(refused(&body)),
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                _ => return Err(StreamError::Odd(format!("{query} has another answer"))),
            }
        }
    }

    /// What comes next. May be dropped before it ends; nothing is lost then.
    ///
    /// # Errors
    /// When the connection is lost or silent for too long, or the server ends the stream with an
    /// error.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            match self.message().await? {
                Message::CopyData(body) => return event(body.into_bytes()),
                Message::CopyDone | Message::CommandComplete(_) => return Ok(Event::End),
                Message::ErrorResponse(body) => return Err(refused(&body)),
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                _ => return Err(StreamError::Odd("something else than log came".to_owned())),
            }
        }
    }

    /// Tells the server what was received and what is stored for good, and asks it for a word.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn report(&mut self, received: Lsn, stored: Lsn, ask: bool) -> Result<()> {
        let now = Timestamp::now().as_microsecond() - EPOCH * 1_000_000;
        let mut body = BytesMut::with_capacity(34);
        body.put_u8(b'r');
        body.put_u64(received.0);
        body.put_u64(stored.0);
        body.put_u64(stored.0);
        body.put_i64(now);
        body.put_u8(u8::from(ask));
        let mut out = BytesMut::new();
        frontend::CopyData::new(body.freeze())?.write(&mut out);
        self.send(&out).await
    }
}

/// With patience that ends.
async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the server is silent")),
    }
}

fn text(field: Option<&Option<Bytes>>) -> Option<&str> {
    std::str::from_utf8(field?.as_ref()?).ok()
}

fn refused(body: &ErrorResponseBody) -> StreamError {
    let mut fields = HashMap::new();
    let mut each = body.fields();
    while let Ok(Some(field)) = each.next() {
        fields.insert(field.type_(), String::from_utf8_lossy(field.value_bytes()).into_owned());
    }
    let mut field = |kind| fields.remove(&kind).unwrap_or_default();
    let (code, message) = (field(b'C'), field(b'M'));
    match code.as_str() {
        GONE => StreamError::Gone(message),
        _ => StreamError::Refused { code, message },
    }
}

fn event(mut bytes: Bytes) -> Result<Event> {
    let short = |_| StreamError::Odd("a message of the stream is too short".to_owned());
    let moment = |micros: i64| {
        let since_1970 = micros.saturating_add(EPOCH * 1_000_000);
        Timestamp::from_microsecond(since_1970).map_err(|_| {
            StreamError::Odd("a message of the stream has no sensible time".to_owned())
        })
    };
    match bytes.try_get_u8().map_err(short)? {
        b'w' => {
            let start = Lsn(bytes.try_get_u64().map_err(short)?);
            let flushed = Lsn(bytes.try_get_u64().map_err(short)?);
            let sent = moment(bytes.try_get_i64().map_err(short)?)?;
            Ok(Event::Data { start, flushed, sent, bytes })
        }
        b'k' => {
            let end = Lsn(bytes.try_get_u64().map_err(short)?);
            let sent = moment(bytes.try_get_i64().map_err(short)?)?;
            let answer = bytes.try_get_u8().map_err(short)? != 0;
            Ok(Event::Alive { end, sent, answer })
        }
        other => Err(StreamError::Odd(format!("a message of the stream of kind {other}"))),
    }
}
