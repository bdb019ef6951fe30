//! What was published and is not delivered yet, and how far the outbox was read.
//!
//! Numbers are given out before commit, so a message may become visible behind greater numbers. While
//! little is under way the outbox is therefore read from its beginning each time, without what is
//! under way. While much is, that would be to read the same rows again and again: then it is read on
//! from the greatest number, and now and then all numbers are looked through for late ones.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use resurgam_model::message::Message;
use resurgam_store::SharedStore;
use tokio::time::Instant;

/// So many messages at once.
const BATCH: u32 = 1000;
/// So many messages may be published and not delivered.
const MOST: usize = 6000;

/// With no more under way than this the outbox is read from its beginning.
const FEW: usize = 200;

/// What is ahead of the deliveries.
#[derive(Default)]
pub(super) struct Ahead {
    /// Messages that were published, and when.
    under_way: BTreeMap<i64, Instant>,
    /// The greatest number that was read, unless what is before it is to be read again.
    reached: Option<i64>,
    /// Whether there is more behind it.
    long: bool,
    /// Numbers before it that became visible late.
    late: Vec<i64>,
    /// What was read already.
    next: Option<Vec<Message>>,
}

/// A part of the outbox that is to be read.
pub(super) enum Part {
    /// Behind a number, without some.
    Behind(i64, Vec<i64>),
    /// Some numbers.
    Of(Vec<i64>),
}

impl Part {
    /// Whether it is of what became visible late.
    pub(super) fn is_late(&self) -> bool {
        matches!(self, Self::Of(_))
    }

    pub(super) async fn read(&self, store: &SharedStore) -> resurgam_store::Result<Vec<Message>> {
        match self {
            Self::Behind(after, without) => store.outgoing(*after, without, BATCH).await,
            Self::Of(numbers) => store.outgoing_of(numbers).await,
        }
    }
}

impl Ahead {
    /// How many are under way.
    pub(super) fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Whether no more may be published now.
    pub(super) fn is_full(&self) -> bool {
        self.under_way.len() >= MOST
    }

    /// Up to where the outbox may hold late numbers: the greatest that was read or is under way. None
    /// while nothing is under way, because all of it is read then.
    pub(super) fn last(&self) -> Option<i64> {
        let (last, _) = self.under_way.last_key_value()?;
        Some(self.reached.map_or(*last, |reached| reached.max(*last)))
    }

    /// Whether something was published so long ago.
    pub(super) fn is_overdue(&self, time: Duration) -> bool {
        self.under_way.values().any(|at| at.elapsed() >= time)
    }

    /// Something was delivered. Answers whether it was under way.
    pub(super) fn delivered(&mut self, sequence: i64) -> bool {
        self.under_way.remove(&sequence).is_some()
    }

    /// Everything in the outbox up to [`Self::last`], in order. Answers whether something of what
    /// was under way is not there any more: somebody has delivered it.
    pub(super) fn waiting(&mut self, numbers: &[i64]) -> bool {
        let before = self.under_way.len();
        self.under_way.retain(|sequence, _| numbers.binary_search(sequence).is_ok());
        let late = numbers.iter().filter(|sequence| !self.under_way.contains_key(sequence));
        self.late = late.take(usize::try_from(BATCH).unwrap_or(usize::MAX)).copied().collect();
        self.under_way.len() < before
    }

    /// These are being published.
    pub(super) fn publishing(&mut self, batch: &[Message]) {
        let now = Instant::now();
        self.under_way.extend(batch.iter().map(|message| (message.sequence, now)));
    }

    /// These go again, before what is behind them.
    pub(super) fn forget(&mut self, batch: &[Message]) {
        for message in batch {
            self.under_way.remove(&message.sequence);
        }
        self.look_again();
    }

    /// Everything goes again.
    pub(super) fn clear(&mut self) {
        self.under_way.clear();
        self.look_again();
    }

    fn look_again(&mut self) {
        (self.reached, self.long, self.next) = (None, false, None);
        self.late.clear();
    }

    /// What was read before, if nothing goes before it.
    pub(super) fn take(&mut self) -> Option<Vec<Message>> {
        if self.late.is_empty() { self.next.take() } else { None }
    }

    /// Keeps what was read while something else was published.
    pub(super) fn keep(&mut self, batch: Vec<Message>) {
        self.next = Some(batch).filter(|batch| !batch.is_empty());
    }

    /// What is to be read now.
    pub(super) fn part(&mut self) -> Part {
        if !self.late.is_empty() {
            return Part::Of(std::mem::take(&mut self.late));
        }
        let all = !self.long && self.under_way.len() <= FEW;
        let Some(after) = self.reached.filter(|_| !all) else {
            return Part::Behind(i64::MIN, self.under_way.keys().copied().collect());
        };
        // What is under way behind it was read when more was looked at again.
        let behind = self.under_way.range((Bound::Excluded(after), Bound::Unbounded));
        Part::Behind(after, behind.map(|(sequence, _)| *sequence).collect())
    }

    /// Notes what was read behind a number. Answers whether there is more behind it.
    pub(super) fn read(&mut self, batch: &[Message]) -> bool {
        self.long = batch.len() >= usize::try_from(BATCH).unwrap_or(usize::MAX);
        self.reached = batch.last().map(|message| message.sequence).max(self.reached);
        self.long
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use resurgam_model::message::NewMessage;
    use resurgam_model::{AgentId, MessageId};

    use super::*;

    fn messages(numbers: impl Iterator<Item = i64>) -> Vec<Message> {
        let new = NewMessage::new(AgentId::new("a").unwrap(), "note");
        let one = |sequence| Message {
            sequence,
            id: MessageId::new(),
            topic: new.topic.clone(),
            to: new.to.clone(),
            from: None,
            kind: new.kind.clone(),
            body: new.body.clone(),
            reply_to: None,
            in_reply_to: None,
            rejections: 0,
            created_at: Timestamp::now(),
            expires_at: None,
        };
        numbers.map(one).collect()
    }

    fn behind(part: Part) -> (i64, usize) {
        match part {
            Part::Behind(after, without) => (after, without.len()),
            Part::Of(numbers) => panic!("{numbers:?}"),
        }
    }

    #[test]
    fn little_is_read_from_the_beginning_and_much_on_from_the_greatest_number() {
        let mut ahead = Ahead::default();
        let few = messages(1..=3);
        assert!(!ahead.read(&few));
        ahead.publishing(&few);
        assert_eq!(behind(ahead.part()), (i64::MIN, 3));

        let many = messages(4..1004);
        assert!(ahead.read(&many));
        ahead.publishing(&many);
        assert_eq!(behind(ahead.part()), (1003, 0));
        // The end is reached, and much is still under way.
        assert!(!ahead.read(&[]));
        assert_eq!(behind(ahead.part()), (1003, 0));
        for number in 1..=900 {
            assert!(ahead.delivered(number));
        }
        assert_eq!(behind(ahead.part()), (i64::MIN, 103));
    }

    #[test]
    fn what_becomes_visible_late_goes_before_what_was_read() {
        let mut ahead = Ahead::default();
        let many = messages(1001..2001);
        assert!(ahead.read(&many));
        ahead.publishing(&many);
        ahead.keep(messages(2001..3001));
        let waiting: Vec<_> = [7, 9].into_iter().chain(1500..2001).collect();
        assert!(ahead.waiting(&waiting), "some were delivered");
        assert!(ahead.take().is_none());
        let Part::Of(late) = ahead.part() else { panic!("late ones go first") };
        assert_eq!(late, [7, 9]);
        let next = ahead.take().unwrap();
        assert_eq!((next[0].sequence, ahead.last()), (2001, Some(2000)));
    }

    #[test]
    fn late_numbers_are_looked_for_up_to_the_greatest_that_was_read() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.last(), None);
        let many = messages(1..1001);
        ahead.read(&many);
        ahead.publishing(&many);
        // The greatest are delivered before the others.
        (501..=1000).for_each(|number| assert!(ahead.delivered(number)));
        assert_eq!(ahead.last(), Some(1000));
        ahead.waiting(&(1..=500).chain([700]).collect::<Vec<_>>());
        let Part::Of(late) = ahead.part() else { panic!("it became visible late") };
        assert_eq!(late, [700]);
    }

    #[test]
    fn what_was_not_confirmed_goes_again_before_what_is_behind_it() {
        let mut ahead = Ahead::default();
        let (first, second) = (messages(1..1001), messages(1001..2001));
        ahead.read(&first);
        ahead.publishing(&first);
        ahead.read(&second);
        ahead.publishing(&second);
        ahead.keep(messages(2001..3001));
        ahead.forget(&first);
        assert!(ahead.take().is_none());
        assert_eq!(behind(ahead.part()), (i64::MIN, 1000));
        // What is under way behind it is not read again.
        assert!(ahead.read(&first));
        ahead.publishing(&first);
        assert_eq!(behind(ahead.part()), (1000, 1000));
        ahead.clear();
        assert_eq!((ahead.len(), behind(ahead.part())), (0, (i64::MIN, 0)));
    }
}
