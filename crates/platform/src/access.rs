//! Who may come in: what a process is told about it, and tokens.

use std::fmt::{self, Write};
use std::str::FromStr;

use resurgam_model::Duration;
use resurgam_model::access::{AccessMode, AccessRole, TokenHash};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::api::{Needs, TABLE};

/// How access is controlled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessSettings {
    /// Whether callers must say who they are.
    pub mode: AccessMode,
    /// What the parts of the platform show each other. It allows everything; what is
    /// [derived](Secret::derived) from it for [`WORKER`] allows to work as any agent.
    pub internal: Option<Secret>,
    /// How many requests one caller may make.
    pub rate: Option<Rate>,
    /// How long the audit log remembers.
    pub audit_keep: Duration,
}

/// What the token of the platform's own workers is derived for.
pub const WORKER: &str = "worker";

impl Default for AccessSettings {
    fn default() -> Self {
        Self {
            mode: AccessMode::Open,
            internal: None,
            rate: None,
            audit_keep: Duration::from_secs(90 * 24 * 3600),
        }
    }
}

/// Every route, by method and path, and the role that it needs when access is controlled; none
/// for what everybody may ask.
pub fn routes() -> impl Iterator<Item = (&'static str, &'static str, Option<AccessRole>)> {
    TABLE.iter().map(|(method, path, rule)| match rule.needs {
        Needs::Nothing => (*method, *path, None),
        Needs::Role(role) => (*method, *path, Some(role)),
    })
}

/// How many requests one caller may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many per second in the long run; at least one.
    pub per_second: u32,
    /// So many at once after a rest; at least one.
    pub burst: u32,
}

/// A token: `rsg_` and 256 random bits in hexadecimal. Neither Debug nor anything else shows it,
/// except [`Secret::expose`].
#[derive(Clone)]
pub struct Secret(String);

/// By this a token is known as one, also by scanners that look for secrets where none should be.
const PREFIX: &str = "rsg_";
const BYTES: usize = 32;

impl Secret {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes).map_err(|error| NoRandomness(error.to_string()))?;
        Ok(Self::of(&bytes))
    }

    fn of(bytes: &[u8]) -> Self {
        let mut text = PREFIX.to_owned();
        for byte in bytes {
            // Writing to a text cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// Another one that whoever knows this one can find out, and nobody else.
    #[must_use]
    pub fn derived(&self, purpose: &str) -> Self {
        let hash = Sha256::new().chain_update(&self.0).chain_update(" ").chain_update(purpose);
        Self::of(&hash.finalize())
    }

    /// What is kept of it.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(&self.0).into())
    }

    /// The text, to hand it to its owner.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Takes the same time whether they differ early, late or not at all.
pub(crate) fn same(one: &TokenHash, other: &TokenHash) -> bool {
    one.0.ct_eq(&other.0).into()
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        same(&self.hash(), &other.hash())
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Not a token. The text is not repeated: it may be most of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no token: one begins with {PREFIX} and goes on with 64 hexadecimal digits")]
pub struct NoToken;

impl FromStr for Secret {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(PREFIX).ok_or(NoToken)?;
        let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        match digits.len() == 2 * BYTES && digits.bytes().all(hexadecimal) {
            true => Ok(Self(text.to_owned())),
            false => Err(NoToken),
        }
    }
}

/// The system has no randomness to give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random numbers: {0}")]
pub struct NoRandomness(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_and_can_be_read_back() {
        let secret = Secret::generate().unwrap();
        assert_ne!(secret, Secret::generate().unwrap());
        assert_eq!(secret.expose().parse(), Ok(secret.clone()));
        assert!(!format!("{secret:?}").contains(&secret.expose()[4..20]));
        let derived = secret.derived(WORKER);
        assert_eq!(derived, secret.derived(WORKER));
        assert_ne!(derived, secret.derived("other"));
        assert_ne!(derived, secret);
        assert_eq!(derived.expose().len(), secret.expose().len());
    }

    #[test]
    fn what_is_no_token_is_told_without_repeating_it() {
        let secret = Secret::generate().unwrap();
        let upper = format!("rsg_{}", secret.expose()[4..].to_uppercase());
        for bad in ["", "rsg_", "abc", &secret.expose()[1..], &secret.expose()[..60], &upper] {
            let error = bad.parse::<Secret>().unwrap_err().to_string();
            assert!(bad.len() < 5 || !error.contains(bad), "{error}");
        }
    }
}
