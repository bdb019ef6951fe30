//! Runbooks on paper: Markdown for the day on which this program is not there either.

use std::fmt::Write as _;

use resurgam_model::plan::{Contacts, Plan};
use resurgam_model::{Scenario, Severity};

use crate::account::sentence;
use crate::runbook::{Danger, outline};

/// The page of one scenario, with the objectives and contacts of a plan.
#[must_use]
pub fn page(scenario: Scenario, plan: &Plan) -> String {
    let objectives = plan.objectives(scenario);
    let mut text = format!("# Runbook: {scenario}\n\n{}\n\n", sentence(scenario.summary()));
    let _ = write!(
        text,
        "| severity | RTO | RPO |\n|---|---|---|\n| {} ({}) | {} | {} |\n\n## Symptoms\n\n",
        scenario.severity(),
        meaning(scenario.severity()),
        objectives.rto,
        objectives.rpo
    );
    for symptom in symptoms(scenario) {
        let _ = writeln!(text, "- {symptom}");
    }
    let by_program = match scenario {
        // Nobody is there to do it by itself.
        Scenario::FullCluster => "Nobody is left who could begin by itself. On a machine with this program, PostgreSQL if the plan has one, the plan, and the vault's password:\n\n```sh\nresurgam restore --latest --plan resurgam.toml\nresurgam up --plan resurgam.toml\nresurgam status --plan resurgam.toml\n```".to_owned(),
        // Nothing has failed, so that nobody begins it but a person.
        Scenario::Failback => "To see what it would do now, to order it, and to follow it:\n\n```sh\nresurgam failback --dry-run\nresurgam failback\nresurgam incident watch\n```".to_owned(),
        scenario => format!(
            "The controller (`resurgam up`) does all of this by itself. To see what it would do now, to order it, and to follow it:\n\n```sh\nresurgam recover {scenario} --dry-run\nresurgam recover {scenario}\nresurgam incident watch\n```"
        ),
    };
    let _ = write!(text, "\n## By program\n\n{by_program}\n\n## By hand\n");
    for (number, step) in outline(scenario).iter().enumerate() {
        let danger = match step.danger {
            Danger::Looks => "only looks",
            Danger::Acts => "acts on what is broken",
            Danger::Dangerous => "DANGEROUS: takes away what may still be needed",
        };
        let _ = write!(
            text,
            "\n### {}. {} ({danger})\n\n{}\n\n```sh\n{}\n```\n\nDone when: {}\n",
            number + 1,
            step.name,
            step.does,
            step.by_hand.join("\n"),
            step.verified
        );
    }
    contacts(&mut text, scenario, &plan.contacts);
    text
}

fn contacts(text: &mut String, scenario: Scenario, contacts: &Contacts) {
    let _ = write!(text, "\n## Contacts\n\n| who | how |\n|---|---|\n");
    let mut row = |who: &str, how: &Option<String>| {
        let how = how.as_deref().unwrap_or("not in the plan: set it under [contacts]");
        let _ = writeln!(text, "| {who} | {} |", how.replace('|', "\\|"));
    };
    row("Engineer on call", &contacts.on_call);
    if is_for_database_team(scenario) {
        row("Database team", &contacts.database);
    }
    row("Infrastructure team", &contacts.infrastructure);
}

/// Whether the database team is needed for it.
pub(crate) fn is_for_database_team(scenario: Scenario) -> bool {
    scenario.is_of_postgres()
        || matches!(scenario, Scenario::FullStop | Scenario::Controller | Scenario::FullCluster)
}

fn meaning(severity: Severity) -> &'static str {
    match severity {
        Severity::P0 => "complete outage",
        Severity::P1 => "major functions degraded",
        Severity::P2 => "some functions affected",
        Severity::P3 => "minor, with a way around",
    }
}

fn symptoms(scenario: Scenario) -> &'static [&'static str] {
    match scenario {
        Scenario::PostgresPrimary => &[
            "Errors of connections to the database; `/ready` of the API answers 503, `/health` still 200.",
            "Registry, queue and workflows take nothing new. They are symptoms: the cause is the database.",
            "`resurgam status` shows no reigning primary, or one that does not answer.",
        ],
        Scenario::PostgresRestore => &[
            "As with the loss of the primary; and its data folder is gone or unreadable, and there is no standby.",
            "`resurgam status` shows the instance as absent.",
        ],
        Scenario::DatabaseCorruption => &[
            "Errors such as `invalid page in block 7 of relation base/16385/16405`, or `page verification failed` in the server's log.",
            "Backups fail: every page that is copied is checked.",
            "`SELECT datname, checksum_failures, checksum_last_failure FROM pg_stat_database` counts more than 0.",
        ],
        Scenario::PostgresStandby => &[
            "Nothing fails: the primary works. Commits had waited for some seconds, where they wait for a standby.",
            "`resurgam status` says that a failover would lose what no standby has yet; pg_stat_replication on the primary lacks a row.",
            "Its log grows on the primary's disk, for the replication slot of the standby holds it back.",
        ],
        Scenario::Failback => &[
            "Nothing fails. After a failover `resurgam status` shows another primary than postgres.preferred in the plan.",
        ],
        Scenario::PoolExhaustion => &[
            "Clients are refused: `FATAL: sorry, too many clients already`, or `remaining connection slots are reserved`.",
            "Clients with a pool go on, and run into time-outs where they want one connection more.",
            "`resurgam status` shows nearly as many connections taken as there are.",
        ],
        Scenario::StuckTasks => &[
            "`resurgam task stuck` lists tasks that have been running for ten times as long as their like, and for a minute at least.",
            "Whoever holds them shows itself and extends its leases, so that nothing expires.",
        ],
        Scenario::DiskFilling => &[
            "`resurgam status` shows less room than the plan wants (disk.min_free_mb).",
            "When it is full: requests that write are answered with `storage-full`, PostgreSQL ends with `No space left on device`.",
        ],
        Scenario::AgentRegistry => &[
            "Agents cannot register, and heartbeats fail.",
            "The pool of workers looks empty, and nothing new is assigned.",
        ],
        Scenario::KafkaBroker => &[
            "`resurgam bus status` shows a missing broker, or partitions that lack copies.",
            "Messages flow on, with one broker less between them and a loss.",
        ],
        Scenario::KafkaCluster => &[
            "`resurgam bus status` shows an open circuit for kafka; messages take another bus, or wait.",
            "Where no other bus is in the plan, agents hear nothing of each other; tasks go on.",
        ],
        Scenario::RabbitMq => &[
            "`resurgam bus status` shows an open circuit for rabbitmq.",
            "If messages took it, they take another bus, or wait; if not, the fallback is missing.",
        ],
        Scenario::WorkerPool => &[
            "Tasks wait although their capability is known; the queue grows.",
            "Leases expire, and tasks are tried again by others.",
        ],
        Scenario::Api => {
            &["Callers are refused or get no answer; agents buffer what they completed."]
        }
        Scenario::FullCluster => &[
            "Nothing answers, no process runs, and the data folders are gone or unreadable.",
            "The machine itself may be gone: then all of this happens on another one.",
        ],
        Scenario::Controller => &[
            "`resurgam status` gets no answer, or says that nothing runs.",
            "With PostgreSQL nothing is written any more: the primary's lease has ended. With SQLite the platform may work on, without recovery.",
        ],
        Scenario::FullStop => {
            &["Nothing answers, and no process runs; the data folders are there."]
        }
    }
}
