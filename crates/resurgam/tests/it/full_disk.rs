//! The disk of the state folder is full.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::harness::{LONG, Place, Running, Up, until};
use crate::http;

/// `sh`, with a small file system of its own on the state folder.
fn on_small_disk(place: &Place, script: &str) -> Running {
    fs::create_dir_all(place.path("state")).unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg(format!("mount -t tmpfs -o size=3m,mode=711 tmpfs state || exit 99\n{script}"))
        .env("RESURGAM", env!("CARGO_BIN_EXE_resurgam"));
    place.prepare(&mut command);
    place.run(command)
}

/// The state folder as the deployment sees it.
fn inside(up: &Up, place: &Place) -> std::path::PathBuf {
    format!("/proc/{}/root{}", up.process.id(), place.path("state").display()).into()
}

#[test]
fn callers_are_told_that_the_disk_is_full() {
    let place = Place::new(
        "[deployment]\nstate_dir = 'state'\n[workers]\nreplicas = 1\n[disk]\nmin_free_mb = 0\n",
    );
    let mut up = Up { process: on_small_disk(&place, "exec \"$RESURGAM\" up") };
    // The folder cannot be seen from here; what it says can.
    let controller = until("the controller says where it is", LONG, &place, || {
        if up.process.has_ended() {
            return Some(None);
        }
        let address = fs::read_to_string(inside(&up, &place).join("controller.json")).ok()?;
        let address: serde_json::Value = serde_json::from_str(&address).ok()?;
        Some(Some(address["url"].as_str().unwrap().to_owned()))
    });
    let Some(controller) = controller else {
        let ended = up.process.end(&place, LONG);
        if ended.status.code() == Some(99) || ended.err.contains("unshare") {
            eprintln!("skipped: no file system can be mounted here: {}", ended.err.trim());
            return;
        }
        panic!("it ended: {ended:?}");
    };
    let status = until("the deployment is ready", LONG, &place, || {
        let status = http::get(&format!("{controller}/v1/status")).ok()?.body;
        (status["ready"] == true).then_some(status)
    });
    let api = status["api"].as_str().unwrap();

    let ballast = inside(&up, &place).join("ballast");
    let _ = fs::write(&ballast, vec![0; 4 << 20]);
    let task = json!({ "capability": "sha256", "payload": "x".repeat(100_000) });
    let refused = until("a task is refused", LONG, &place, || {
        let answer = http::post(&format!("{api}/tasks"), &task).ok()?;
        (answer.status != 201).then_some(answer)
    });
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.head.contains("application/problem+json"), "{refused:?}");
    assert!(refused.head.contains("retry-after"), "{refused:?}");
    assert_eq!(refused.body["code"], "storage-full", "{refused:?}");

    // Once there is room, it goes on.
    fs::remove_file(ballast).unwrap();
    until("a task is taken again", LONG, &place, || {
        let small = json!({ "capability": "sha256", "payload": "small" });
        let answer = http::post(&format!("{api}/tasks"), &small).ok()?;
        (answer.status == 201).then_some(())
    });
    up.process.stop(&place);
}

#[test]
fn a_deployment_that_has_no_room_says_so() {
    let place = Place::new("[deployment]\nstate_dir = 'state'\n");
    let script = "head -c 4m /dev/zero > state/ballast 2>/dev/null\nexec \"$RESURGAM\" up";
    let ended = on_small_disk(&place, script).end(&place, LONG);
    if ended.status.code() == Some(99) || ended.err.contains("unshare") {
        eprintln!("skipped: no file system can be mounted here: {}", ended.err.trim());
        return;
    }
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let said = ended.err.to_lowercase();
    assert!(said.contains("full") || said.contains("no space left"), "{ended:?}");
    place.assert_no_process();
}
