//! What a backup says of itself.

use std::collections::BTreeMap;

use resurgam_model::Timestamp;
use resurgam_model::database::Lsn;
use serde::{Deserialize, Serialize};

/// What kind of database is in a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Database {
    /// `database/platform.db`
    #[default]
    Sqlite,
    /// `database/data`, a base backup with the log that it needs.
    Postgres,
}

/// What a backup says of itself. It is in the vault's index, so that listing needs no data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// 1. A later program may write more than this one understands.
    pub format: u32,
    /// The name of the deployment.
    pub deployment: String,
    /// When the copy of the database was begun.
    pub taken_at: Timestamp,
    /// When the copy of the database was complete: from then on it can be brought to any moment for
    /// which there is log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole_at: Option<Timestamp>,
    /// Where in PostgreSQL's log it lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogRange>,
    /// Why it was taken: `scheduled`, or by whom it was ordered.
    pub reason: String,
    /// What kind of database.
    pub database: Database,
    /// The version of the program that wrote the database: `3.50.2` or `15`.
    pub version: String,
    /// The version of this program.
    pub program: String,
    /// Rows and checksum of each table. Of SQLite as they were copied; of PostgreSQL as the first
    /// verification found them, for a server that is written to cannot be asked at one moment.
    #[serde(default)]
    pub tables: BTreeMap<String, Table>,
    /// Why it cannot be restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bad: Option<String>,
}

/// What a table had in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Rows.
    pub rows: u64,
    /// Over all of them, in whatever order.
    pub checksum: String,
}

/// The part of PostgreSQL's log that a base backup needs to be whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRange {
    /// The system identifier: which database's log it is.
    pub system: String,
    /// The timeline.
    pub timeline: u32,
    /// Where replay begins.
    pub start: Lsn,
    /// From where on the copy is whole.
    pub end: Lsn,
    /// Bytes in a segment.
    pub segment_bytes: u64,
}

/// The format that this program writes.
pub const FORMAT: u32 = 1;
