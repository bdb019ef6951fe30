//! The log of a database in a vault: compressed, encrypted, one file for each whole segment.
//!
//! ```text
//! log/DEPLOYMENT/SYSTEM/000000010000000000000003.zst.age                   a whole segment
//! log/DEPLOYMENT/SYSTEM/000000010000000000000004.00000000-00021000.zst.age a piece of one
//! log/DEPLOYMENT/SYSTEM/00000002.history.zst.age                           a timeline's history
//! log/DEPLOYMENT/SYSTEM/as-of.json                                         up to when it is whole
//! ```
//!
//! It lies beside the restic repository, for a repository has no place for something that grows
//! every second. Its key lies in the repository, so that whoever can open the vault can read it,
//! with the programs `restic`, `age` and `zstd` too.

use std::collections::BTreeMap;
use std::io::Read as _;

use age::x25519;
use resurgam_model::Timestamp;
use resurgam_model::database::Lsn;
use serde::{Deserialize, Serialize};

use super::contents::Contents;
use super::segment::{Lineage, Segment, Size};
use crate::place::{Files, Place};
use crate::{Error, Result};

const ENDING: &str = ".zst.age";
const HISTORY: &str = ".history";
const AS_OF: &str = "as-of.json";
/// Quick, for it runs beside the database; the log of a database becomes a third or less.
const LEVEL: i32 = 1;
/// So often a folder is listed until two lists agree.
const LISTS: u32 = 50;
/// The greatest history or segment that is read.
const LARGEST: u64 = 1 << 30;

/// Up to when and where a log is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsOf {
    /// All that was acknowledged before this moment is in the vault.
    pub at: Timestamp,
    /// The end of the log.
    pub end: Lsn,
    /// The timeline on which that is.
    pub timeline: u32,
    /// Bytes in a segment.
    pub segment_bytes: u64,
}

/// The log of one database in one vault. All calls block.
#[derive(Clone)]
pub struct LogStore {
    vault: String,
    files: Files,
    keys: Vec<x25519::Identity>,
    size: Size,
}

impl std::fmt::Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStore").field("files", &self.files).finish_non_exhaustive()
    }
}

impl std::fmt::Display for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the vault {}", self.vault)
    }
}

impl LogStore {
    /// Of a vault, in these of its files. With the first key is written, with all of them read.
    pub(crate) fn new(vault: &str, files: Files, keys: Vec<x25519::Identity>, size: Size) -> Self {
        Self { vault: vault.to_owned(), files, keys, size }
    }

    /// How large the segments are.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// What is there.
    ///
    /// # Errors
    /// When the vault cannot be read.
    pub fn contents(&self) -> Result<Contents> {
        // A folder that is written to while it is listed may show neither what was put in nor what
        // it took the place of, so that the log seems to have a gap. Two lists that agree have none.
        let mut before = self.list()?;
        for _ in 0..LISTS {
            let now = self.list()?;
            if now == before {
                return Ok(now);
            }
            before = now;
        }
        Err(self.failed("be read", &"what is there changes all the time"))
    }

    fn list(&self) -> Result<Contents> {
        let mut contents = Contents::default();
        for name in self.names()? {
            let name = name.as_str();
            if let Some(timeline) = name.strip_suffix(HISTORY) {
                contents.histories.extend(u32::from_str_radix(timeline, 16));
            } else if let Some(segment) = self.size.parse(name) {
                contents.whole.insert(segment);
            } else if let Some((segment, from, to)) = self.piece(name) {
                let longest = contents.pieces.entry(segment).or_default().entry(from).or_default();
                *longest = to.max(*longest);
            }
        }
        Ok(contents)
    }

    /// The names of the files, without their ending.
    fn names(&self) -> Result<Vec<String>> {
        let names = self.files.names()?;
        let names = names.iter().filter_map(|name| name.strip_suffix(ENDING));
        Ok(names.map(str::to_owned).collect())
    }

    /// What the files take.
    ///
    /// # Errors
    /// When the vault cannot be read.
    pub fn bytes(&self) -> Result<u64> {
        self.files.bytes()
    }

    fn piece(&self, name: &str) -> Option<(Segment, u64, u64)> {
        let (segment, range) = name.split_once('.')?;
        let (from, to) = range.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        (from < to && to <= self.size.bytes()).then_some((self.size.parse(segment)?, from, to))
    }

    fn piece_name(&self, segment: Segment, from: u64, to: u64) -> String {
        format!("{}.{from:08X}-{to:08X}{ENDING}", self.size.file_name(segment))
    }

    fn whole_name(&self, segment: Segment) -> String {
        format!("{}{ENDING}", self.size.file_name(segment))
    }

    fn failed(&self, action: &'static str, reason: &dyn std::fmt::Display) -> Error {
        Error::Vault { vault: self.vault.clone(), action, reason: reason.to_string() }
    }

    /// Stores a whole segment, which takes the place of its pieces. When this returns, it is on disk.
    ///
    /// # Errors
    /// When the vault cannot be written.
    pub fn put(&self, segment: Segment, bytes: &[u8]) -> Result<()> {
        self.seal(&self.whole_name(segment), bytes)?;
        self.remove_pieces(segment, None)
    }

    /// Removes all pieces of a segment but one, or all, for what covers them is there.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove_pieces(&self, segment: Segment, but: Option<(u64, u64)>) -> Result<()> {
        for name in self.names()? {
            if let Some((of, from, to)) = self.piece(&name)
                && of == segment
                && but != Some((from, to))
            {
                self.files.remove(&self.piece_name(segment, from, to))?;
            }
        }
        Ok(())
    }

    /// Stores the bytes of a segment from `from` on.
    ///
    /// # Errors
    /// When the vault cannot be written.
    pub fn put_piece(&self, segment: Segment, from: u64, bytes: &[u8]) -> Result<()> {
        self.seal(&self.piece_name(segment, from, from + bytes.len() as u64), bytes)
    }

    /// Stores the history of a timeline.
    ///
    /// # Errors
    /// When the vault cannot be written.
    pub fn put_history(&self, timeline: u32, content: &[u8]) -> Result<()> {
        self.seal(&format!("{timeline:08X}{HISTORY}{ENDING}"), content)
    }

    /// Writes down up to when it is whole.
    ///
    /// # Errors
    /// When the vault cannot be written.
    pub fn put_as_of(&self, as_of: &AsOf) -> Result<()> {
        let json = serde_json::to_vec(as_of).map_err(|e| self.failed("be written", &e))?;
        self.files.write(&self.vault, AS_OF, json)
    }

    /// Up to when it is whole; none if there is no log.
    ///
    /// # Errors
    /// When the vault cannot be read.
    pub fn as_of(&self) -> Result<Option<AsOf>> {
        let Some(json) = self.files.read(AS_OF)? else { return Ok(None) };
        serde_json::from_slice(&json).map(Some).map_err(|error| Error::Damaged {
            what: format!("{}/{AS_OF}", self.files),
            how: error.to_string(),
        })
    }

    /// A whole segment, or the first `reached` bytes of its pieces and zeros after them: to
    /// PostgreSQL, that is where the log ends.
    ///
    /// # Errors
    /// When it is not there, or damaged.
    pub fn get(&self, segment: Segment, reached: Option<u64>) -> Result<Vec<u8>> {
        let size = usize::try_from(self.size.bytes()).unwrap_or(usize::MAX);
        let damaged = |how: &str| Error::Damaged {
            what: format!(
                "segment {} of the log in the vault {}",
                self.size.file_name(segment),
                self.vault
            ),
            how: how.to_owned(),
        };
        let Some(reached) = reached else {
            let bytes = self.open(&self.whole_name(segment))?;
            return if bytes.len() == size {
                Ok(bytes)
            } else {
                Err(damaged("it has not the size of one"))
            };
        };
        let mut all = vec![0; size];
        for (from, to) in self.pieces_of(segment)? {
            if from >= reached {
                continue;
            }
            let bytes = self.open(&self.piece_name(segment, from, to))?;
            let (from, to) = (usize::try_from(from), usize::try_from(to));
            let place = from.ok().zip(to.ok()).and_then(|(from, to)| all.get_mut(from..to));
            match place {
                Some(place) if place.len() == bytes.len() => place.copy_from_slice(&bytes),
                _ => return Err(damaged("a piece has not the size that its name says")),
            }
        }
        Ok(all)
    }

    fn pieces_of(&self, segment: Segment) -> Result<BTreeMap<u64, u64>> {
        Ok(self.contents()?.pieces.remove(&segment).unwrap_or_default())
    }

    /// The history of a timeline: its file's content. Empty for the first one.
    ///
    /// # Errors
    /// When it is not there, or damaged.
    pub fn history(&self, timeline: u32) -> Result<Vec<u8>> {
        if timeline <= 1 {
            return Ok(Vec::new());
        }
        self.open(&format!("{timeline:08X}{HISTORY}{ENDING}"))
    }

    /// How a timeline came about.
    ///
    /// # Errors
    /// As [`LogStore::history`].
    pub fn lineage(&self, timeline: u32) -> Result<Lineage> {
        let text = self.history(timeline)?;
        Lineage::parse(timeline, &String::from_utf8_lossy(&text)).map_err(|how| Error::Damaged {
            what: format!("the log in the vault {}", self.vault),
            how,
        })
    }

    /// Removes segments, with their pieces.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove(&self, segments: &[Segment]) -> Result<()> {
        let contents = self.contents()?;
        for segment in segments {
            if contents.pieces.contains_key(segment) {
                self.remove_pieces(*segment, None)?;
            }
            if contents.whole.contains(segment) {
                self.files.remove(&self.whole_name(*segment))?;
            }
        }
        Ok(())
    }

    /// Compresses, encrypts and writes.
    fn seal(&self, name: &str, plain: &[u8]) -> Result<()> {
        let failed = |error: &dyn std::fmt::Display| self.failed("be written", error);
        let key = self.keys.first().ok_or_else(|| failed(&"it has no key for the log"))?;
        let packed = zstd::bulk::compress(plain, LEVEL).map_err(|error| failed(&error))?;
        let sealed = age::encrypt(&key.to_public(), &packed).map_err(|error| failed(&error))?;
        self.files.write(&self.vault, name, sealed)
    }

    fn open(&self, name: &str) -> Result<Vec<u8>> {
        let path = || format!("{}/{name}", self.files);
        let Some(sealed) = self.files.read(name)? else {
            return Err(self.failed("be read", &format!("{} is not there", path())));
        };
        let damaged = |how: String| Error::Damaged { what: path(), how };
        let decryptor =
            age::Decryptor::new_buffered(&*sealed).map_err(|error| damaged(error.to_string()))?;
        let keys = self.keys.iter().map(|key| key as &dyn age::Identity);
        let packed = decryptor.decrypt(keys).map_err(|error| damaged(error.to_string()))?;
        let mut plain = Vec::new();
        zstd::Decoder::new(packed)
            .and_then(|plain_reader| plain_reader.take(LARGEST + 1).read_to_end(&mut plain))
            .map_err(|error| damaged(error.to_string()))?;
        Ok(plain)
    }
}

/// The logs of a deployment in a vault: the names of the systems.
pub(crate) fn systems(place: &Place, deployment: &str) -> Result<Vec<String>> {
    place.files(&folder(deployment)).folders()
}

/// Where in a vault the logs of a deployment are.
pub(crate) fn folder(deployment: &str) -> String {
    format!("log/{deployment}")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn store(dir: &Path) -> LogStore {
        let size = Size::new(1 << 20).unwrap();
        fs::write(dir.join("config"), "").unwrap();
        let files = Place::folder(dir).files("log");
        LogStore::new("here", files, vec![x25519::Identity::generate()], size)
    }

    #[test]
    fn pieces_and_wholes_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        assert_eq!(store.contents().unwrap(), Contents::default());
        assert_eq!(store.as_of().unwrap(), None);
        let segment = Segment { number: 4097, timeline: 2 };
        store.put_piece(segment, 0, b"first").unwrap();
        store.put_piece(segment, 5, b" second").unwrap();
        let contents = store.contents().unwrap();
        assert_eq!(contents.reaches(segment), 12);
        let got = store.get(segment, Some(12)).unwrap();
        assert_eq!((got.len(), got.get(..13)), (1 << 20, Some(&b"first second\0"[..])));
        let got = store.get(segment, Some(5)).unwrap();
        assert_eq!(got.get(..6), Some(&b"first\0"[..]), "only as much as was asked for");

        let whole: Vec<u8> = (0..1 << 20).map(|n| (n % 251) as u8).collect();
        store.put(segment, &whole).unwrap();
        assert_eq!(store.get(segment, None).unwrap(), whole);
        let contents = store.contents().unwrap();
        assert!(contents.pieces.is_empty() && contents.whole.contains(&segment));
        store.put_history(2, b"1\t0/100\tso\n").unwrap();
        assert_eq!(store.lineage(2).unwrap().to_string(), "timeline 1, from 0/100 on 2");
        let as_of = AsOf {
            at: Timestamp::now(),
            end: Lsn(7),
            timeline: 2,
            segment_bytes: store.size().bytes(),
        };
        store.put_as_of(&as_of).unwrap();
        assert_eq!(store.as_of().unwrap(), Some(as_of));
        store.remove(&[segment]).unwrap();
        assert_eq!(store.contents().unwrap().whole.len(), 0);

        // The file system is gone, and the folder on which it was mounted is there.
        fs::remove_file(dir.path().join("config")).unwrap();
        fs::remove_dir_all(dir.path().join("log")).unwrap();
        let refused = store.put(segment, &whole);
        assert!(matches!(refused, Err(Error::NoVault { .. })), "{refused:?}");
        assert!(!dir.path().join("log").exists());
    }

    #[test]
    fn damage_and_strangers_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let segment = Segment { number: 1, timeline: 1 };
        store.put_piece(segment, 0, &[7; 5000]).unwrap();
        let path = dir.path().join("log").join(store.piece_name(segment, 0, 5000));
        let stranger = LogStore { keys: vec![x25519::Identity::generate()], ..store.clone() };
        assert!(matches!(stranger.get(segment, Some(1)), Err(Error::Damaged { .. })));
        let whole = fs::read(&path).unwrap();
        for at in [0, 40, whole.len() / 2, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, &flipped).unwrap();
            let got = store.get(segment, Some(5000));
            assert!(matches!(got, Err(Error::Damaged { .. })), "byte {at}: {got:?}");
        }
        fs::write(&path, &whole[..whole.len() - 20]).unwrap();
        assert!(matches!(store.get(segment, Some(5000)), Err(Error::Damaged { .. })));
        fs::write(
            dir.path().join("log").join("000000010000000000000009.FFFFFFFF-00000001.zst.age"),
            "",
        )
        .unwrap();
        fs::write(dir.path().join("log").join(".000000010000000000000009.zst.age.new"), "")
            .unwrap();
        assert_eq!(store.contents().unwrap().whole.len(), 0);
    }
}
