//! Message brokers that a deployment runs itself: how to find their programs, and how to lay out
//! and start one node.
//!
//! A node is described by a [`Node`], which is written beside its data. Each listens on the
//! loopback address only. Nothing is downloaded: who wants brokers of his own installs Kafka and
//! RabbitMQ as he likes, and errors say where they were looked for.

mod kafka;
mod rabbitmq;

pub use kafka::{KafkaNode, KafkaPrograms};
pub use rabbitmq::{RabbitNode, RabbitPrograms};

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::local::spawner::die_with_parent;
use crate::{Error, Result};

/// One node of a broker. Its text form may hold a password.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Node {
    /// A broker of Kafka.
    Kafka(KafkaNode),
    /// A node of RabbitMQ.
    RabbitMq(RabbitNode),
}

impl Node {
    /// Reads the description of a node.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read(file).map_err(Error::path("cannot read", file))?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::State(format!("{}: {error}", file.display())))
    }

    /// Writes the description, for this user alone.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string(self).map_err(|error| Error::State(error.to_string()))?;
        write_private(file, &text)
    }

    /// Lays out the folder of the node, unless it is laid out already.
    ///
    /// # Errors
    /// When files cannot be written, or the node's own tool fails.
    pub fn prepare(&self) -> Result<()> {
        match self {
            Self::Kafka(node) => node.prepare(),
            Self::RabbitMq(node) => node.prepare(),
        }
    }

    /// The server.
    #[must_use]
    pub fn command(&self) -> Command {
        match self {
            Self::Kafka(node) => node.command(),
            Self::RabbitMq(node) => node.command(),
        }
    }

    /// What must run before the server and as long as it does.
    #[must_use]
    pub fn companion(&self) -> Option<Command> {
        match self {
            Self::Kafka(_) => None,
            Self::RabbitMq(node) => Some(node.port_mapper()),
        }
    }
}

/// Becomes the server of a node; returns only when that fails. Call it from the main thread: with
/// that thread, which the server goes on to use, the node's companion ends.
#[must_use]
pub fn become_node(node: &Node) -> Error {
    let started = node.prepare().and_then(|()| match node.companion() {
        Some(mut companion) => {
            die_with_parent(&mut companion);
            let program = companion.get_program().display().to_string();
            companion.spawn().map(drop).map_err(|source| Error::Spawn { program, source })
        }
        None => Ok(()),
    });
    if let Err(error) = started {
        return error;
    }
    let mut server = node.command();
    let program = server.get_program().display().to_string();
    Error::Spawn { program, source: server.exec() }
}

/// Writes a file that only this user can read.
fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let written = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(Error::path("cannot write", path))
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::path("cannot create", path))
}

/// A program on `PATH`.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|program| program.is_file())
}
