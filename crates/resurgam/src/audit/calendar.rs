//! Whether the drills of the calendar are held.

use resurgam_model::plan::Plan;

use super::{Finding, Level};
use crate::calendar::{Entry, Outcome, last};

/// What is wrong with the last time of each.
pub(super) fn calendar(plan: &Plan, entries: &[Entry], findings: &mut Vec<Finding>) {
    for drill in &plan.drills {
        let Some(entry) = last(entries, &drill.name) else { continue };
        let (rule, problem) = match entry.outcome {
            Outcome::Missed => (
                "calendar-missed",
                format!("the drill {} of {} was not held: {}", drill.name, entry.due, entry.detail),
            ),
            Outcome::Failed => (
                "calendar-failed",
                format!("the drill {} of {} did not pass: {}", drill.name, entry.due, entry.detail),
            ),
            Outcome::Planned | Outcome::Begun | Outcome::Passed | Outcome::BrokenOff => continue,
        };
        let remedy = "see resurgam drill --calendar, and hold it by hand".to_owned();
        findings.push(Finding { level: Level::Risk, rule, problem, remedy });
    }
}

#[cfg(test)]
mod tests {
    use resurgam_model::plan::EffectivePlan;

    use super::*;

    #[test]
    fn only_the_last_time_of_a_drill_that_is_planned_counts() {
        let text = "[deployment]\ndrills = 'allowed'\n[[drills]]\nname = 'weekly'\nschedule = '0 3 * * SUN'\n";
        let plan = EffectivePlan::resolve(Some(text), |_| None).unwrap().plan;
        let entry = |name: &str, outcome| Entry {
            name: name.parse().unwrap(),
            due: "2026-11-29T03:00:00Z".parse().unwrap(),
            at: "2026-11-29T03:00:00Z".parse().unwrap(),
            outcome,
            detail: "the incident was open".to_owned(),
        };
        let rules = |entries: &[Entry]| {
            let mut findings = Vec::new();
            calendar(&plan, entries, &mut findings);
            findings.iter().map(|finding| finding.rule).collect::<Vec<_>>()
        };
        let (missed, passed) = (Outcome::Missed, Outcome::Passed);
        assert_eq!(rules(&[entry("weekly", passed), entry("weekly", missed)]), ["calendar-missed"]);
        assert_eq!(rules(&[entry("weekly", Outcome::Failed)]), ["calendar-failed"]);
        assert!(rules(&[entry("weekly", missed), entry("weekly", passed)]).is_empty());
        assert!(rules(&[entry("gone", missed)]).is_empty());
    }
}
