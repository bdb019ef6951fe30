//! A recovery that is still at its end when what it has brought about is lost again.

use resurgam_recovery::drill::fault::Process;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{LONG, Place, Up, until};

fn keeper(up: &Up, place: &Place, name: &str) -> Option<Process> {
    let status = up.status(place)?;
    let of = status["components"].as_array()?.iter().find(|c| c["name"] == name)?.clone();
    Process::find(u32::try_from(of["pid"].as_u64()?).ok()?)
}

/// The server dies with it.
fn lose(up: &Up, place: &Place, name: &str) {
    until("its keeper", LONG, place, || keeper(up, place, name)).signal(Signal::KILL);
}

fn loss_of(up: &Up, place: &Place, name: &str) -> Option<Value> {
    let all = up.get(place, "/v1/incidents")?;
    let of = |incident: &&Value| {
        incident["scenario"] == "postgres-primary" && incident["component"] == name
    };
    let found = all.as_array()?.iter().find(of)?["id"].as_str()?.to_owned();
    up.get(place, &format!("/v1/incidents/{found}"))
}

/// A standby that is frozen keeps the first recovery from its end.
#[test]
fn a_recovery_whose_primary_is_lost_leaves_the_rest_to_the_next_one() {
    let place = Place::new(
        "[deployment]\nstate_dir = 'state'\n[store]\nkind = 'postgres'\n[postgres]\nstandbys = 2\n",
    );
    let mut up = Up::start(&place);
    let status = up.wait_ready(&place);
    let first = status["postgres"]["primary"].as_str().unwrap().to_owned();
    let next = status["postgres"]["complete"].as_str().unwrap().to_owned();
    let all = ["postgres-0", "postgres-1", "postgres-2"];
    let third = all.into_iter().find(|name| *name != first && *name != next).unwrap();
    let frozen = keeper(&up, &place, third).unwrap();
    frozen.signal(Signal::STOP);
    lose(&up, &place, &first);
    until("the first one is a standby that has everything", LONG, &place, || {
        let postgres = up.status(&place)?["postgres"].clone();
        (postgres["primary"] == *next && postgres["complete"] == *first).then_some(())
    });
    let open = loss_of(&up, &place, &first).unwrap();
    assert_eq!(open["state"], "open", "a standby is missing: {open:#}");

    lose(&up, &place, &next);
    let over = until("the first recovery is over", LONG, &place, || {
        loss_of(&up, &place, &first).filter(|incident| incident["state"] != "open")
    });
    assert_eq!(over["state"], "recovered", "{over:#}");
    let last = over["steps"].as_array().unwrap().last().unwrap().clone();
    assert!(last["detail"].as_str().unwrap().contains("later recovery"), "{last:#}");
    frozen.signal(Signal::CONT);
    let closed = until("the second recovery is over", LONG, &place, || {
        loss_of(&up, &place, &next).filter(|incident| incident["state"] != "open")
    });
    assert_eq!(closed["state"], "recovered", "{closed:#}");
    up.wait_ready(&place);
    up.process.stop(&place);
}
