//! As little HTTP as the tests need, and none of the program's own.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Value,
}

pub(crate) fn get(url: &str) -> io::Result<Answer> {
    request("GET", url, "")
}

pub(crate) fn post(url: &str, body: &Value) -> io::Result<Answer> {
    request("POST", url, &body.to_string())
}

/// With a token.
pub(crate) fn post_as(token: &str, url: &str, body: &Value) -> io::Result<Answer> {
    let more = format!("Authorization: Bearer {token}\r\n");
    read_json("POST", url, raw("POST", url, &more, &body.to_string())?)
}

/// What is there, if it is no JSON.
pub(crate) fn text(url: &str) -> io::Result<String> {
    raw("GET", url, "", "").map(|(_, body)| body)
}

fn request(method: &str, url: &str, body: &str) -> io::Result<Answer> {
    read_json(method, url, raw(method, url, "", body)?)
}

fn read_json(method: &str, url: &str, (head, body): (String, String)) -> io::Result<Answer> {
    let bad = |why: &str| io::Error::other(format!("{method} {url}: {why}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| bad(&head))?;
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&body).map_err(|_| bad(&body))?
    };
    Ok(Answer { status, head: head.to_lowercase(), body })
}

/// Head and body of the answer.
fn raw(method: &str, url: &str, more: &str, body: &str) -> io::Result<(String, String)> {
    let bad = |why: &str| io::Error::other(format!("{method} {url}: {why}"));
    let rest = url.strip_prefix("http://").ok_or_else(|| bad("not http"))?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let address: SocketAddr = host.parse().map_err(|_| bad("no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| bad("cut off"))?;
    Ok((head.to_owned(), body.to_owned()))
}
