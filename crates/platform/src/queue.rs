//! Keeps the queue moving: wakes those who wait, makes tasks ready in time, fires schedules,
//! forgets what is over.
//!
//! Crash behaviour: nothing is kept here. What was due while nobody looked is found by the next
//! who looks; several who look at once pass over each other's work.

use std::sync::Arc;
use std::time::Duration;

use resurgam_client::chain;
use resurgam_model::Timestamp;
use resurgam_store::Mails;
use tokio::time::Instant;

use crate::api::App;

/// So many at once.
const BATCH: u32 = 1000;

/// So often finished tasks are looked through for old ones.
const PURGE_EVERY: Duration = Duration::from_secs(5);

/// The shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(5);

/// Wakes those who wait for tasks, whichever process made these ready; runs until dropped.
pub(crate) async fn wake(app: Arc<App>) {
    let mut wakes = app.store.wakes();
    loop {
        match wakes.next().await {
            Some(wake) => {
                let count = usize::try_from(wake.count).unwrap_or(usize::MAX);
                app.claims.wake(&wake.capability, count);
            }
            None => app.claims.recheck(),
        }
    }
}

/// Wakes those who wait for messages, whichever process sent these; runs until dropped.
pub(crate) async fn wake_readers(app: Arc<App>, mut mails: Mails) {
    loop {
        match mails.next().await {
            Some(agent) => app.readers.wake(&agent, usize::MAX),
            None => app.readers.recheck(),
        }
    }
}

/// Does what is due; runs until dropped.
pub(crate) async fn keep(app: Arc<App>) {
    let recheck = app.settings.recheck.0.max(SHORTEST);
    let mut away = false;
    let mut purge_at = Instant::now();
    loop {
        let pause = match due(&app, &mut purge_at).await {
            Ok(next) => {
                if away {
                    tracing::info!("the store is back; due tasks are made ready again");
                    away = false;
                }
                next.map_or(recheck, |next| {
                    let left = next.duration_since(Timestamp::now());
                    Duration::try_from(left).unwrap_or_default().clamp(SHORTEST, recheck)
                })
            }
            Err(error) => {
                if !away {
                    tracing::warn!(reason = chain(&error), "cannot make due tasks ready");
                    away = true;
                }
                recheck
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Does what is due. Answers when the next task is.
async fn due(app: &App, purge_at: &mut Instant) -> resurgam_store::Result<Option<Timestamp>> {
    for fired in app.store.fire().await? {
        tracing::info!(schedule = %fired.name, at = %fired.at, task = %fired.task, "fired");
    }
    let next = loop {
        let promoted = app.store.promote(BATCH).await?;
        if promoted.promoted < u64::from(BATCH) {
            break promoted.next;
        }
    };
    if Instant::now() >= *purge_at {
        let mut forgotten = 0;
        // In small parts, so that the queue goes on beside.
        while let count @ 1.. = app.store.purge(BATCH).await? {
            forgotten += count;
            if count < u64::from(BATCH) {
                break;
            }
        }
        if forgotten > 0 {
            tracing::debug!(forgotten, "old tasks were forgotten");
        }
        let expired = app.store.expire_messages(BATCH).await?;
        if expired > 0 {
            tracing::warn!(expired, "messages that nobody read in time became dead letters");
        }
        *purge_at = Instant::now() + PURGE_EVERY;
    }
    Ok(next)
}
