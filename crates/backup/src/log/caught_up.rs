//! When all that a server had flushed is known to be here.
//!
//! A server that streams goes round and round: it hears us, answers, sends what it has flushed and
//! not sent, and waits. What it sends says up to where it had flushed when it began to send. An
//! answer says only up to where it has sent: there may be more. So
//!
//! - data up to all that was flushed show that nothing is missing from before what the server said
//!   last: it has looked since then;
//! - an answer right after an answer shows the same: between the two it has looked, and found nothing.

use resurgam_model::Timestamp;

/// What the server said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Data,
    Answer,
}

/// What the server's words allow to be said.
#[derive(Debug, Default)]
pub(super) struct CaughtUp {
    last: Option<(Word, Timestamp)>,
}

impl CaughtUp {
    /// Data came. If they reach as far as the server had flushed, all that was flushed before the moment
    /// that is returned is here.
    pub(super) fn data(&mut self, sent: Timestamp) -> Option<Timestamp> {
        self.last.replace((Word::Data, sent)).map(|(_, at)| at)
    }

    /// An answer came. If all that was sent is here, so is all that was flushed before the moment that is
    /// returned.
    pub(super) fn answer(&mut self, sent: Timestamp) -> Option<Timestamp> {
        let last = self.last.replace((Word::Answer, sent));
        last.filter(|(word, _)| *word == Word::Answer).map(|(_, at)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_alone_says_nothing_of_what_was_flushed() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut caught_up = CaughtUp::default();
        assert_eq!(caught_up.answer(at(1)), None, "it may not have looked at all");
        assert_eq!(caught_up.data(at(2)), Some(at(1)), "it has looked after its answer");
        assert_eq!(caught_up.answer(at(3)), None, "it has not looked since it sent");
        assert_eq!(caught_up.answer(at(4)), Some(at(3)));
        assert_eq!(caught_up.data(at(5)), Some(at(4)));
        assert_eq!(caught_up.data(at(6)), Some(at(5)));
    }
}
