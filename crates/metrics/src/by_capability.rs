//! Figures by capability, of which there may be any number: only the first so many get series of
//! their own.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// So many capabilities have series of their own.
pub const MOST_CAPABILITIES: usize = 100;

/// The label of all others.
pub const OTHER: &str = "other";

/// Makes the figures of one capability, given the value of its label.
type Make<M> = Box<dyn Fn(Cow<'static, str>) -> M + Send + Sync>;

/// The figures of each capability.
pub struct Capped<M> {
    known: RwLock<HashMap<String, Arc<M>>>,
    make: Make<M>,
    most: usize,
}

impl<M> Capped<M> {
    /// None yet. `make` gives the figures for the value of a label.
    pub fn new(most: usize, make: impl Fn(Cow<'static, str>) -> M + Send + Sync + 'static) -> Self {
        Self { known: RwLock::default(), make: Box::new(make), most }
    }

    /// The figures of a capability.
    pub fn of(&self, capability: &str) -> Arc<M> {
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = known.get(capability) {
                return Arc::clone(found);
            }
            if known.len() >= self.most
                && let Some(other) = known.get(OTHER)
            {
                return Arc::clone(other);
            }
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let free = known.contains_key(capability) || known.len() < self.most;
        let label = if free { capability } else { OTHER };
        let made = known
            .entry(label.to_owned())
            .or_insert_with(|| Arc::new((self.make)(Cow::Owned(label.to_owned()))));
        Arc::clone(made)
    }
}

impl<M> std::fmt::Debug for Capped<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Capped").field("known", &known.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_the_first_so_many_is_counted_together() {
        let capped = Capped::new(2, |label| label.into_owned());
        for _ in 0..2 {
            assert_eq!(*capped.of("a"), "a");
            assert_eq!(*capped.of("b"), "b");
            for more in ["c", "d", OTHER] {
                assert_eq!(*capped.of(more), OTHER);
            }
        }
    }
}
