//! Connections of PostgreSQL that run out: who must give them up, and who must not.

use std::net::SocketAddr;

use resurgam_deployment::postgres::Secrets;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio_postgres::{Client, Config, NoTls};

use crate::backup::{api, tasks};
use crate::harness::{LONG, Place, Up, all_complete, until};

const PLAN: &str = "[deployment]\ndrills = 'allowed'\nstate_dir = 'state'\n\
    [store]\nkind = 'postgres'\nmax_pool_size = 4\n\
    [postgres]\nstandbys = 0\n[postgres.settings]\nmax_connections = '40'\n\
    superuser_reserved_connections = '5'\n";

/// A client of the database. What it opens stays open until it is dropped.
struct Clients {
    runtime: Runtime,
    address: SocketAddr,
    secrets: Secrets,
    open: Vec<(String, Client)>,
}

impl Clients {
    fn new(up: &Up, place: &Place) -> Self {
        let status = up.status(place).unwrap();
        let address = status["postgres"]["service"].as_str().unwrap().parse().unwrap();
        let secrets = Secrets::load(&place.path("state/secrets/postgres.json")).unwrap();
        Self { runtime: Runtime::new().unwrap(), address, secrets, open: Vec::new() }
    }

    /// Opens one; whether there was room.
    fn try_open(&mut self, application: &str, user: (&str, &str), does: &str) -> bool {
        let mut config = Config::new();
        config
            .host(self.address.ip().to_string())
            .port(self.address.port())
            .user(user.0)
            .password(user.1)
            .dbname("dotnetagents")
            .application_name(application);
        let opened = self.runtime.block_on(async {
            let (client, connection) = config.connect(NoTls).await?;
            tokio::spawn(connection);
            client.batch_execute(does).await?;
            Ok::<_, tokio_postgres::Error>(client)
        });
        match opened {
            Ok(client) => {
                self.open.push((application.to_owned(), client));
                true
            }
            Err(error) => {
                assert_eq!(error.code().unwrap().code(), "53300", "{error:?}");
                false
            }
        }
    }

    fn open(&mut self, application: &str, does: &str) -> bool {
        let password = self.secrets.platform.clone();
        self.try_open(application, ("dotnetagents", &password), does)
    }

    fn open_as_superuser(&mut self, application: &str, does: &str) {
        let password = self.secrets.superuser.clone();
        assert!(self.try_open(application, ("postgres", &password), does));
    }

    /// Opens as many as there are, and forgets a transaction in each.
    fn leak(&mut self, application: &str) -> usize {
        let before = self.open.len();
        while self.open(application, "BEGIN; SELECT 1") {}
        self.open.len() - before
    }

    /// How many connections of this application still work.
    fn alive(&self, application: &str) -> usize {
        let these = self.open.iter().filter(|(of, _)| of == application);
        these
            .filter(|(_, client)| self.runtime.block_on(client.simple_query("SELECT 1")).is_ok())
            .count()
    }
}

/// The incident, once it is closed, with its steps and what was kept.
fn closed(up: &Up, place: &Place) -> Value {
    let incident = up.closed_incidents(place, "pool-exhaustion", &[]).remove(0);
    let id = incident["id"].as_str().unwrap();
    let incident = up.get(place, &format!("/v1/incidents/{id}")).unwrap();
    assert_eq!(incident["state"], "recovered", "{incident:#}\n{}", place.logs());
    incident
}

fn step(incident: &Value, name: &str) -> String {
    let steps = incident["steps"].as_array().unwrap();
    let step = steps.iter().find(|step| step["name"] == name).unwrap();
    step["detail"].as_str().unwrap().to_owned()
}

#[test]
fn those_that_leaked_are_ended_and_nobody_else() {
    let plan = format!(
        "{PLAN}[postgres.connections]\nidle_in_transaction = '1s'\nidle = '1h'\nprotect = ['vip']\n"
    );
    let place = Place::new(&plan);
    let up = Up::ready(&place);
    let address = api(&up, &place);
    let mut all = tasks(&address, 0, 10);
    let mut clients = Clients::new(&up, &place);
    clients.open_as_superuser("admin", "BEGIN; SELECT 1");
    assert!(clients.open("vip", "BEGIN; SELECT 1"));
    assert!(clients.open("pool", "SELECT 1"));
    let leaked = clients.leak("forgetful");
    assert!(leaked > 5, "{leaked}");
    assert!(!clients.open("late", ""), "there was room");
    let incident = closed(&up, &place);
    assert_eq!(incident["component"], "postgres");
    assert!(incident["cause"].as_str().unwrap().contains("forgetful"), "{incident:#}");

    let ended = step(&incident, "relieve");
    let (count, of) = ended.strip_prefix("ended ").unwrap().split_once(' ').unwrap();
    assert!(of.starts_with("of forgetful as dotnetagents; "), "{ended}");
    // The youngest may stay: enough is free without them.
    let ended: usize = count.parse().unwrap();
    assert!(step(&incident, "restart").contains("forgetful"), "{incident:#}");
    let young = leaked - ended;
    for (application, alive) in [("admin", 1), ("vip", 1), ("pool", 1), ("forgetful", young)] {
        assert_eq!(clients.alive(application), alive, "{application}: {incident:#}");
    }
    assert!(clients.open("late", "SELECT 1"), "there is room");
    let evidence = incident["evidence"].to_string();
    assert!(evidence.contains("BEGIN; SELECT ?"), "{evidence}");
    assert!(!evidence.contains("SELECT 1"), "values are not kept: {evidence}");
    // The platform was not in anybody's way: it has lost nothing, and nothing of it was restarted.
    all.extend(tasks(&address, 10, 20));
    all_complete(&address, &all, &place);
    let others = up.get(&place, "/v1/incidents").unwrap();
    assert_eq!(others.as_array().unwrap().len(), 1, "{others:#}");
    up.process.stop(&place);
}

#[test]
fn a_component_that_leaks_is_started_again_as_no_failure_of_its_own() {
    let place = Place::new(&format!("{PLAN}[postgres.connections]\nidle_in_transaction = '1s'\n"));
    let up = Up::ready(&place);
    let address = api(&up, &place);
    let workers = |up: &Up| {
        let status = up.status(&place).unwrap();
        let all = status["components"].as_array().unwrap().clone();
        let pool = all.into_iter().filter(|component| component["kind"] == "worker");
        pool.map(|component| component["pid"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let before = workers(&up);
    let mut clients = Clients::new(&up, &place);
    // As the program of a worker calls itself.
    assert!(clients.leak("worker-pool") > 5);
    let incident = closed(&up, &place);
    assert_eq!(
        step(&incident, "restart"),
        "started again worker-pool-0, worker-pool-1, worker-pool-2"
    );
    assert!(workers(&up).iter().all(|pid| !before.contains(pid)), "{before:?}");
    all_complete(&address, &tasks(&address, 0, 10), &place);
    let others = up.get(&place, "/v1/incidents").unwrap();
    assert_eq!(others.as_array().unwrap().len(), 1, "{others:#}");
    up.process.stop(&place);
}

#[test]
fn where_the_plan_lets_none_be_ended_a_person_decides() {
    let place = Place::new(&format!("{PLAN}[postgres.connections]\nend = []\n"));
    let up = Up::ready(&place);
    let mut clients = Clients::new(&up, &place);
    clients.leak("forgetful");
    let (id, question) = until("a person is asked", LONG, &place, || {
        let all = up.get(&place, "/v1/incidents")?;
        let id = all[0]["id"].as_str()?.to_owned();
        let detail = up.get(&place, &format!("/v1/incidents/{id}"))?;
        let mut steps = detail["steps"].as_array()?.iter();
        let step = steps.find(|step| step["status"] == "waiting")?;
        Some((id, step["detail"].as_str()?.to_owned()))
    });
    assert!(
        question.contains("End those that do nothing, of forgetful, all the same?"),
        "{question}"
    );
    assert!(clients.alive("forgetful") > 5, "nobody has agreed yet");
    assert_eq!(place.finish(&["approve", &id]).status.code(), Some(0));
    closed(&up, &place);
    assert_eq!(clients.alive("forgetful"), 0);
    up.process.stop(&place);
}

#[test]
fn a_database_with_less_room_than_it_was_made_with_comes_up_all_the_same() {
    let place = Place::new(PLAN);
    let limit = |up: &Up| {
        until("connections are counted", LONG, &place, || {
            up.status(&place)?["postgres"]["connections"]["seats"]["limit"].as_u64()
        })
    };
    let up = Up::ready(&place);
    assert_eq!(limit(&up), 35, "40 without the 5 that are reserved");
    up.process.stop(&place);
    std::fs::write(place.path("resurgam.toml"), PLAN.replace("'40'", "'30'")).unwrap();
    let up = Up::ready(&place);
    assert_eq!(limit(&up), 35, "its log was written with more");
    up.process.stop(&place);
}

/// A leak while a recovery that meets it breaks at a step. Answers whether the controller died of it.
fn leak_with(fault: &str, place: &Place) -> bool {
    let mut command = place.command(&["up"]);
    command.env("RESURGAM_RECOVERY_FAULT", fault);
    let mut up = Up { process: place.run(command) };
    up.wait_ready(place);
    let known: Vec<_> = up.get(place, "/v1/incidents").unwrap().as_array().unwrap().clone();
    let known: Vec<_> =
        known.iter().map(|incident| incident["id"].as_str().unwrap().to_owned()).collect();
    let mut clients = Clients::new(&up, place);
    clients.leak("forgetful");
    let dies = fault.starts_with("die");
    if dies {
        up.process.end(place, LONG);
        until("all of them die with the controller", LONG, place, || {
            place.processes().is_empty().then_some(())
        });
        up = Up::start(place);
    }
    up.wait_ready(place);
    let incident = up.closed_incidents(place, "pool-exhaustion", &known).remove(0);
    // What leaked is gone with everything else, before anybody could confirm it.
    let state = if fault == "die-after:confirm" { "false-alarm" } else { "recovered" };
    assert_eq!(incident["state"], state, "{fault}: {incident:#}\n{}", place.logs());
    assert!(clients.open("late", "SELECT 1") || dies, "{fault}: there is no room");
    up.process.stop(place);
    dies
}

#[test]
fn a_recovery_that_breaks_at_any_step_is_brought_to_its_end() {
    let place = Place::new(&format!("{PLAN}[postgres.connections]\nidle_in_transaction = '1s'\n"));
    let mut died = 0;
    for fault in [
        "die-after:confirm",
        "die-before:relieve",
        "die-after:relieve",
        "die-before:verify",
        "fail-once:evidence",
        "repeat:relieve",
        "fail-once:relieve",
        "repeat:restart",
        "fail-once:verify",
    ] {
        died += usize::from(leak_with(fault, &place));
    }
    assert_eq!(died, 4);
}
