//! Tokens and TLS, by the commands alone.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use insta::assert_snapshot;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;

use crate::harness::{Finished, Place, Running, SHORT, Up, until};

/// A server with access control and TLS, and the ways to it.
struct Guarded {
    place: Place,
    url: String,
    server: Running,
}

impl Guarded {
    fn new() -> Self {
        let place = Place::new("");
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        fs::write(place.path("ca.pem"), authority.pem()).unwrap();
        fs::write(place.path("cert.pem"), certificate.pem()).unwrap();
        fs::write(place.path("key.pem"), key.serialize_pem()).unwrap();
        // Taken and given back, so that it is most likely free.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = place.start(&[
            "serve",
            "--role=api",
            "--role=registry",
            "--role=supervisor",
            "--sqlite=agents.db",
            &format!("--listen={address}"),
            "--access=tokens",
            "--tls-cert=cert.pem",
            "--tls-key=key.pem",
        ]);
        // It serves before its database is ready, and refuses work until then.
        for word in ["serving", "the database is ready"] {
            until(word, SHORT, &place, || server.said().contains(word).then_some(()));
        }
        Self { url: format!("https://{address}"), place, server }
    }

    fn command(&self, arguments: &[&str], token: Option<&str>) -> Command {
        let mut command = self.place.command(arguments);
        command.args(["--api", &self.url, "--cacert", "ca.pem"]);
        if let Some(token) = token {
            command.env("RESURGAM_TOKEN", token);
        }
        command
    }

    fn finish(&self, arguments: &[&str], token: Option<&str>) -> Finished {
        self.place.run(self.command(arguments, token)).end(&self.place, SHORT)
    }
}

/// The token that was printed, and nothing else.
fn printed(finished: &Finished) -> String {
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
    let token = finished.out.trim();
    assert!(token.starts_with("rsg_") && token.len() == 68, "{finished:?}");
    assert!(!finished.err.contains(token), "{finished:?}");
    token.to_owned()
}

#[test]
fn from_the_first_token_to_the_audit_log() {
    let guarded = Guarded::new();
    let place = &guarded.place;
    // The first one is made in the database itself.
    let made = place.finish(&["token", "create", "root", "--role=admin", "--sqlite=agents.db"]);
    let root = printed(&made);
    let nobody = guarded.finish(&["token", "list"], None);
    assert_snapshot!(nobody.told(place), @"
    exit 1
    resurgam: this server wants a token: send it as Authorization: Bearer … (401 unauthenticated)
    ");

    // The next ones by way of the API, with the first.
    fs::write(place.path("root"), format!("{root}\n")).unwrap();
    let arguments = ["token", "create", "team", "--role=agent", "--agents=w-*", "--json"];
    let with_file: Vec<&str> = arguments.into_iter().chain(["--token-file=root"]).collect();
    let made = guarded.finish(&with_file, None).json();
    let (team, id) = (made["secret"].as_str().unwrap(), made["id"].as_str().unwrap());
    assert_eq!(made["created_by"], "token root");

    let refused = guarded.finish(&["token", "list"], Some(team));
    assert_snapshot!(refused.told(place), @"
    exit 1
    resurgam: this needs the role admin, and the caller has the role agent (403 forbidden)
    ");
    let mut worker = guarded.command(&["worker", "--capability=sha256", "--name=v-1"], Some(team));
    worker.env("RESURGAM_LOG", "error");
    let refused = place.run(worker).end(place, SHORT);
    assert_snapshot!(refused.told(place), @"
    exit 1
    resurgam: the registration was refused: this caller may act as w-*, not as v-1; use a token for that agent (403 forbidden)
    ");

    let revoked = guarded.finish(&["token", "revoke", id], Some(&root));
    assert_eq!(revoked.status.code(), Some(0), "{revoked:?}");
    let refused = guarded.finish(&["token", "list"], Some(team));
    assert_snapshot!(refused.told(place), @"
    exit 1
    resurgam: the token was revoked (401 unauthenticated)
    ");
    let listed = guarded.finish(&["token", "list", "--json"], Some(&root)).json();
    let names = listed.as_array().unwrap().iter().map(|token| token["name"].as_str().unwrap());
    assert_eq!(names.collect::<Vec<_>>(), ["root", "team"]);
    assert!(!listed.to_string().contains(team), "{listed}");
    let table = guarded.finish(&["token", "list"], Some(&root));
    assert!(table.out.contains("w-*") && table.out.contains("revoked"), "{table:?}");

    let log = guarded.finish(&["audit-log", "--json"], Some(&root)).json();
    let of = |entry: &Value, field: &str| entry[field].as_str().unwrap().to_owned();
    let mut acts: Vec<_> = log
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|entry| {
            format!("{} {} {}", of(&entry["actor"], "kind"), of(entry, "act"), of(entry, "outcome"))
        })
        .collect();
    // A worker may have tried more than once.
    acts.dedup();
    assert_eq!(
        acts,
        [
            "database token.create done",
            "unknown request denied",
            "token token.create done",
            "token request denied",
            "token token.revoke done",
            "unknown request denied",
        ]
    );
    let direct = place.finish(&["audit-log", "--act=token.revoke", "--sqlite=agents.db"]);
    assert!(direct.out.contains(&format!("DELETE /tokens/{id}")), "{direct:?}");
    let said = guarded.server.said();
    assert!(!said.contains(&root) && !said.contains(team), "{said}");
    guarded.server.stop(place);
}

#[test]
fn what_would_let_everybody_in_is_refused() {
    let told = |arguments: &[&str]| {
        let place = Place::new("");
        let all: Vec<&str> = ["serve", "--role=registry", "--sqlite=a.db"]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        let finished = place.finish(&all);
        assert!(!finished.status.success(), "{finished:?}");
        finished.told(&place)
    };
    assert_snapshot!(told(&["--listen=0.0.0.0:0"]), @"
    exit 1
    resurgam: 0.0.0.0:0 can be reached from other machines, and access is open; control it with --access tokens, or listen on a loopback address such as 127.0.0.1 or [::1]
    ");
    assert_snapshot!(told(&["--listen=0.0.0.0:0", "--access=tokens"]), @"
    exit 1
    resurgam: 0.0.0.0:0 can be reached from other machines without TLS; give --tls-cert and --tls-key, or, if a proxy in front speaks TLS, --insecure-plaintext
    ");
    assert_snapshot!(told(&["--listen=127.0.0.1:0", "--internal-listen=0.0.0.0:0"]), @"
    exit 1
    resurgam: 0.0.0.0:0 is to be for the parts on this machine, but is no loopback address
    ");
    assert_snapshot!(told(&["--access=some"]), @r#"
    exit 2
    error: invalid value 'some' for '--access <ACCESS>': "some" is no mode of access; there are open and tokens

    For more information, try '--help'.
    "#);
    assert_snapshot!(told(&["--tls-cert=a.pem"]), @"
    exit 2
    error: the following required arguments were not provided:
      --tls-key <FILE>

    Usage: resurgam serve --role <ROLES> --tls-cert <FILE> --tls-key <FILE> --sqlite <FILE>

    For more information, try '--help'.
    ");
    assert_snapshot!(told(&["--listen=127.0.0.1:0", "--tls-cert=a.pem", "--tls-key=b.pem"]), @"
    exit 1
    resurgam: b.pem cannot be used for TLS: No such file or directory (os error 2)
    ");
}

#[test]
fn tokens_that_cannot_be_made_or_shown() {
    let told = |arguments: &[&str]| {
        let place = Place::new("");
        fs::write(place.path("empty"), "\n").unwrap();
        place.finish(arguments).told(&place)
    };
    assert_snapshot!(told(&["token", "create", "a", "--role=root", "--sqlite=a.db"]), @r#"
    exit 2
    error: invalid value 'root' for '--role <ROLE>': "root" is no role; the roles are viewer, agent, operator and admin

    For more information, try '--help'.
    "#);
    assert_snapshot!(told(&["token", "create", "a", "--role=admin", "--agents=x", "--sqlite=a.db"]), @"
    exit 2
    resurgam: agents: only a token of the role agent can be bound to agents, not one of the role admin
    ");
    assert_snapshot!(told(&["token", "create", "a", "--role=agent", "--agents=*", "--sqlite=a.db"]), @r#"
    exit 2
    error: invalid value '*' for '--agents <PATTERN>': "*" stands for every agent; leave the pattern out for that

    For more information, try '--help'.
    "#);
    assert_snapshot!(told(&["token", "create", "a", "--role=agent", "--direct"]), @"
    exit 2
    resurgam: no database was named: set DATABASE_URL, or give --sqlite FILE
    ");
    assert_snapshot!(told(&["token", "revoke", "01a21010-7eb9-742a-9294-313c04c247da", "--sqlite=a.db"]), @"
    exit 1
    resurgam: there is no token 01a21010-7eb9-742a-9294-313c04c247da
    ");
    assert_snapshot!(told(&["token", "list", "--token-file=missing"]), @"
    exit 2
    resurgam: --token-file missing cannot be read: No such file or directory (os error 2)
    ");
    assert_snapshot!(told(&["token", "list", "--token-file=empty"]), @"
    exit 2
    resurgam: --token-file empty holds no token
    ");
    assert_snapshot!(told(&["token", "list", "--client-cert=missing"]), @"
    exit 2
    error: the following required arguments were not provided:
      --client-key <FILE>

    Usage: resurgam token list --client-cert <FILE> --client-key <FILE>

    For more information, try '--help'.
    ");
}

/// Probes, registry, workers and canary all get along when everybody is asked who comes, and go on
/// doing so after a loss.
#[test]
fn a_deployment_under_access_control_recovers_as_any_other() {
    let place = Place::new("");
    let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::write(place.path("cert.pem"), certificate.cert.pem()).unwrap();
    fs::write(place.path("key.pem"), certificate.signing_key.serialize_pem()).unwrap();
    fs::write(
        place.path("resurgam.toml"),
        "[deployment]\nstate_dir = 'state'\n[workers]\nreplicas = 1\n[api]\naccess = 'tokens'\n\
         tls_cert = 'cert.pem'\ntls_key = 'key.pem'\n",
    )
    .unwrap();
    let mut up = Up::ready(&place);
    let said = up.process.said();
    let url = said.split_whitespace().find(|word| word.starts_with("https://")).unwrap();
    let url = url.trim_end_matches(',');
    let token = printed(&place.finish(&[
        "token",
        "create",
        "me",
        "--role=admin",
        "--sqlite=state/store/platform.db",
    ]));
    let finish = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        command.args(["--api", url, "--cacert", "cert.pem"]).env("RESURGAM_TOKEN", &token);
        place.run(command).end(&place, SHORT)
    };
    let done = finish(&["task", "submit", "sha256", "--payload", "\"x\"", "--wait", "20s"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}\n{}", place.logs());

    let status = up.status(&place).unwrap();
    let worker = status["components"].as_array().unwrap();
    let worker = worker.iter().find(|component| component["kind"] == "worker").unwrap();
    let pid = i32::try_from(worker["pid"].as_u64().unwrap()).unwrap();
    // The token of the platform is in no argument list, and no worker has the greater one.
    for component in status["components"].as_array().unwrap() {
        let arguments = fs::read(format!("/proc/{}/cmdline", component["pid"])).unwrap();
        assert!(!String::from_utf8_lossy(&arguments).contains("rsg_"), "{component}");
    }
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("RESURGAM_INTERNAL_TOKEN"));
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let closed = up.closed_incidents(&place, "worker-pool", &[]);
    assert_eq!(closed[0]["state"], "recovered");
    up.wait_ready(&place);
    up.process.stop(&place);
}
