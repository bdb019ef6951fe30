//! The fuse, and processes that die with the one that started them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use resurgam_deployment::postgres::Programs;
use resurgam_deployment::postgres::contain::{self, Contained, Running, Strength};
use resurgam_deployment::postgres::fuse::{BootTime, Fuse};
use rustix::process::Signal;

use crate::processes::{Process, dead, descendants, folder, freeze, length, within};
use crate::roles::{Role, told};

const FOLDER: &str = "RESURGAM_TEST_FOLDER";
const BURNS_FOR: &str = "RESURGAM_TEST_BURNS_FOR";

/// Three processes that write for ever, and one that waits for them.
const WRITERS: &str = r#"
for n in 1 2 3; do
    (while :; do echo "$n" >> "$1"; sleep 0.01; done) &
done
wait
"#;

async fn writers(folder: &Path) -> Running {
    let args = ["-c", WRITERS, "writers"].map(OsString::from).into_iter();
    let args: Vec<_> = args.chain([folder.join("lines").into_os_string()]).collect();
    let log = File::create(folder.join("log")).unwrap();
    let what = Contained { program: Path::new("/bin/sh"), args: &args, user: None, log: &log };
    contain::start(what).await.unwrap()
}

/// The role: contains writers, and burns when told so.
pub(crate) async fn fuse() {
    let folder = told(FOLDER);
    let folder = Path::new(&folder);
    let running = writers(folder).await;
    let fuse = Fuse::new().unwrap();
    fs::write(folder.join("strength"), format!("{:?}", running.strength())).unwrap();
    within(10, "be told", async || length(&folder.join("light")) > 0).await;
    let burns_for = Duration::from_millis(told(BURNS_FOR).parse().unwrap());
    fuse.light(BootTime::now().plus(burns_for)).unwrap();
    fs::write(folder.join("lit"), "lit").unwrap();
    running.ended().await;
}

/// Starts the role and waits until its writers write. None where namespaces are not allowed.
async fn role_with_writers(folder: &Path) -> Option<(Role, Vec<Process>)> {
    let told = [(FOLDER, folder.display().to_string()), (BURNS_FOR, "1500".to_owned())];
    let role = Role::start("fuse", &folder.join("role.log"), &told).await;
    let pid = role.process().pid();
    within(20, "write", async || {
        length(&folder.join("lines")) > 30 && length(&folder.join("strength")) > 0
    })
    .await;
    if fs::read_to_string(folder.join("strength")).unwrap() != format!("{:?}", Strength::Kernel) {
        eprintln!("skipped: no PID namespaces are allowed here");
        return None;
    }
    let contained = descendants(pid);
    assert!(contained.len() >= 4, "{contained:?}");
    Some((role, contained))
}

async fn writes_no_more(folder: &Path) {
    let lines = folder.join("lines");
    let before = length(&lines);
    // Each writer would have written some ten lines.
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(length(&lines), before, "something still writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fuse_kills_everything_even_when_everything_is_stopped() {
    let folder = folder();
    let Some((role, _)) = role_with_writers(folder.path()).await else { return };
    fs::write(folder.path().join("light"), "now").unwrap();
    within(5, "light the fuse", async || length(&folder.path().join("lit")) > 0).await;
    let stopped = freeze(role.process()).await;
    assert!(stopped.len() >= 5, "{stopped:?}");
    dead(5, "the fuse kills what is stopped", &stopped).await;
    writes_no_more(folder.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_contained_dies_with_the_process_that_started_it() {
    let folder = folder();
    let Some((role, contained)) = role_with_writers(folder.path()).await else { return };
    role.process().signal(Signal::KILL);
    dead(5, "all die with it", &contained).await;
    writes_no_more(folder.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_contained_dies_when_its_handle_is_dropped() {
    let folder = folder();
    let running = writers(folder.path()).await;
    within(10, "write", async || length(&folder.path().join("lines")) > 30).await;
    if running.strength() == Strength::Process {
        return;
    }
    let family = descendants(running.pid());
    assert!(family.len() >= 3, "{family:?}");
    let main = Process::of(running.pid()).unwrap();
    drop(running);
    dead(5, "all die", &[family, vec![main]].concat()).await;
    writes_no_more(folder.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_it_has_ended_nothing_of_it_is_left() {
    let folder = folder();
    let running = writers(folder.path()).await;
    within(10, "write", async || length(&folder.path().join("lines")) > 30).await;
    if running.strength() == Strength::Process {
        return;
    }
    let family = descendants(running.pid());
    running.kill().await;
    assert!(!family.iter().any(|process| process.is_alive()), "the word came too early");
    assert!(running.exit().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_nobody_waits_for_any_more_leaves_nothing() {
    let folder = folder();
    for _ in 0..20 {
        let start = tokio::time::timeout(Duration::from_micros(100), writers(folder.path()));
        drop(start.await);
    }
    let mine = || {
        let lines = folder.path().join("lines");
        let of_this = move |process: &Process| {
            let command = fs::read(format!("/proc/{}/cmdline", process.pid())).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(&*lines.to_string_lossy())
        };
        descendants(std::process::id()).into_iter().filter(of_this).count()
    };
    within(10, "all die", async || mine() == 0).await;
    // Threads that were still to start one have had the time.
    tokio::time::sleep(Duration::from_millis(100)).await;
    within(10, "all die", async || mine() == 0).await;
}

/// The role: puts the fuse off again and again, and out in the end.
pub(crate) async fn put_off() {
    let fuse = Fuse::new().unwrap();
    for _ in 0..10 {
        fuse.light(BootTime::now().plus(Duration::from_millis(1000))).unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    fuse.put_out().unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let folder = told(FOLDER);
    fs::write(Path::new(&folder).join("survived"), "yes").unwrap();
    fuse.light(BootTime::now()).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fuse_can_be_put_off_and_out_and_a_past_moment_kills_at_once() {
    use std::os::unix::process::ExitStatusExt;

    let folder = folder();
    let told = [(FOLDER, folder.path().display().to_string())];
    let mut role = Role::start("put off", &folder.path().join("log"), &told).await;
    let ended = tokio::time::timeout(Duration::from_secs(20), role.child.wait()).await;
    assert_eq!(ended.expect("it burns down").unwrap().signal(), Some(libc::SIGKILL));
    assert!(length(&folder.path().join("survived")) > 0, "it burnt down too early");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_be_run_is_an_error() {
    let folder = folder();
    let log = File::create(folder.path().join("log")).unwrap();
    for (program, kind) in [
        ("/nonexistent/program", std::io::ErrorKind::NotFound),
        ("/etc/passwd", std::io::ErrorKind::PermissionDenied),
    ] {
        let what = Contained { program: Path::new(program), args: &[], user: None, log: &log };
        let started = tokio::time::timeout(Duration::from_secs(10), contain::start(what)).await;
        assert_eq!(started.expect("an answer").unwrap_err().kind(), kind, "{program}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_runs_as_the_given_user_with_a_neutral_environment() {
    let folder = folder();
    let path = folder.path().join("log");
    let log = File::create(&path).unwrap();
    let user = Programs::find(None).unwrap().user;
    let args = ["-c", "id -u; id -G; env | grep -c CARGO; ls /proc/self/fd"].map(OsString::from);
    let program = Path::new("/bin/sh");
    let what = Contained { program, args: &args, user: user.as_ref(), log: &log };
    let exit = contain::start(what).await.unwrap().ended().await;
    assert!(exit.success(), "{exit}");
    let said = fs::read_to_string(&path).unwrap();
    let said: Vec<_> = said.lines().collect();
    let uid = user.as_ref().map_or(rustix::process::geteuid().as_raw(), |user| user.uid);
    assert_eq!(said[0], uid.to_string());
    if let Some(user) = &user {
        assert_eq!(said[1], user.gid.to_string(), "no group of root is left");
    }
    assert_eq!(said[2], "0");
    // The last one is the folder that ls reads.
    assert_eq!(said[3..].join(" "), "0 1 2 3", "no file of ours is handed on");
}

/// The role: the first process of a namespace tries to light a fuse.
pub(crate) fn first() {
    assert_eq!(std::process::id(), 1);
    let refused = Fuse::new().unwrap_err();
    assert!(refused.to_string().contains("--init"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fuse_that_could_not_kill_is_refused() {
    let folder = folder();
    let path = folder.path().join("log");
    let log = File::create(&path).unwrap();
    let role = "exec env RESURGAM_TEST_ROLE=first \"$1\" --exact roles::role --nocapture";
    let program = std::env::current_exe().unwrap();
    let args = ["-c", role, "first"].map(OsString::from).into_iter();
    let args: Vec<_> = args.chain([program.into_os_string()]).collect();
    let what = Contained { program: Path::new("/bin/sh"), args: &args, user: None, log: &log };
    let running = contain::start(what).await.unwrap();
    if running.strength() == Strength::Kernel {
        let exit = running.ended().await;
        assert!(exit.success(), "{exit}: {}", fs::read_to_string(&path).unwrap());
    }
}
