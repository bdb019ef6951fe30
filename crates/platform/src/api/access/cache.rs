//! What a process remembers of tokens, so that it need not ask the store for each request.
//!
//! A token that was looked up is remembered as long as nobody has revoked one. Whether somebody
//! has, the store tells by a number that grows with each revocation. That number is read before
//! what is remembered is older than [`FRESH`]: so a revocation takes effect everywhere within
//! that time, and a store that is away lets nobody in. Under load the number is read ahead, in
//! the background, so that no request waits for it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use resurgam_model::access::{AccessToken, TokenHash};
use resurgam_model::{Timestamp, TokenId};
use resurgam_store::{Result, SharedStore};

/// A revocation takes effect within this time.
const FRESH: Duration = Duration::from_secs(1);
/// After so long the number is read ahead.
const AHEAD: Duration = Duration::from_millis(500);
/// So many tokens are remembered in each of two generations: the young one becomes the old one
/// when it is full.
const MOST: usize = 50_000;
/// That a token was used is noted at most so often, in seconds.
const NOTE_USE_EVERY: i64 = 300;

/// The tokens that are remembered.
pub(super) struct Cache {
    store: SharedStore,
    state: Mutex<State>,
    /// Whether somebody reads the number ahead.
    ahead: AtomicBool,
    /// Held by the one who reads the number while others wait for it.
    checking: tokio::sync::Mutex<()>,
    used: Mutex<HashSet<TokenId>>,
}

#[derive(Default)]
struct State {
    /// The number, and when the reading of it began.
    checked: Option<(i64, Instant)>,
    young: HashMap<TokenHash, Arc<Known>>,
    old: HashMap<TokenHash, Arc<Known>>,
}

/// A token.
pub(super) struct Known {
    pub(super) token: AccessToken,
    /// Of the secret: finds it again.
    pub(super) hash: TokenHash,
    /// When its use was last noted, in seconds since 1970.
    noted: AtomicI64,
}

impl State {
    fn age(&self) -> Option<Duration> {
        self.checked.map(|(_, at)| at.elapsed())
    }

    fn get(&mut self, hash: &TokenHash) -> Option<Arc<Known>> {
        if let Some(known) = self.young.get(hash) {
            return Some(Arc::clone(known));
        }
        let known = self.old.remove(hash)?;
        self.put(*hash, Arc::clone(&known));
        Some(known)
    }

    fn put(&mut self, hash: TokenHash, known: Arc<Known>) {
        if self.young.len() >= MOST {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, known);
    }
}

impl Cache {
    pub(super) fn new(store: SharedStore) -> Arc<Self> {
        Arc::new(Self {
            store,
            state: Mutex::default(),
            ahead: AtomicBool::new(false),
            checking: tokio::sync::Mutex::default(),
            used: Mutex::default(),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the token is remembered, however long ago the number was read.
    pub(super) fn remembers(&self, hash: &TokenHash) -> bool {
        let state = self.state();
        state.young.contains_key(hash) || state.old.contains_key(hash)
    }

    /// The token with that hash, if there is one that has not been revoked.
    pub(super) async fn find(self: &Arc<Self>, hash: &TokenHash) -> Result<Option<Arc<Known>>> {
        let age = self.state().age();
        match age {
            Some(age) if age < AHEAD => {}
            Some(age) if age < FRESH => self.check_ahead(),
            _ => self.check().await?,
        }
        let generation = {
            let mut state = self.state();
            if let Some(known) = state.get(hash) {
                return Ok(Some(known));
            }
            state.checked.map(|(generation, _)| generation)
        };
        let Some(token) = self.store.token_by_hash(hash).await? else { return Ok(None) };
        let noted = token.last_used_at.map_or(0, Timestamp::as_second);
        let known = Arc::new(Known { token, hash: *hash, noted: AtomicI64::new(noted) });
        if known.token.revoked_at.is_none() {
            let mut state = self.state();
            // If one was revoked since, this may be it.
            if state.checked.map(|(generation, _)| generation) == generation {
                state.put(*hash, Arc::clone(&known));
            }
        }
        Ok(Some(known))
    }

    /// Reads the number, unless somebody else just has.
    async fn check(&self) -> Result<()> {
        let _one = self.checking.lock().await;
        if self.state().age().is_some_and(|age| age < AHEAD) {
            return Ok(());
        }
        let began = Instant::now();
        let generation = self.store.access_generation().await?;
        let mut state = self.state();
        if state.checked.is_none_or(|(known, _)| known != generation) {
            state.young.clear();
            state.old.clear();
        }
        state.checked = Some((generation, began));
        Ok(())
    }

    fn check_ahead(self: &Arc<Self>) {
        if self.ahead.swap(true, Ordering::AcqRel) {
            return;
        }
        let cache = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = cache.check().await {
                tracing::debug!(%error, "cannot look for revoked tokens");
            }
            cache.ahead.store(false, Ordering::Release);
        });
    }

    /// What was remembered may not hold any more: this process itself has revoked one.
    pub(super) fn forget(&self) {
        *self.state() = State::default();
    }

    /// Notes that a token is used.
    pub(super) fn note_use(&self, known: &Known) {
        let now = Timestamp::now().as_second();
        let noted = known.noted.load(Ordering::Relaxed);
        if now.saturating_sub(noted) < NOTE_USE_EVERY
            || known.noted.swap(now, Ordering::Relaxed) == now
        {
            return;
        }
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(known.token.id);
    }

    /// Tells the store which tokens were used. What cannot be told is forgotten: it is no more
    /// than a hint.
    pub(super) async fn tell_use(&self) {
        let used = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        let used: Vec<_> = used.into_iter().collect();
        for some in used.chunks(1000) {
            if let Err(error) = self.store.tokens_used(some).await {
                tracing::debug!(%error, "cannot note the use of tokens");
            }
        }
    }
}
