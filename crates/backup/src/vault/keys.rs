//! The keys of a vault: the passwords by which it can be opened.

use rustic_core::KeyOptions;
use rustic_core::repofile::{KeyFile, KeyId};
use serde::Serialize;

use super::Vault;
use crate::{Password, Result};

/// A key of a vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// By this it is named.
    pub id: String,
    /// Who made it, and where.
    pub by: String,
    /// When.
    pub created: String,
    /// It is the one by which the vault was opened.
    pub present: bool,
}

impl Vault {
    /// The keys by which the vault can be opened.
    ///
    /// # Errors
    /// When the vault cannot be read.
    pub fn keys(&self) -> Result<Vec<Key>> {
        let repository = self.repository()?;
        let read = self.told("be read");
        let present = repository.key_id().map(|id| id.to_hex().as_str().to_owned());
        let keys = repository.stream_files::<KeyFile>().map_err(&read)?;
        keys.map(|key| {
            let (id, key) = key.map_err(&read)?;
            let id = id.to_hex().as_str().to_owned();
            let by = [key.username, key.hostname].into_iter().flatten().collect::<Vec<_>>();
            Ok(Key {
                present: present.as_ref() == Some(&id),
                by: by.join("@"),
                created: key.created.map(|at| at.timestamp().to_string()).unwrap_or_default(),
                id,
            })
        })
        .collect()
    }

    /// Adds a key: another password by which the vault can be opened.
    ///
    /// # Errors
    /// When the vault cannot be written.
    pub fn add_key(&self, password: &Password) -> Result<String> {
        let _lock = self.lock()?;
        let repository = self.repository()?;
        let id = repository.add_key(password.expose(), &key_options());
        Ok(id.map_err(self.told("be given a key"))?.to_hex().as_str().to_owned())
    }

    /// Removes a key. Never the one by which it was opened, so that one always remains.
    ///
    /// # Errors
    /// When there is no such key, or it is the present one.
    pub fn remove_key(&self, id: &str) -> Result<()> {
        let _lock = self.lock()?;
        let keys = self.keys()?;
        let mut matching = keys.iter().filter(|key| !id.is_empty() && key.id.starts_with(id));
        let failed = self.failed("lose a key");
        let (Some(key), None) = (matching.next(), matching.next()) else {
            return Err(failed(format!(
                "{id:?} names no single key; see: resurgam vault key list"
            )));
        };
        if key.present {
            return Err(failed(
                "it is the one by which the vault is open; open it by another".to_owned(),
            ));
        }
        let id: KeyId = key.id.parse().map_err(self.told("lose a key"))?;
        self.repository()?.delete_key(&id).map_err(self.told("lose a key"))
    }
}

pub(super) fn key_options() -> KeyOptions {
    let mut options = KeyOptions::default();
    options.with_created = true;
    options.hostname = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_owned());
    options.username = std::env::var("USER").ok();
    options
}
