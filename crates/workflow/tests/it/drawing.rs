//! How graphs look.

use std::collections::BTreeMap;

use resurgam_workflow::draw::{self, Shown};
use resurgam_workflow::state::{Fan, StepState};
use resurgam_workflow::{Definition, StepId};

const GRAPH: &str = r#"
name = "graph"
steps = [
    { id = "start", capability = "a" },
    { id = "left", capability = "b", needs = ["start"], for_each = [1, 2, 3] },
    { id = "right", workflow = "sub@2", needs = ["start"], when = "input" },
    { id = "alone", wait = { timer = "1m" } },
    { id = "join", wait = { approval = "Is \"this\" <right>?" }, needs = ["left", "right"] },
    { id = "late", capability = "c", needs = ["start", "join"], compensate = { capability = "d" } },
    { id = "end", capability = "e", needs = ["late", "alone"] },
]
"#;

fn states() -> BTreeMap<StepId, Shown> {
    let fan = Fan { total: 3, completed: 1, running: 1, failed: 1, ..Fan::default() };
    [
        ("start", Shown { state: StepState::Completed, ..Shown::default() }),
        ("left", Shown { state: StepState::Running, fan: Some(fan), note: None }),
        ("right", Shown { state: StepState::Skipped, ..Shown::default() }),
        (
            "alone",
            Shown { state: StepState::Waiting, note: Some("until 12:00".to_owned()), fan: None },
        ),
    ]
    .map(|(id, shown)| (StepId::new(id).unwrap(), shown))
    .into()
}

#[test]
fn as_text() {
    let definition = Definition::from_text(GRAPH).unwrap();
    insta::assert_snapshot!(draw::text(&definition, &states(), false), @r#"
    ✔        start  completed                         task a
    ├─┐
    │ ▶      left   running 1/3, 1 running, 1 failed  task b, for each
    ├─│─┐
    │ │ ◌    right  skipped                           workflow sub@2, if
    │ │ │ ◷  alone  waiting                           wait 1m  until 12:00
    │ ├─┘ │
    │ ○   │  join   pending                           wait for approval: Is "this" <right>?
    ├─┘   │
    ○     │  late   pending                           task c, undone by d
    ├─────┘
    ○        end    pending                           task e
    "#);
}

#[test]
fn as_mermaid() {
    let definition = Definition::from_text(GRAPH).unwrap();
    insta::assert_snapshot!(draw::mermaid(&definition, &states()), @r#"
    flowchart TD
        s0["✔ start<br/>task a"]
        s1[["▶ left<br/>task b, for each"]]
        s2[/"◌ right<br/>workflow sub@2, if"/]
        s3(["◷ alone<br/>wait 1m"])
        s4(["join<br/>wait for approval: Is #quot;this#quot; #lt;right#gt;?"])
        s5["late<br/>task c, undone by d"]
        s6["end<br/>task e"]
        s0 --> s1
        s0 --> s2
        s1 --> s4
        s2 --> s4
        s0 --> s5
        s4 --> s5
        s5 --> s6
        s3 --> s6
        classDef running fill:#d1ecf1,color:#000
        class s1 running
        classDef waiting fill:#fff3cd,color:#000
        class s3 waiting
        classDef completed fill:#d4edda,color:#000
        class s0 completed
        classDef skipped fill:#eeeeee,color:#000
        class s2 skipped
    "#);
}

#[test]
fn colours_change_nothing_but_colours() {
    let definition = Definition::from_text(GRAPH).unwrap();
    let mut coloured = draw::text(&definition, &states(), true);
    assert!(coloured.contains("\u{1b}[32m✔"));
    while let Some(at) = coloured.find('\u{1b}') {
        let end = coloured[at..].find('m').unwrap();
        coloured.replace_range(at..=at + end, "");
    }
    assert_eq!(coloured, draw::text(&definition, &states(), false));
}
