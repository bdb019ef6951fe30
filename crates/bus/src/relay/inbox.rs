//! From a broker into the mailboxes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use resurgam_model::MessageId;
use resurgam_model::message::{Message, NewMessage};
use resurgam_store::REMEMBER;

use super::envelope::{Content, again, unpack};
use super::{Line, Shared, lock};
use crate::broker::{Arrival, Arrivals, BrokerResult};

/// The pauses after a failure: the first, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// Consumes until it is dropped.
pub(super) async fn run(shared: Arc<Shared>, line: Line) {
    let [first, longest] = PAUSES;
    let mut pause = first;
    loop {
        let ended = match line.broker.receive().await {
            Ok(mut arrivals) => {
                pause = first;
                consume(&shared, &mut *arrivals).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::debug!(bus = %line.kind, %error, "nothing is received; beginning anew");
            shared.failed(line.kind, &error.to_string());
        }
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(longest);
    }
}

async fn consume(shared: &Shared, arrivals: &mut dyn Arrivals) -> BrokerResult<()> {
    loop {
        let came = arrivals.next().await?;
        let [first, longest] = PAUSES;
        let mut pause = first;
        // Only what is in the store may be settled.
        while let Err(error) = take_in(shared, &came).await {
            tracing::debug!(%error, "the store takes in no messages now");
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(longest);
        }
        arrivals.settle().await?;
    }
}

/// Puts what came into the mailboxes. May be repeated.
async fn take_in(shared: &Shared, came: &[Arrival]) -> resurgam_store::Result<()> {
    let now = Timestamp::now();
    let mut ours: HashMap<MessageId, Message> = HashMap::new();
    let (mut foreign, mut unreadable) = (Vec::new(), Vec::new());
    for arrival in came {
        match unpack(arrival, &shared.plan.kafka.topic, now) {
            Content::Ours(message) => drop(ours.insert(message.id, *message)),
            Content::Foreign(message) => match (shared.fits)(&message) {
                Ok(()) => foreign.push(*message),
                Err(reason) => unreadable.push(super::envelope::refused(*message, reason, now)),
            },
            Content::Unreadable(letter) => unreadable.push(*letter),
        }
    }
    let ids: Vec<_> = ours.keys().copied().collect();
    if !ids.is_empty() {
        let received = shared.store.delivered(&ids).await?;
        foreign.extend(lost(&received.unknown, &mut ours, now));
    }
    if !foreign.is_empty() {
        shared.store.arrive(&foreign).await?;
    }
    if let Some(first) = unreadable.first() {
        let (count, reason) = (unreadable.len(), &first.reason);
        tracing::warn!(count, reason, "messages of others are dead letters");
        shared.store.bury(&unreadable).await?;
    }
    lock(&shared.arrived).extend(ours.values().map(|message| message.sequence));
    shared.learnt.send_modify(|count| *count = count.wrapping_add(1));
    Ok(())
}

/// Messages of an outbox that the store does not know. It forgets what was acknowledged long ago;
/// what is younger it has lost, by being restored from a backup, and gets back.
fn lost(
    unknown: &[MessageId],
    ours: &mut HashMap<MessageId, Message>,
    now: Timestamp,
) -> Vec<NewMessage> {
    let mut lost: Vec<_> = unknown
        .iter()
        .filter_map(|id| ours.remove(id))
        .filter(|message| {
            let age = Duration::try_from(now.duration_since(message.created_at));
            // Half of the time that ids are remembered, for clocks that differ.
            age.is_ok_and(|age| age < REMEMBER.0 / 2)
        })
        .collect();
    lost.sort_by_key(|message| message.sequence);
    lost.into_iter().filter_map(|message| again(message, now)).collect()
}
