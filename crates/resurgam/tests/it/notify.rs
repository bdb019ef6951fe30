//! People, and other programs, are told of incidents: receivers of our own on this machine.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use resurgam_recovery::drill::fault::Process;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{LONG, Place, Up, until};

/// What was heard, oldest first.
type Heard = Arc<Mutex<Vec<String>>>;

/// Listens until the test ends. Each connection is served by `talk`, which says what it heard.
fn listen(
    talk: impl Fn(&mut BufReader<TcpStream>) -> Option<String> + Send + Sync + 'static,
) -> (SocketAddr, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Heard::default();
    let hearing = Arc::clone(&heard);
    let talk = Arc::new(talk);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (talk, hearing) = (Arc::clone(&talk), Arc::clone(&hearing));
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                while let Some(text) = talk(&mut stream) {
                    hearing.lock().unwrap().push(text);
                }
            });
        }
    });
    (address, heard)
}

fn line(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
    Some(line.trim_end().to_owned())
}

/// A receiver over HTTP: head and body of each request. Answers what `status` says.
fn http(status: impl Fn(usize) -> u16 + Send + Sync + 'static) -> (SocketAddr, Heard) {
    let count = std::sync::atomic::AtomicUsize::new(0);
    listen(move |stream| {
        let mut head = String::new();
        let mut length = 0;
        loop {
            let next = line(stream)?;
            if let Some(value) = next.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if next.is_empty() {
                break;
            }
            head += &format!("{next}\n");
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let answer = format!("HTTP/1.1 {} X\r\ncontent-length: 2\r\n\r\nno", status(number));
        stream.get_mut().write_all(answer.as_bytes()).ok()?;
        Some(format!("{head}\n{}", String::from_utf8(body).unwrap()))
    })
}

/// A mail server: each mail as it came.
fn smtp() -> (SocketAddr, Heard) {
    listen(|stream| {
        let say = |stream: &mut BufReader<TcpStream>, text: &str| {
            stream.get_mut().write_all(format!("{text}\r\n").as_bytes()).ok()
        };
        say(stream, "220 here")?;
        loop {
            let command = line(stream)?.to_uppercase();
            if command == "DATA" {
                say(stream, "354 go on")?;
                let mut mail = String::new();
                loop {
                    let next = line(stream)?;
                    if next == "." {
                        break;
                    }
                    mail += &format!("{next}\n");
                }
                say(stream, "250 taken")?;
                return Some(mail);
            }
            say(stream, "250 fine")?;
        }
    })
}

fn bodies(heard: &Heard) -> Vec<Value> {
    let heard = heard.lock().unwrap();
    let body = |text: &String| serde_json::from_str(text.split_once("\n\n").unwrap().1).unwrap();
    heard.iter().map(body).collect()
}

/// Kills a worker, and waits for the end of the incident.
fn lose_a_worker(up: &Up, place: &Place, known: &[String]) -> Value {
    let status = up.status(place).unwrap();
    let all = status["components"].as_array().unwrap();
    let worker = all.iter().find(|component| component["kind"] == "worker").unwrap();
    let pid = u32::try_from(worker["pid"].as_u64().unwrap()).unwrap();
    Process::find(pid).unwrap().signal(Signal::KILL);
    up.closed_incidents(place, "worker-pool", known).remove(0)
}

#[test]
fn every_kind_of_channel_is_told_of_the_beginning_and_the_end() {
    let (web, web_heard) = http(|_| 200);
    let (slack, slack_heard) = http(|_| 200);
    let (alerts, alerts_heard) = http(|_| 200);
    let (pager, pager_heard) = http(|_| 202);
    let (mail, mail_heard) = smtp();
    let (other, other_heard) = http(|_| 200);
    let place = Place::new(&format!(
        "[deployment]\nstate_dir = 'state'\n[contacts]\non-call = '+41 00'\n\
         [[notify]]\nname = 'web'\nkind = 'webhook'\nurl = 'http://{web}/hook'\nsecret_file = 'token'\n\
         [[notify]]\nname = 'chat'\nkind = 'slack'\nurl_file = 'slack'\n\
         [[notify]]\nname = 'alerts'\nkind = 'alertmanager'\nurl = 'http://{alerts}'\n\
         [[notify]]\nname = 'pager'\nkind = 'pagerduty'\nurl = 'http://{pager}/'\nsecret_file = 'key'\n\
         [[notify]]\nname = 'mail'\nkind = 'email'\nurl = 'smtp://{mail}'\n\
         from = 'Resurgam <dr@example.org>'\nto = ['a@example.org', 'b@example.org']\n\
         [[notify]]\nname = 'dba'\nkind = 'webhook'\nurl = 'http://{other}/'\nteam = 'database'\n\
         [[notify]]\nname = 'later'\nkind = 'webhook'\nurl = 'http://{other}/'\nafter = '1h'\n"
    ));
    fs::write(place.path("token"), "tok-geheim\n").unwrap();
    fs::write(place.path("key"), "key-geheim\n").unwrap();
    fs::write(place.path("slack"), format!("http://{slack}/services/geheim\n")).unwrap();
    let up = Up::ready(&place);
    let incident = lose_a_worker(&up, &place, &[]);
    let id = incident["id"].as_str().unwrap();
    until("all are told of the end", LONG, &place, || {
        let ended = |heard: &Heard, word: &str| {
            heard.lock().unwrap().iter().any(|text| text.contains(word))
        };
        (ended(&web_heard, "\"event\":\"recovered\"")
            && ended(&slack_heard, "closed: recovered")
            && ended(&alerts_heard, "closed: recovered")
            && ended(&pager_heard, "\"event_action\":\"resolve\"")
            && ended(&mail_heard, "closed: recovered"))
        .then_some(())
    });
    let web = web_heard.lock().unwrap().clone();
    assert!(web[0].contains("POST /hook") && web[0].contains("Bearer tok-geheim"), "{web:?}");
    let events: Vec<_> = bodies(&web_heard)
        .iter()
        .flat_map(|body| body["events"].as_array().unwrap().clone())
        .map(|event| (event["event"].clone(), event["incident"]["id"].clone()))
        .collect();
    assert_eq!(events[0], ("opened".into(), id.into()), "{events:?}");
    assert_eq!(events.last().unwrap().0, "recovered", "{events:?}");
    let alert = bodies(&alerts_heard).last().unwrap()[0].clone();
    assert_eq!(alert["labels"]["incident"], id);
    assert_eq!(
        alert["endsAt"].as_str().unwrap()[..19],
        incident["closed_at"].as_str().unwrap()[..19]
    );
    assert!(alerts_heard.lock().unwrap()[0].starts_with("POST /api/v2/alerts "));
    let pages = bodies(&pager_heard);
    assert_eq!(pages[0]["routing_key"], "key-geheim");
    assert!(pages.iter().all(|page| page["dedup_key"] == id), "{pages:#?}");
    let mail = mail_heard.lock().unwrap().concat();
    assert!(mail.contains("To: a@example.org, b@example.org"), "{mail}");
    // One mail for each event, or one for several when they come at once.
    assert!(mail.contains("Subject: [P1] dotnetagents: "), "{mail}");
    assert!(mail.contains("worker-pool on worker-pool: opened"), "{mail}");
    assert_eq!(*other_heard.lock().unwrap(), Vec::<String>::new(), "not theirs, and over too soon");

    // Nothing of what is secret is in logs, status or plan.
    let status = place.finish(&["status", "--json"]);
    let shown = place.finish(&["plan", "show"]);
    up.process.stop(&place);
    for text in [place.logs(), status.out, shown.out] {
        assert!(!text.contains("geheim"), "{text}");
    }
}

#[test]
fn who_cannot_be_reached_is_told_later_and_also_by_the_next_controller() {
    // Nobody listens there, until somebody does.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let place = Place::new(&format!(
        "[deployment]\nstate_dir = 'state'\n\
         [[notify]]\nname = 'web'\nkind = 'webhook'\nurl = 'http://{address}/'\n"
    ));
    let up = Up::ready(&place);
    let incident = lose_a_worker(&up, &place, &[]);
    until("the failure is said", LONG, &place, || {
        let error = up.status(&place)?["notify"][0]["error"].as_str()?.to_owned();
        error.contains("Connection refused").then_some(())
    });
    assert!(place.finish(&["status"]).out.contains("nobody can be told over web"));
    up.process.stop(&place);

    let listener = TcpListener::bind(address).unwrap();
    let heard = std::thread::spawn(move || {
        let mut stream = BufReader::new(listener.accept().unwrap().0);
        while !line(&mut stream).unwrap().is_empty() {}
        let mut body = [0; 4000];
        let read = stream.read(&mut body).unwrap();
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.get_mut().write_all(answer.as_bytes()).unwrap();
        String::from_utf8_lossy(&body[..read]).into_owned()
    });
    let up = Up::ready(&place);
    until("somebody is told", LONG, &place, || heard.is_finished().then_some(()));
    let heard = heard.join().unwrap();
    assert!(heard.contains(incident["id"].as_str().unwrap()), "{heard}");
    // The journal is whole with the marks of who has read how far.
    assert_eq!(place.finish(&["journal", "verify"]).status.code(), Some(0));
    up.process.stop(&place);
}

#[test]
fn a_receiver_that_refuses_is_given_up_for_one_message_and_not_for_the_next() {
    let (address, heard) = http(|number| if number < 5 { 400 } else { 200 });
    let place = Place::new(&format!(
        "[deployment]\nstate_dir = 'state'\n\
         [[notify]]\nname = 'web'\nkind = 'webhook'\nurl = 'http://{address}/'\n"
    ));
    let tested = place.finish(&["notify", "test"]);
    assert_eq!(tested.status.code(), Some(1), "{tested:?}");
    assert!(tested.out.contains("web: NOT told: it answers 400"), "{tested:?}");
    let unknown = place.finish(&["notify", "test", "pager"]);
    assert!(unknown.err.contains("there are web"), "{unknown:?}");
    let up = Up::ready(&place);
    let first = lose_a_worker(&up, &place, &[]);
    let id = first["id"].as_str().unwrap().to_owned();
    until("it is taken in the end", 2 * LONG, &place, || {
        (heard.lock().unwrap().len() > 5).then_some(())
    });
    lose_a_worker(&up, &place, std::slice::from_ref(&id));
    until("the next is told", LONG, &place, || {
        let bodies = bodies(&heard);
        let last = bodies.last()?["events"].as_array()?.last()?.clone();
        (last["incident"]["id"] != *id && last["event"] == "recovered").then_some(())
    });
    assert_eq!(place.finish(&["notify", "test"]).status.code(), Some(0));
    up.process.stop(&place);
}

#[test]
fn a_wrong_secret_loses_no_message() {
    let (address, heard) = http(|number| if number < 5 { 401 } else { 200 });
    let place = Place::new(&format!(
        "[deployment]\nstate_dir = 'state'\n\
         [[notify]]\nname = 'web'\nkind = 'webhook'\nurl = 'http://{address}/'\n"
    ));
    let up = Up::ready(&place);
    let incident = lose_a_worker(&up, &place, &[]);
    until("it is taken in the end", LONG, &place, || {
        (heard.lock().unwrap().len() > 5).then_some(())
    });
    let taken = bodies(&heard)[5].clone();
    assert_eq!(taken["events"][0]["incident"]["id"], incident["id"], "{taken:#}");
    up.process.stop(&place);
}
