//! The commands for tasks, limits, schedules and agents, against a real server and real workers.

use std::net::TcpListener;

use insta::assert_snapshot;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Finished, LONG, Place, Running, SHORT, until};

/// A server on a SQLite file.
struct Served {
    place: Place,
    url: String,
    server: Running,
}

impl Served {
    fn new() -> Self {
        let place = Place::new("");
        // Taken and given back, so that it is most likely free.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = place.start(&[
            "serve",
            "--role=api",
            "--role=registry",
            "--role=supervisor",
            "--sqlite=agents.db",
            &format!("--listen={address}"),
        ]);
        // It serves before its database is ready, and refuses work until then.
        for word in ["serving", "the database is ready"] {
            until(word, SHORT, &place, || server.said().contains(word).then_some(()));
        }
        Self { url: format!("http://{address}"), place, server }
    }

    fn command(&self, line: &str) -> Finished {
        let mut arguments: Vec<_> = line.split(' ').collect();
        arguments.extend(["--api", &self.url]);
        self.place.finish(&arguments)
    }

    /// What it says, if it ends well.
    fn ok(&self, line: &str) -> Finished {
        let finished = self.command(line);
        assert_eq!(finished.status.code(), Some(0), "{line}: {}", finished.told(&self.place));
        finished
    }

    fn json(&self, line: &str) -> Value {
        self.ok(&format!("{line} --json")).json()
    }

    fn stop(self) {
        self.server.stop(&self.place);
    }
}

#[test]
fn work_near_and_elsewhere_by_workers_on_the_database() {
    let served = Served::new();
    let here = served.json("task submit sha256 --payload \"abc\" --near zone=a");
    let fallen = served.json("task submit sha256 --payload \"abc\" --near zone=b --near-for 100ms");
    let shown = served.json(&format!("task show {}", here["id"].as_str().unwrap()));
    assert_eq!((&shown["capability"], &shown["state"]), (&"sha256/zone:a".into(), &"ready".into()));

    let near = served.place.start(&[
        "worker",
        "--sqlite=agents.db",
        "--name=near",
        "--capability=sha256",
        "--at=zone=a",
    ]);
    for task in [&here, &fallen] {
        let line = format!("task show {} --wait 60s", task["id"].as_str().unwrap());
        let done = served.json(&line);
        assert_eq!(done["state"], "completed", "{done}");
        assert_eq!(done["held_by"], "near");
    }
    let agents = served.json("agents list --label zone=a");
    assert_eq!(agents[0]["id"], "near", "{agents}");
    assert_eq!(agents[0]["capabilities"], serde_json::json!(["sha256", "sha256/zone:a"]));
    let drained = served.json("agents drain near --reason tired");
    assert_eq!((&drained["state"], &drained["reason"]), (&"draining".into(), &"tired".into()));

    // Another one, as a role; the first one leaves in order when it is told to end.
    near.signal(Signal::TERM);
    assert_eq!(near.end(&served.place, LONG).status.code(), Some(0));
    assert_eq!(served.command("agents show near").status.code(), Some(1));
    let role = served.place.start(&[
        "serve",
        "--role=worker",
        "--sqlite=agents.db",
        "--name=role",
        "--capability=sha256",
    ]);
    let done = served.json("task submit sha256 --payload \"abc\" --wait 60s");
    assert_eq!((&done["state"], &done["held_by"]), (&"completed".into(), &"role".into()));
    // That of the text, without its quotes.
    assert_eq!(done["result"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    role.signal(Signal::TERM);
    assert_eq!(role.end(&served.place, LONG).status.code(), Some(0));

    let wrong = served.place.finish(&["worker", "--capability=sha256", "--at=zone"]);
    assert_eq!(wrong.status.code(), Some(2));
    served.stop();
}

#[test]
fn schedules_and_limits_are_set_listed_and_taken_away() {
    let served = Served::new();
    served.ok("schedule set nightly --cron @daily --capability tidy --payload 7");
    let all = served.json("schedule list");
    assert_eq!(all[0]["name"], "nightly", "{all}");
    assert_eq!((&all[0]["task"]["payload"], &all[0]["paused"]), (&7.into(), &false.into()));
    assert!(served.ok("schedule pause nightly").out.contains("paused"));
    assert!(!served.ok("schedule resume nightly").out.contains("paused"));
    served.ok("schedule remove nightly");
    assert_snapshot!(served.command("schedule remove nightly").err, @"resurgam: there is no schedule nightly; see `resurgam schedule list`");
    assert_eq!(served.json("schedule list"), serde_json::json!([]));

    served.ok("limit set tidy --max-running 3 --rate 100/1m");
    let all = served.json("limit list");
    assert_eq!((&all[0]["capability"], &all[0]["max_running"]), (&"tidy".into(), &3.into()));
    served.ok("limit remove tidy");
    assert_eq!(served.json("limit list"), serde_json::json!([]));

    let task = served.json("task submit tidy --tag spring --key ada");
    let id = task["id"].as_str().unwrap();
    let cancelled = served.ok(&format!("task cancel {id} --reason later"));
    assert!(cancelled.out.contains("1 cancelled"), "{}", cancelled.out);
    let listed = served.json("task list --tag spring");
    assert_eq!((&listed[0]["state"], &listed[0]["error"]), (&"cancelled".into(), &"later".into()));
    served.ok(&format!("task requeue {id}"));
    assert_eq!(served.json("task list --state ready --key ada")[0]["id"], id);
    served.ok("task count");
    let none = served.ok("task stuck");
    assert!(none.out.contains("no task takes much longer"), "{none:?}");
    served.stop();
}

#[test]
fn messages_are_sent_answered_rejected_and_sent_again() {
    let served = Served::new();
    let sent = served.json("message send writer note --from boss --body {\"n\":1}");
    served.ok("message send writer note --body hello --ttl 1h");
    let read = served.json("message read writer");
    assert_eq!(read.as_array().unwrap().len(), 2, "{read}");
    assert_eq!((&read[0]["id"], &read[0]["body"]["n"]), (&sent["id"], &1.into()));
    assert_eq!((&read[1]["body"], &read[1]["from"]), (&"hello".into(), &Value::Null));
    assert!(read[1]["expires_at"].is_string(), "{read}");

    let (first, second) = (&read[0]["sequence"], &read[1]["sequence"]);
    served.ok(&format!("message acknowledge writer {second}"));
    let reject = format!("message reject writer {first} --reason unclear");
    assert_eq!(served.ok(&reject).out, "0 became dead letters\n");
    assert_eq!(served.ok(&format!("{reject} --at-once")).out, "1 became dead letters\n");
    assert_eq!(served.json("message read writer"), serde_json::json!([]));
    let dead = served.json("message dead");
    assert_eq!((&dead[0]["id"], &dead[0]["to"]), (&sent["id"], &"writer".into()));
    served.ok(&format!("message resend {}", sent["id"].as_str().unwrap()));
    let again = served.json("message read writer");
    assert_eq!(again[0]["body"], read[0]["body"], "{again}");

    // Nobody answers.
    let asked = served.command("message send oracle question --from boss --answer-within 100ms");
    assert_eq!(asked.status.code(), Some(1));
    assert!(asked.err.contains("has not answered"), "{}", asked.err);
    let question = served.json("message read oracle")[0]["id"].as_str().unwrap().to_owned();
    served.ok(&format!("message send boss answer --from oracle --in-reply-to {question}"));
    assert_eq!(served.json("message read boss")[0]["in_reply_to"], question);

    let nobody = served.command("message announce help --any paint");
    assert_snapshot!(nobody.err, @"resurgam: there is no agent for paint; see: resurgam agents list");
    let told = served.ok("message announce news --body 7");
    assert_snapshot!(told.out, @"0 agents get it");

    let gone = served.command("message forget 0198c0de-0000-7000-8000-0000000000aa");
    assert_snapshot!(gone.err, @"resurgam: there is no dead letter 0198c0de-0000-7000-8000-0000000000aa; see `resurgam message dead`");
    served.stop();
}
