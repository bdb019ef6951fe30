//! Which backups are kept. A pure decision; the deed is elsewhere.

use std::collections::BTreeSet;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use resurgam_model::Timestamp;
use resurgam_model::plan::Retention;

use crate::vault::{Backup, Proof};

/// Why a backup is kept or goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which.
    pub id: String,
    /// It stays.
    pub keep: bool,
    /// Why, for people.
    pub why: String,
}

/// Decides about each backup, in the order given. Whatever the plan says, these stay:
///
/// - the newest of all, and the newest verified one: there must be something to restore;
/// - those from the future: when a clock was wrong, nothing is decided on it;
/// - bad ones until a newer one is verified, for they may be all there is.
#[must_use]
pub fn decide(
    backups: &[Backup],
    retention: Retention,
    zone: &TimeZone,
    now: Timestamp,
) -> Vec<Verdict> {
    let newest_first = |filter: &dyn Fn(&Backup) -> bool| {
        let mut these: Vec<_> = backups.iter().filter(|backup| filter(backup)).collect();
        these.sort_by_key(|backup| std::cmp::Reverse(backup.taken_at));
        these
    };
    let good =
        newest_first(&|backup| !matches!(backup.proof, Proof::Bad(_)) && backup.taken_at <= now);
    let verified = newest_first(&|backup| matches!(backup.proof, Proof::Verified(_)));
    let last_verified = verified.first().map(|backup| (backup.id.as_str(), backup.taken_at));
    let newest = good.first().map(|backup| backup.id.as_str());
    let date = |at: Timestamp| at.to_zoned_datetime(zone.clone()).date();

    let mut kept: Vec<(&str, String)> = Vec::new();
    for (count, what, period) in [
        (retention.daily, "day", (|date| date) as fn(Date) -> Date),
        (retention.weekly, "week", monday),
        (retention.monthly, "month", first_of_month),
    ] {
        let mut seen = BTreeSet::new();
        for backup in &good {
            let begin = period(date(backup.taken_at));
            if seen.len() < usize::try_from(count).unwrap_or(usize::MAX) && seen.insert(begin) {
                kept.push((&backup.id, format!("the last of the {what} of {begin}")));
            }
        }
    }
    backups
        .iter()
        .map(|backup| {
            let id = backup.id.clone();
            let stays = |why: String| Verdict { id: id.clone(), keep: true, why };
            if backup.taken_at > now {
                return stays("it is from the future: a clock was wrong".to_owned());
            }
            if let Proof::Bad(_) = backup.proof {
                let newer = last_verified.is_some_and(|(_, at)| at > backup.taken_at);
                let why = "it is bad, and a newer one is verified";
                return match newer {
                    true => Verdict { id, keep: false, why: why.to_owned() },
                    false => stays("it is bad, but no newer one is verified".to_owned()),
                };
            }
            let mut reasons: Vec<_> = kept
                .iter()
                .filter(|(kept, _)| *kept == backup.id)
                .map(|(_, why)| why.clone())
                .collect();
            if newest == Some(backup.id.as_str()) {
                reasons.push("the newest".to_owned());
            }
            if last_verified.is_some_and(|(last, _)| last == backup.id) {
                reasons.push("the newest verified one".to_owned());
            }
            match reasons.is_empty() {
                true => Verdict { id, keep: false, why: "no rule keeps it".to_owned() },
                false => stays(reasons.join(", ")),
            }
        })
        .collect()
}

fn monday(date: Date) -> Date {
    let days = i64::from(date.weekday().to_monday_zero_offset());
    date.checked_sub(jiff::Span::new().days(days)).unwrap_or(date)
}

fn first_of_month(date: Date) -> Date {
    date.first_of_month()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3600;
    /// A Tuesday noon.
    const NOW: i64 = 1_764_072_000;

    fn at(hours_ago: i64) -> Timestamp {
        Timestamp::from_second(NOW - hours_ago * HOUR).unwrap()
    }

    fn backup(hours_ago: i64, proof: Proof) -> Backup {
        Backup { proof, ..Backup::of(&format!("{hours_ago}"), at(hours_ago)) }
    }

    fn keeps(backups: &[Backup], retention: Retention) -> Vec<String> {
        let verdicts = decide(backups, retention, &TimeZone::UTC, at(0));
        verdicts.into_iter().filter(|verdict| verdict.keep).map(|verdict| verdict.id).collect()
    }

    #[test]
    fn a_year_of_six_hourly_backups_leaves_the_last_of_days_weeks_and_months() {
        let all: Vec<_> = (0..365 * 4).map(|n| backup(n * 6, Proof::None)).collect();
        let kept = keeps(&all, Retention::default());
        // 7 days, of 4 weeks those that no day keeps already, and so for 12 months.
        assert!((17..=21).contains(&kept.len()), "{}: {kept:?}", kept.len());
        assert_eq!(kept.iter().filter(|id| id.parse::<i64>().unwrap() < 24 * 7).count(), 7 + 1 - 1);
    }

    #[test]
    fn the_last_verified_one_stays_however_old_and_bad_ones_only_while_they_are_all_there_is() {
        let retention = Retention { daily: 1, weekly: 0, monthly: 0 };
        let bad = || Proof::Bad("flipped".to_owned());
        let verified = || Proof::Verified(at(0));
        let all = [
            backup(1, Proof::None),
            backup(900, bad()),
            backup(1000, verified()),
            backup(2000, verified()),
        ];
        assert_eq!(keeps(&all, retention), ["1", "900", "1000"]);
        let all = [backup(1, verified()), backup(900, bad())];
        assert_eq!(keeps(&all, retention), ["1"]);
        let all = [backup(5, bad())];
        assert_eq!(keeps(&all, retention), ["5"]);
        let all = [backup(-48, Proof::None), backup(5, Proof::None), backup(40, Proof::None)];
        assert_eq!(keeps(&all, retention), ["-48", "5"], "one from the future takes no place");
    }

    proptest! {
        #[test]
        fn something_good_always_stays(
            ages in proptest::collection::vec((-100i64..100_000, 0..3), 1..60),
            daily in 0u32..4, weekly in 0u32..3, monthly in 0u32..3,
        ) {
            let proof = |kind: i32| match kind {
                0 => Proof::None,
                1 => Proof::Verified(at(0)),
                _ => Proof::Bad("so".to_owned()),
            };
            let all: Vec<_> = ages.iter().enumerate().map(|(n, (age, kind))| {
                Backup { id: n.to_string(), ..backup(*age, proof(*kind)) }
            }).collect();
            let kept = keeps(&all, Retention { daily, weekly, monthly });
            let has = |wanted: &dyn Fn(&Backup) -> bool| all.iter().any(wanted);
            let stays = |wanted: &dyn Fn(&Backup) -> bool| {
                all.iter().any(|b| wanted(b) && kept.contains(&b.id))
            };
            let verified = |b: &Backup| matches!(b.proof, Proof::Verified(_));
            let good = |b: &Backup| !matches!(b.proof, Proof::Bad(_));
            prop_assert!(!has(&verified) || stays(&verified));
            prop_assert!(!has(&good) || stays(&good));
            prop_assert!(!kept.is_empty());
            // Once more on what is left takes nothing more away.
            let left: Vec<_> = all.iter().filter(|b| kept.contains(&b.id)).cloned().collect();
            prop_assert_eq!(keeps(&left, Retention { daily, weekly, monthly }).len(), left.len());
        }
    }
}
