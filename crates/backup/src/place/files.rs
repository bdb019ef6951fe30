//! Files of a vault beside its repository.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;

use super::bucket::Bucket;
use super::{CONFIG, Kind, Place};
use crate::{Error, Result};

/// The files of one folder of a vault, by name.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    place: Place,
    below: String,
}

impl Files {
    pub(super) fn new(place: Place, below: &str) -> Self {
        Self { place, below: below.to_owned() }
    }

    /// Their folder, where the place is one.
    fn dir(&self, root: &std::path::Path) -> PathBuf {
        root.join(&self.below)
    }

    fn object(&self, name: &str) -> String {
        format!("{}/{name}", self.below)
    }

    /// The names of all of them. What is written meanwhile may be missing with what it takes the place
    /// of.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        match &self.place.0 {
            Kind::Folder(root) => entries(&self.dir(root)),
            Kind::Bucket(bucket) => {
                Ok(self.objects(bucket)?.into_iter().map(|(name, _)| name).collect())
            }
        }
    }

    /// Names and sizes of the objects that lie directly in the folder.
    fn objects(&self, bucket: &Bucket) -> Result<Vec<(String, u64)>> {
        let all = bucket.list(&self.below)?;
        let prefix = format!("{}/", self.below);
        let of = |meta: object_store::ObjectMeta| {
            let name = meta.location.as_ref().strip_prefix(&prefix)?;
            (!name.contains('/')).then(|| (name.to_owned(), meta.size))
        };
        Ok(all.into_iter().filter_map(of).collect())
    }

    /// The names of the folders in this one.
    pub(crate) fn folders(&self) -> Result<Vec<String>> {
        match &self.place.0 {
            Kind::Folder(root) => entries(&self.dir(root)),
            Kind::Bucket(bucket) => {
                // A list may come in several parts, and name one twice.
                let names: BTreeSet<_> = bucket.folders(&self.below)?.into_iter().collect();
                Ok(names.into_iter().collect())
            }
        }
    }

    /// What all of them take, in bytes.
    pub(crate) fn bytes(&self) -> Result<u64> {
        match &self.place.0 {
            Kind::Folder(root) => Ok(crate::vault::measure(&self.dir(root))?.1),
            Kind::Bucket(bucket) => Ok(self.objects(bucket)?.iter().map(|(_, size)| size).sum()),
        }
    }

    /// A file, if it is there.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match &self.place.0 {
            Kind::Folder(root) => {
                let path = self.dir(root).join(name);
                match fs::read(&path) {
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(Error::path("cannot read", path)(error)),
                    Ok(content) => Ok(Some(content)),
                }
            }
            Kind::Bucket(bucket) => Ok(bucket.get(&self.object(name))?.map(Vec::from)),
        }
    }

    /// Writes a file: complete and for good, or not at all.
    ///
    /// # Errors
    /// Also when there is no vault there: where a file system is not mounted any more there is an empty
    /// folder.
    pub(crate) fn write(&self, vault: &str, name: &str, content: Vec<u8>) -> Result<()> {
        let root = match &self.place.0 {
            Kind::Bucket(bucket) => return bucket.put(&self.object(name), content.into()),
            Kind::Folder(root) => root,
        };
        if !root.join(CONFIG).is_file() {
            return Err(Error::NoVault { vault: vault.to_owned(), place: self.place.to_string() });
        }
        let dir = self.dir(root);
        let (path, temporary) = (dir.join(name), dir.join(format!(".{name}.new")));
        let write = || {
            fs::create_dir_all(&dir)?;
            let mut file = File::create(&temporary)?;
            file.write_all(&content)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&dir)?.sync_all()
        };
        write().map_err(|error| {
            // Half a file on a full disk would keep it full.
            let _ = fs::remove_file(&temporary);
            Error::path("cannot write", &path)(error)
        })
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        match &self.place.0 {
            Kind::Folder(root) => {
                let path = self.dir(root).join(name);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        Err(Error::path("cannot remove", path)(error))
                    }
                    _ => Ok(()),
                }
            }
            Kind::Bucket(bucket) => bucket.remove(&self.object(name)),
        }
    }
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.place.to_string().trim_end_matches('/'), self.below)
    }
}

/// The names in a folder; none if it is not there.
fn entries(dir: &std::path::Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::path("cannot read", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::path("cannot read", dir))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_buckets_hold_the_same_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CONFIG), "").unwrap();
        for place in [Place::folder(dir.path()), Place(Kind::Bucket(Bucket::in_memory()))] {
            let files = place.files("log/one/7");
            assert_eq!(files.names().unwrap(), Vec::<String>::new());
            assert_eq!(files.read("a").unwrap(), None);
            files.write("v", "a", b"first".to_vec()).unwrap();
            files.write("v", "a", b"second".to_vec()).unwrap();
            files.write("v", "b", Vec::new()).unwrap();
            assert_eq!(files.read("a").unwrap().as_deref(), Some(&b"second"[..]));
            let mut names = files.names().unwrap();
            names.sort();
            assert_eq!(names, ["a", "b"], "{place}");
            assert_eq!(files.bytes().unwrap(), 6);
            assert_eq!(place.files("log/one").folders().unwrap(), ["7"]);
            assert_eq!(place.files("log").folders().unwrap(), ["one"]);
            files.remove("a").unwrap();
            files.remove("a").unwrap();
            assert_eq!(files.names().unwrap(), ["b"]);
        }
    }
}
