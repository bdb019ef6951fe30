//! Deployments that cannot start.

use std::fs;
use std::net::TcpListener;

use crate::harness::{Place, Up};

#[test]
fn a_port_that_is_taken_is_named() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let plan = format!(
        "[deployment]\nstate_dir = 'state'\n[api]\nport = {}\n[detection]\ninterval = '100ms'\n",
        address.port()
    );
    let place = Place::new(&plan);
    let ended = place.finish(&["up"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.err.contains(&address.to_string()), "{}", ended.err);
    assert!(ended.err.contains("in use"), "{}", ended.err);
    place.assert_no_process();

    // Nothing ran, so nothing stopped: once the port is free, no incident is opened.
    drop(listener);
    let up = Up::ready(&place);
    assert_eq!(up.get(&place, "/v1/incidents"), Some(serde_json::json!([])));
    up.process.stop(&place);
}

#[test]
fn one_state_folder_has_one_controller() {
    let place = Place::new("[deployment]\nstate_dir = 'state'\n");
    let up = Up::ready(&place);
    let second = place.finish(&["up"]);
    let expected = format!(
        "exit 1\nresurgam: another resurgam (process {}) works on [dir]/state; stop it first, or choose another deployment.state_dir",
        up.process.id()
    );
    assert_eq!(second.told(&place), expected);
    // The first one is not disturbed.
    assert_eq!(up.status(&place).unwrap()["ready"], true);
    up.process.stop(&place);
}

#[test]
fn a_state_folder_that_cannot_be_made_is_named() {
    let place = Place::new("[deployment]\nstate_dir = 'file/state'\n");
    fs::write(place.path("file"), "").unwrap();
    let ended = place.finish(&["up"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.err.contains("file/state"), "{}", ended.err);
    assert!(ended.err.contains("deployment.state_dir"), "{}", ended.err);
}
