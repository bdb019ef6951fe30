//! The printed runbooks in the documents are those of this program.

use std::fs;
use std::path::Path;

use crate::harness::Place;

const SCENARIOS: [&str; 17] = [
    "full-cluster",
    "postgres-primary",
    "postgres-restore",
    "database-corruption",
    "full-stop",
    "controller",
    "kafka-cluster",
    "kafka-broker",
    "rabbitmq",
    "api",
    "pool-exhaustion",
    "disk-filling",
    "agent-registry",
    "worker-pool",
    "postgres-standby",
    "stuck-tasks",
    "failback",
];

#[test]
fn the_runbooks_in_the_documents_are_up_to_date() {
    let place = Place::new("");
    let written = place.finish(&["runbook", "--output-dir", "pages"]);
    assert_eq!(written.status.code(), Some(0), "{written:?}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/runbooks");
    let mut pages: Vec<_> = fs::read_dir(place.path("pages"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    pages.sort();
    let mut expected = SCENARIOS.map(|name| format!("{name}.md"));
    expected.sort();
    assert_eq!(pages, expected);
    for name in pages {
        let now = fs::read_to_string(place.path("pages").join(&name)).unwrap();
        let kept = fs::read_to_string(folder.join(&name)).unwrap_or_default();
        assert!(
            now == kept,
            "docs/runbooks/{name} is stale; write it anew: cargo run -- runbook --output-dir docs/runbooks"
        );
    }
}

#[test]
fn a_page_has_the_objectives_and_contacts_of_the_plan() {
    let place = Place::new(
        "[objectives.api]\nrto = '2m'\nrpo = '0s'\n[contacts]\non-call = 'pager 7 | desk 9'\n",
    );
    let page = place.finish(&["runbook", "api"]);
    assert!(page.out.contains("| P0 (complete outage) | 2m | 0s |"), "{}", page.out);
    assert!(page.out.contains("| Engineer on call | pager 7 \\| desk 9 |"), "{}", page.out);
    assert!(page.out.contains("resurgam restart dotnetagents-api"), "{}", page.out);
}
