//! A standby that is lost again while it is being brought back.

use resurgam_recovery::drill::fault::{Process, working_in};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{LONG, Place, Up, until};

/// The process that keeps an instance.
fn keeper(status: &Value, name: &str) -> Option<u32> {
    let components = status["components"].as_array().unwrap();
    let pid = components.iter().find(|c| c["name"] == name)?["pid"].as_u64()?;
    u32::try_from(pid).ok()
}

#[test]
fn a_keeper_that_hangs_as_soon_as_it_was_started_again_is_started_anew() {
    let place = Place::for_drills("[store]\nkind = 'postgres'\n");
    let mut up = Up::ready(&place);
    let status = up.wait_ready(&place);
    let primary = status["postgres"]["primary"].as_str().unwrap();
    let standby = ["postgres-0", "postgres-1"].into_iter().find(|name| *name != primary).unwrap();
    let first = keeper(&status, standby).unwrap();
    Process::find(first).unwrap().signal(Signal::KILL);
    for process in working_in(&place.path(&format!("state/postgres/{standby}/data"))) {
        process.signal(Signal::KILL);
    }
    // The next one hangs before it was old enough to be taken for stuck.
    let second = until("the standby is started again", LONG, &place, || {
        keeper(&up.status(&place)?, standby).filter(|pid| *pid != first)
    });
    let hanging = Process::find(second).unwrap();
    hanging.signal(Signal::STOP);
    until("the one that hangs is ended", LONG, &place, || (!hanging.is_alive()).then_some(()));
    let closed = up.closed_incidents(&place, "postgres-standby", &[]);
    for incident in &closed {
        assert_eq!(incident["state"], "recovered", "{closed:#?}\n{}", place.logs());
    }
    let status = up.wait_ready(&place);
    assert_eq!(status["postgres"]["primary"], primary, "the primary goes on");
    up.process.stop(&place);
}
