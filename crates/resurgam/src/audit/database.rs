//! What the plan says of the database itself and of its connections.

use resurgam_model::plan::{Endable, Plan, StoreKind};
use resurgam_model::{Duration, Scenario};

use super::{Finding, Level};

/// What an owned PostgreSQL has unless `[postgres.settings]` says otherwise.
const MAX_CONNECTIONS: u32 = 120;
const RESERVED: u32 = 5;
/// Processes of the platform that have a pool: API, registry, supervisor.
const POOLS: u32 = 3;
/// Each has one connection beside it, for notifications.
const BESIDE: u32 = 1;
/// Those of keeper, controller and probe.
const CARE: u32 = 3;

pub(super) fn database(plan: &Plan, findings: &mut Vec<Finding>) {
    match plan.store.kind {
        StoreKind::Sqlite => findings.push(Finding {
            level: Level::Note,
            rule: "one-machine",
            problem: "the database is a file on this machine; only a backup survives the loss of its disk".to_owned(),
            remedy: "store.kind = \"postgres\" with a standby, if that is not enough".to_owned(),
        }),
        StoreKind::Postgres => connections(plan, findings),
        StoreKind::External => {}
    }
}

fn connections(plan: &Plan, findings: &mut Vec<Finding>) {
    let set = |key: &str, otherwise: u32| {
        let of = plan.postgres.settings.iter().find(|(name, _)| name.eq_ignore_ascii_case(key));
        of.map_or(Some(otherwise), |(_, value)| value.trim().parse().ok())
    };
    let most = set("max_connections", MAX_CONNECTIONS);
    let reserved = set("superuser_reserved_connections", RESERVED);
    if let (Some(most), Some(reserved)) = (most, reserved) {
        let each = plan.store.max_pool_size.saturating_add(BESIDE);
        let needed = each.saturating_mul(POOLS).saturating_add(CARE);
        let limit = most.saturating_sub(reserved);
        if needed > limit {
            findings.push(Finding {
                level: Level::Risk,
                rule: "pools-too-large",
                problem: format!(
                    "the platform alone may want {needed} connections to PostgreSQL, {each} in each of {POOLS} processes, and there are {limit}"
                ),
                remedy: "a smaller store.max_pool_size, or a larger max_connections under [postgres.settings]".to_owned(),
            });
        }
    }
    let policy = &plan.postgres.connections;
    let rto = plan.objectives(Scenario::PoolExhaustion).rto;
    // Whether a statement that runs is a leak, its age alone does not say.
    let ages = policy.end.iter().filter_map(|state| match state {
        Endable::IdleInTransaction => Some(policy.idle_in_transaction),
        Endable::Idle => Some(policy.idle),
        Endable::Active => None,
    });
    let slow: Option<Duration> = ages.max().filter(|age| *age >= rto);
    if let Some(age) = slow {
        findings.push(Finding {
            level: Level::Broken,
            rule: "leaks-outlast-the-rto",
            problem: format!(
                "pool-exhaustion promises to be over within {rto}, and waits {age} before it ends a connection"
            ),
            remedy: "shorter ages under [postgres.connections], or promise less under [objectives.pool-exhaustion]".to_owned(),
        });
    }
    if policy.end.is_empty() {
        findings.push(Finding {
            level: Level::Note,
            rule: "leaks-need-people",
            problem: "no connection may be ended by itself, so that a person has to decide when there are none left".to_owned(),
            remedy: "name states under postgres.connections.end".to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use resurgam_model::plan::EffectivePlan;

    use super::*;

    fn rules(text: &str) -> Vec<&'static str> {
        let text = format!("[store]\nkind = 'postgres'\n{text}");
        let plan = EffectivePlan::resolve(Some(&text), |_| None).unwrap().plan;
        let mut findings = Vec::new();
        database(&plan, &mut findings);
        findings.iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn pools_must_fit_into_the_server() {
        assert_eq!(rules(""), Vec::<&str>::new());
        // 3 x (100 + 1) + 3, of 120 - 5.
        assert_eq!(rules("max_pool_size = 100"), ["pools-too-large"]);
        let larger = "max_pool_size = 100\n[postgres.settings]\nMAX_CONNECTIONS = '400'";
        assert_eq!(rules(larger), Vec::<&str>::new());
    }

    #[test]
    fn to_wait_as_long_as_the_objective_is_to_miss_it() {
        let five = "[postgres.connections]\nidle_in_transaction = '5m'";
        assert_eq!(rules(five), ["leaks-outlast-the-rto"]);
        let longer = format!("{five}\n[objectives.pool-exhaustion]\nrto = '10m'\nrpo = '0s'");
        assert_eq!(rules(&longer), Vec::<&str>::new());
        assert_eq!(rules("[postgres.connections]\nend = []"), ["leaks-need-people"]);
    }
}
