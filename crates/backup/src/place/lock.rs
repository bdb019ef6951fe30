//! One who writes to a vault at a time.
//!
//! In a folder the kernel keeps the lock, which ends with the process. In a bucket each who wants it
//! puts an object of its own beside those of others, and has it if there is none that is older and alive;
//! this is how the `restic` program does it, and rests on nothing but that what was put is listed. Whoever
//! has it puts its object anew every now and then. Ages are told by the store's own clock.

use std::fs::File;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use object_store::{ObjectMeta, PutPayload};
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::bucket::Bucket;
use super::{Kind, Place};
use crate::{Error, Result};

/// So long one waits for another who writes to the vault.
const TURN: Duration = Duration::from_secs(60);
/// With a pause between looks: in a folder, and in a bucket, where each costs money.
const LOOK: Duration = Duration::from_millis(100);
const LOOK_FAR: Duration = Duration::from_millis(1500);
/// Where the objects lie.
const BELOW: &str = "resurgam-locks";
/// Whoever has it says so this often.
const ALIVE: Duration = Duration::from_secs(60);
/// One that has not been heard of for so long is dead.
const DEAD: Duration = Duration::from_secs(5 * 60);

/// The lock of a vault, until it is dropped.
#[derive(Debug)]
pub(crate) enum Lock {
    Folder { _file: File },
    Bucket { _object: Object },
}

impl Lock {
    pub(super) fn take(place: &Place, vault: &str) -> Result<Self> {
        let until = Instant::now() + TURN;
        let busy = || Error::Busy { what: format!("somebody else writes to the vault {vault}") };
        match &place.0 {
            Kind::Folder(root) => {
                let path = root.join("resurgam.lock");
                let file = File::options().create(true).truncate(false).write(true).open(&path);
                let file = file.map_err(Error::path("cannot open", &path))?;
                loop {
                    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                        Ok(()) => return Ok(Self::Folder { _file: file }),
                        Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                            std::thread::sleep(LOOK);
                        }
                        Err(rustix::io::Errno::WOULDBLOCK) => return Err(busy()),
                        Err(error) => return Err(Error::path("cannot lock", path)(error.into())),
                    }
                }
            }
            Kind::Bucket(bucket) => loop {
                if let Some(object) = Object::take(bucket)? {
                    return Ok(Self::Bucket { _object: object });
                }
                if Instant::now() > until {
                    return Err(busy());
                }
                // Two who come at once both give way; they do not come back at once.
                std::thread::sleep(LOOK_FAR.mul_f64(0.5 + chance()));
            },
        }
    }
}

/// From 0 to 1.
fn chance() -> f64 {
    let (_, bits) = Uuid::new_v4().as_u64_pair();
    f64::from((bits & 0xffff) as u16) / f64::from(u16::MAX)
}

/// The object of whoever has the lock of a bucket.
#[derive(Debug)]
pub(crate) struct Object {
    bucket: Bucket,
    name: String,
    /// Dropped to end the thread.
    end: Option<Sender<()>>,
    alive: Option<JoinHandle<()>>,
}

impl Object {
    /// Takes the lock, unless somebody else has it.
    fn take(bucket: &Bucket) -> Result<Option<Self>> {
        let name = Uuid::now_v7().to_string();
        let mut object = Self {
            bucket: bucket.clone(),
            name: format!("{BELOW}/{name}"),
            end: None,
            alive: None,
        };
        object.put()?;
        let all = bucket.list(BELOW)?;
        let Some(own) = all.iter().find(|meta| is(meta, &name)) else {
            return Err(Error::Store {
                action: "be locked",
                place: bucket.to_string(),
                reason: "what was written to it is not listed".to_owned(),
            });
        };
        for other in all.iter().filter(|meta| !is(meta, &name)) {
            let age = own.last_modified - other.last_modified;
            let age = age.to_std().unwrap_or(Duration::ZERO);
            if age < DEAD {
                // It goes with the object that is dropped here.
                return Ok(None);
            }
            let dead = other.location.filename().unwrap_or_default();
            tracing::warn!(lock = dead, place = %bucket, "removing the lock of somebody who is dead");
            bucket.remove(&format!("{BELOW}/{dead}"))?;
        }
        object.keep_alive();
        Ok(Some(object))
    }

    fn put(&self) -> Result<()> {
        let by = format!("{{\"pid\":{}}}\n", std::process::id());
        self.bucket.put(&self.name, PutPayload::from(by.into_bytes()))
    }

    fn keep_alive(&mut self) {
        let (end, ended) = mpsc::channel::<()>();
        let (bucket, name) = (self.bucket.clone(), self.name.clone());
        let alive = std::thread::spawn(move || {
            while ended.recv_timeout(ALIVE) == Err(RecvTimeoutError::Timeout) {
                let object = PutPayload::from_static(b"{}\n");
                if let Err(error) = bucket.put(&name, object) {
                    tracing::warn!(%error, "cannot say that the lock is still needed");
                }
            }
        });
        (self.end, self.alive) = (Some(end), Some(alive));
    }
}

fn is(meta: &ObjectMeta, name: &str) -> bool {
    meta.location.filename() == Some(name)
}

impl Drop for Object {
    fn drop(&mut self) {
        self.end = None;
        if let Some(alive) = self.alive.take() {
            let _ = alive.join();
        }
        if let Err(error) = self.bucket.remove(&self.name) {
            tracing::warn!(%error, "a lock is left; it is void after 5 minutes");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_has_the_lock_of_a_bucket() {
        let bucket = Bucket::in_memory();
        let first = Object::take(&bucket).unwrap().unwrap();
        assert!(Object::take(&bucket).unwrap().is_none());
        assert_eq!(bucket.list(BELOW).unwrap().len(), 1, "who does not get it leaves nothing");
        drop(first);
        assert!(Object::take(&bucket).unwrap().is_some());
        assert_eq!(bucket.list(BELOW).unwrap().len(), 0);
    }

    #[test]
    fn many_take_turns() {
        let bucket = Bucket::in_memory();
        let inside = std::sync::Mutex::new(());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut times = 0;
                    while times < 20 {
                        if let Some(_lock) = Object::take(&bucket).unwrap() {
                            let _alone = inside.try_lock().expect("somebody else is inside");
                            times += 1;
                        }
                    }
                });
            }
        });
    }
}
