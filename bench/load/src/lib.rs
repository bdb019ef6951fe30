//! A generator of load over HTTP/1.1 that costs little itself: bytes as they are written, one
//! connection for each caller, kept alive.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;

/// Any error ends the measurement.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A connection that is kept.
pub struct Connection {
    stream: BufStream<TcpStream>,
    host: String,
}

/// What was answered.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON, if the request succeeded.
    pub fn json(&self) -> Result<Value, Failure> {
        if (200..300).contains(&self.status) {
            return Ok(serde_json::from_slice(&self.body)?);
        }
        Err(format!("{}: {}", self.status, String::from_utf8_lossy(&self.body)).into())
    }
}

impl Connection {
    /// Connects to `127.0.0.1:PORT`.
    pub async fn open(host: &str) -> Result<Self, Failure> {
        let stream = TcpStream::connect(host).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufStream::new(stream), host: host.to_owned() })
    }

    /// Makes a request and reads all of its answer.
    pub async fn call(&mut self, method: &str, path: &str, body: &str) -> Result<Answer, Failure> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        self.stream.write_all(head.as_bytes()).await?;
        self.stream.write_all(body.as_bytes()).await?;
        self.stream.flush().await?;
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let status = line.split(' ').nth(1).ok_or("the connection was closed")?.parse()?;
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line).await?;
            let field = line.trim_end().to_ascii_lowercase();
            if field.is_empty() {
                break;
            }
            if let Some(value) = field.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            } else if field.starts_with("transfer-encoding:") {
                return Err("the answer comes in chunks, which this does not read".into());
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok(Answer { status, body })
    }
}

/// When request number `number` is due, at so many each second.
pub fn due(begun: Instant, number: u64, per_second: f64) -> Instant {
    begun + Duration::from_secs_f64(number as f64 / per_second)
}

/// p50, p99 and so on, of milliseconds.
pub fn summary(samples: &mut [f64]) -> Value {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (share * samples.len() as f64) as usize;
        samples.get(index.min(samples.len().saturating_sub(1))).copied()
    };
    json!({"samples": samples.len(), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99),
           "p999": at(0.999), "max": samples.last()})
}

/// Argument number `index`, as what it is to be.
pub fn argument<T: std::str::FromStr>(index: usize, name: &str) -> Result<T, Failure> {
    let text = std::env::args().nth(index).ok_or_else(|| format!("{name} is missing"))?;
    text.parse().map_err(|_| format!("{name} cannot be {text}").into())
}
