//! The chain: each change of the journal as an entry, with a hash over it and all before it.
//!
//! An entry that is changed, taken out or put in between breaks the chain, and a row of the other
//! tables that does not agree with its last entry was changed by somebody else. What a chain alone
//! cannot show is that its end was cut off. So its head, number and hash of the last entry, goes
//! out with logs and reports: whoever has one from earlier can ask whether it is still a part of
//! the chain.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use resurgam_model::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Journal, counted, millis, timestamp, to_counted};
use crate::Result;

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An incident was opened, changed or closed; the content is how it is now.
    Incident,
    /// A step began or ended; the content is how it is now.
    Step,
    /// Something seen was kept.
    Evidence,
    /// Who reigns over the database has changed.
    Cluster,
    /// The deployment was started, or ended in order.
    Run,
    /// A person has said something about an incident.
    Note,
    /// A person has ordered something.
    Order,
    /// A person has done something to the deployment while nothing ran.
    Act,
    /// The journal was there before it had a chain: this is what it held.
    Adopted,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Incident,
        Self::Step,
        Self::Evidence,
        Self::Cluster,
        Self::Run,
        Self::Note,
        Self::Order,
        Self::Act,
        Self::Adopted,
    ];

    /// The word in the journal.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Incident => "incident",
            Self::Step => "step",
            Self::Evidence => "evidence",
            Self::Cluster => "cluster",
            Self::Run => "run",
            Self::Note => "note",
            Self::Order => "order",
            Self::Act => "act",
            Self::Adopted => "adopted",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// 1 for the first, without gaps.
    pub number: u64,
    /// When it was written, to the millisecond.
    pub at: Timestamp,
    /// What kind of change.
    pub kind: Kind,
    /// What was changed: the id of an incident, with `/` and a number for one of its steps.
    pub about: String,
    /// How it is since then, as JSON.
    pub content: serde_json::Value,
    /// Over this entry and the hash before it, in hexadecimal digits.
    pub hash: String,
}

/// Where the chain ends: `57:9f86d0…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The number of the last entry; 0 for an empty chain.
    pub number: u64,
    /// Its hash in hexadecimal digits.
    pub hash: String,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, self.hash)
    }
}

/// A text is no head of a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no head of a journal; write its number, a colon and 64 hexadecimal digits")]
pub struct NoHead(String);

impl FromStr for Head {
    type Err = NoHead;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let no = || NoHead(text.chars().take(80).collect());
        let (number, hash) = text.split_once(':').ok_or_else(no)?;
        let number = number.parse().map_err(|_| no())?;
        let fits = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        fits.then(|| Self { number, hash: hash.to_ascii_lowercase() }).ok_or_else(no)
    }
}

/// What a look at the whole journal found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Entries that were looked at.
    pub entries: u64,
    /// The number and hash of the last one.
    pub head: String,
    /// What is wrong, each a sentence for people; empty when all is well.
    pub findings: Vec<String>,
}

/// The hash before the first entry.
const NOTHING: [u8; 32] = [0; 32];
/// More findings than these tell nothing new.
const FINDINGS: usize = 100;

/// Length before content, so that no two different entries give the same bytes.
fn hash(before: &[u8], number: u64, at: i64, kind: &str, about: &str, content: &str) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(before);
    hasher.update(number.to_be_bytes());
    hasher.update(at.to_be_bytes());
    for part in [kind, about, content] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts an entry at the end, in the transaction of the change that it is about.
pub(super) fn append(
    transaction: &Transaction<'_>,
    now: Timestamp,
    kind: Kind,
    about: &str,
    content: &impl Serialize,
) -> rusqlite::Result<u64> {
    let content = super::json(content)?;
    let last = transaction
        .query_row("SELECT number, hash FROM entries ORDER BY number DESC LIMIT 1", [], |row| {
            Ok((counted(row.get(0)?), row.get::<_, Vec<u8>>(1)?))
        })
        .optional()?;
    let (number, before) = last.unwrap_or((0, NOTHING.to_vec()));
    let number = number + 1;
    let at = millis(now);
    let hash = hash(&before, number, at, kind.as_str(), about, &content);
    transaction.execute(
        "INSERT INTO entries (number, at, kind, about, content, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![to_counted(number), at, kind.as_str(), about, content, hash.as_slice()],
    )?;
    Ok(number)
}

/// The rows as they should be by their last entries.
#[derive(Default)]
struct Expected {
    /// Of incidents, steps and the cluster, by kind and what they are about.
    last: BTreeMap<(Kind, String), String>,
    /// Of each incident.
    evidence: BTreeMap<String, Vec<String>>,
}

impl Journal {
    /// The end of the chain.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn head(&self) -> Result<Head> {
        self.with("be read", |c| {
            let sql = "SELECT number, hash FROM entries ORDER BY number DESC LIMIT 1";
            let read = |row: &rusqlite::Row<'_>| {
                let hash: Vec<u8> = row.get(1)?;
                Ok(Head { number: counted(row.get(0)?), hash: hexadecimal(&hash) })
            };
            let none = || Head { number: 0, hash: hexadecimal(&NOTHING) };
            Ok(c.query_row(sql, [], read).optional()?.unwrap_or_else(none))
        })
    }

    /// Entries with greater numbers than `after`, the oldest first, at most `limit`; with `about`
    /// only those about that incident and its steps.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn entries(&self, after: u64, limit: u32, about: Option<&str>) -> Result<Vec<Entry>> {
        self.with("be read", |c| {
            let sql = "SELECT number, at, kind, about, content, hash FROM entries
                 WHERE number > ?1 AND (?2 IS NULL OR about = ?2 OR about LIKE ?2 || '/%')
                 ORDER BY number LIMIT ?3";
            c.prepare(sql)?
                .query_map(params![to_counted(after), about, limit], |row| {
                    let (kind, content): (String, String) = (row.get(2)?, row.get(4)?);
                    let hash: Vec<u8> = row.get(5)?;
                    Ok(Entry {
                        number: counted(row.get(0)?),
                        at: timestamp(row.get(1)?),
                        kind: super::word(kind)?,
                        about: row.get(3)?,
                        content: serde_json::from_str(&content).unwrap_or_default(),
                        hash: hexadecimal(&hash),
                    })
                })?
                .collect()
        })
    }

    /// Looks at every entry and at every row, at one moment. With `earlier`, a head from before,
    /// also finds out whether the chain still has it.
    ///
    /// # Errors
    /// When the journal cannot be read; what is wrong with its content is in the answer.
    pub fn verify(&self, earlier: Option<&Head>) -> Result<Verification> {
        self.with("be read", |c| {
            let transaction = c.transaction()?;
            verify(&transaction, earlier)
        })
    }
}

fn verify(c: &Connection, earlier: Option<&Head>) -> rusqlite::Result<Verification> {
    let mut findings = Findings::default();
    let mut expected = Expected::default();
    let mut before = NOTHING.to_vec();
    let mut number = 0;
    let mut met = earlier.is_none_or(|head| head.number == 0);
    let mut statement =
        c.prepare("SELECT number, at, kind, about, content, hash FROM entries ORDER BY number")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let found = counted(row.get(0)?);
        let at: i64 = row.get(1)?;
        let (kind, about): (String, String) = (row.get(2)?, row.get(3)?);
        let (content, stored): (String, Vec<u8>) = (row.get(4)?, row.get(5)?);
        if found != number + 1 {
            findings.add(format!("between the entries {number} and {found} something is missing"));
        }
        let computed = hash(&before, found, at, &kind, &about, &content);
        if computed.as_slice() != stored {
            findings.add(format!(
                "entry {found} ({kind} {about}) is not what was written, or not what was written after entry {number}"
            ));
        }
        if let Some(head) = earlier.filter(|head| head.number == found) {
            met = head.hash == hexadecimal(&stored);
        }
        (before, number) = (stored, found);
        expected.learn(&kind, about, content, &mut findings, found);
    }
    if let Some(head) = earlier.filter(|_| !met) {
        findings.add(format!(
            "the chain does not have entry {} with the hash {}: its end was cut off, or it was written anew",
            head.number, head.hash
        ));
    }
    expected.compare(c, &mut findings)?;
    Ok(Verification {
        entries: number,
        head: Head { number, hash: hexadecimal(&before) }.to_string(),
        findings: findings.list,
    })
}

#[derive(Default)]
struct Findings {
    list: Vec<String>,
}

impl Findings {
    fn add(&mut self, text: String) {
        if self.list.len() < FINDINGS {
            self.list.push(text);
        }
    }
}

impl Expected {
    fn learn(
        &mut self,
        kind: &str,
        about: String,
        content: String,
        findings: &mut Findings,
        number: u64,
    ) {
        match Kind::parse(kind) {
            Some(kind @ (Kind::Incident | Kind::Step | Kind::Cluster | Kind::Run)) => {
                self.last.insert((kind, about), content);
            }
            Some(Kind::Evidence) => self.evidence.entry(about).or_default().push(content),
            Some(Kind::Note | Kind::Order | Kind::Act | Kind::Adopted) => {}
            None => findings.add(format!("entry {number} is of an unknown kind: {kind:?}")),
        }
    }

    fn compare(mut self, c: &Connection, findings: &mut Findings) -> rusqlite::Result<()> {
        for (kind, about, content) in super::rows(c)? {
            match kind {
                Kind::Evidence => {
                    let mut known = self.evidence.remove(&about).unwrap_or_default();
                    match known.iter().position(|one| *one == content) {
                        Some(place) => drop(known.remove(place)),
                        None => findings
                            .add(format!("evidence of the incident {about} was changed or put in")),
                    }
                    if !known.is_empty() {
                        self.evidence.insert(about, known);
                    }
                }
                kind => match self.last.remove(&(kind, about.clone())) {
                    Some(last) if last == content => {}
                    Some(_) => findings.add(format!(
                        "the {} {about} is not as its last entry says: it was changed",
                        kind.as_str()
                    )),
                    None => findings
                        .add(format!("the {} {about} has no entry: it was put in", kind.as_str())),
                },
            }
        }
        for (kind, about) in self.last.into_keys() {
            findings.add(format!("the {} {about} is missing", kind.as_str()));
        }
        for (about, missing) in self.evidence {
            findings.add(format!("evidence of the incident {about} is missing: {}", missing.len()));
        }
        Ok(())
    }
}
