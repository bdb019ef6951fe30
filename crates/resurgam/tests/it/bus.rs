//! Buses by command, over brokers that `up` runs itself.

use std::time::Duration;

use resurgam_recovery::drill::fault::Process;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Place, Up, until};

/// Brokers take a while to start, on a machine that does much else.
const START: Duration = Duration::from_secs(180);

const PLAN: &str = "[deployment]\nstate_dir = 'state'\n[workers]\nreplicas = 1\n\
    [bus]\norder = ['kafka', 'rabbitmq']\nclose_after = '1s'\nreturn_after = '2s'\n\
    [bus.kafka]\nbrokers = 1\n[bus.rabbitmq]\nnodes = 1\n";

struct Deployed {
    place: Place,
    up: Up,
    api: String,
}

impl Deployed {
    fn bus(&self) -> Option<Value> {
        let shown = self.place.finish(&["bus", "status", "--json", "--api", &self.api]);
        serde_json::from_str(&shown.out).ok()
    }

    fn takes(&self, bus: &str) -> Value {
        until(&format!("messages take {bus}"), START, &self.place, || {
            self.bus().filter(|status| status["state"]["active"] == bus)
        })
    }

    fn healthy(&self) {
        until("both buses can be used", START, &self.place, || {
            let status = self.bus()?;
            let buses = status["state"]["buses"].as_array()?.clone();
            buses.iter().all(|bus| bus["circuit"] == "closed").then_some(())
        });
    }

    fn sends(&self, text: &str) {
        let body = format!("{text:?}");
        let sent = self
            .place
            .finish(&["message", "send", "reader", "note", "--body", &body, "--api", &self.api]);
        assert_eq!(sent.status.code(), Some(0), "{}", sent.told(&self.place));
    }

    fn has(&self, texts: &[&str]) {
        until(&format!("{texts:?} arrived"), START, &self.place, || {
            let read =
                self.place.finish(&["message", "read", "reader", "--json", "--api", &self.api]);
            let messages = serde_json::from_str::<Value>(&read.out).ok()?;
            let bodies: Vec<_> =
                messages.as_array()?.iter().map(|message| message["body"].clone()).collect();
            (bodies == texts).then_some(())
        });
    }
}

#[test]
fn messages_survive_a_broker_a_switch_by_hand_and_the_end_of_everything() {
    let place = Place::new(PLAN);
    let up = Up::ready(&place);
    let api = up.status(&place).unwrap()["api"].as_str().unwrap().to_owned();
    let deployed = Deployed { place, up, api };
    deployed.takes("kafka");
    deployed.healthy();
    deployed.sends("one");
    deployed.has(&["one"]);

    let status = deployed.up.status(&deployed.place).unwrap();
    let components = status["components"].as_array().unwrap().clone();
    let kafka = components.iter().find(|component| component["name"] == "kafka-1").unwrap();
    let pid = u32::try_from(kafka["pid"].as_u64().unwrap()).unwrap();
    Process::find(pid).unwrap().signal(Signal::KILL);
    deployed.sends("two");
    deployed.has(&["one", "two"]);
    // It is started again, and messages go back to it.
    deployed.takes("kafka");
    deployed.healthy();

    let switched = deployed.place.finish(&[
        "bus",
        "switch",
        "rabbitmq",
        "--reason",
        "new disks",
        "--within",
        "60s",
        "--api",
        &deployed.api,
    ]);
    assert_eq!(switched.status.code(), Some(0), "{}", switched.told(&deployed.place));
    let shown = deployed.place.finish(&["bus", "status", "--api", &deployed.api]);
    assert_eq!(shown.status.code(), Some(3), "not the preferred one: {shown:?}");
    assert!(shown.out.contains("messages take rabbitmq"), "{shown:?}");
    assert!(shown.out.contains("new disks"), "{shown:?}");
    deployed.sends("three");
    deployed.has(&["one", "two", "three"]);
    let returned =
        deployed.place.finish(&["bus", "return", "--within", "60s", "--api", &deployed.api]);
    assert_eq!(returned.status.code(), Some(0), "{}", returned.told(&deployed.place));
    assert_eq!(deployed.takes("kafka")["wish"], Value::Null);
    let unknown = deployed.place.finish(&["bus", "switch", "embedded", "--api", &deployed.api]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    assert!(unknown.err.contains("kafka, rabbitmq"), "it says what there is: {unknown:?}");

    // Nothing is left of brokers either, however it ends.
    let running = deployed.place.processes();
    assert!(running.len() > 6, "{running:?}");
    deployed.up.process.signal(Signal::KILL);
    let Deployed { place, .. } = deployed;
    until("every process is gone", START, &place, || {
        running.iter().all(|process| !process.is_alive()).then_some(())
    });
    place.assert_no_process();
}
