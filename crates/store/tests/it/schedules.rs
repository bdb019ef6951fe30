//! Schedules.

use std::sync::Arc;

use resurgam_model::schedule::{Missed, NewSchedule};
use resurgam_model::task::TaskQuery;
use resurgam_model::{ScheduleName, Timestamp};
use resurgam_store::{Fired, Settings, open};
use tokio::task::JoinSet;

use crate::fixture::{Fixture, raw, task};

crate::on_both! {
    schedules_are_made_changed_paused_listed_and_removed
    a_time_is_by_the_clocks_of_its_zone
    each_time_hands_in_one_task_however_many_fire
    missed_times_are_made_up_for_once_or_skipped
    a_paused_or_removed_schedule_hands_in_nothing
}

fn name(name: &str) -> ScheduleName {
    ScheduleName::new(name).unwrap()
}

fn schedule(cron: &str) -> NewSchedule {
    let mut task = task("x");
    task.tags = vec!["nightly".to_owned()];
    NewSchedule {
        cron: cron.parse().unwrap(),
        time_zone: "UTC".to_owned(),
        task,
        missed: Missed::Once,
        paused: false,
    }
}

/// Puts the next time of all schedules so many seconds into the past.
async fn put_back(store: &Fixture, seconds: u32) {
    let sql = match store.settings {
        Settings::Sqlite { .. } => format!(
            "UPDATE schedules SET next_at = unixepoch('subsec') * 1000000 - {seconds} * 1000000"
        ),
        Settings::Postgres(_) => {
            format!("UPDATE schedules SET next_at = now() - interval '{seconds} seconds'")
        }
    };
    raw(&store.settings, &sql).await;
}

async fn schedules_are_made_changed_paused_listed_and_removed(store: Fixture) {
    assert!(store.schedules().await.unwrap().is_empty());
    assert!(store.schedule(&name("a")).await.unwrap().is_none());
    let mut new = schedule("0 0 1 1 *");
    store.put_schedule(&name("b"), &new).await.unwrap();
    let made = store.put_schedule(&name("a"), &new).await.unwrap();
    assert_eq!((&made.name, &made.new), (&name("a"), &new));
    assert!(made.next_at.unwrap() > Timestamp::now());
    assert_eq!((made.last_at, made.last_task), (None, None));
    let names: Vec<_> =
        store.schedules().await.unwrap().into_iter().map(|found| found.name).collect();
    assert_eq!(names, [name("a"), name("b")]);

    new.paused = true;
    let paused = store.put_schedule(&name("a"), &new).await.unwrap();
    assert_eq!((paused.next_at, paused.new.paused), (None, true));
    new.paused = false;
    let resumed = store.put_schedule(&name("a"), &new).await.unwrap();
    assert_eq!(resumed.next_at, made.next_at);
    assert_eq!(store.schedule(&name("a")).await.unwrap(), Some(resumed));
    assert!(store.fire().await.unwrap().is_empty());
    assert!(store.remove_schedule(&name("a")).await.unwrap());
    assert!(!store.remove_schedule(&name("a")).await.unwrap());
    assert!(store.schedule(&name("a")).await.unwrap().is_none());
}

async fn a_time_is_by_the_clocks_of_its_zone(store: Fixture) {
    // India's clocks have been five and a half hours ahead all year since 1945.
    let mut new = schedule("15 12 * * *");
    new.time_zone = "Asia/Kolkata".to_owned();
    let next = store.put_schedule(&name("a"), &new).await.unwrap().next_at.unwrap();
    assert!(next.to_string().ends_with("T06:45:00Z"), "{next}");
    // It goes on by them.
    put_back(&store, 1).await;
    assert_eq!(store.fire().await.unwrap().len(), 1);
    let next = store.schedule(&name("a")).await.unwrap().unwrap().next_at.unwrap();
    assert!(next.to_string().ends_with("T06:45:00Z"), "{next}");
    new.time_zone = "Nowhere/Else".to_owned();
    assert!(store.put_schedule(&name("a"), &new).await.is_err());
}

async fn each_time_hands_in_one_task_however_many_fire(store: Fixture) {
    let stores: Vec<_> = (0..3).map(|_| open(&store.settings).unwrap()).collect();
    let names: Vec<_> = (0..5).map(|n| name(&format!("s{n}"))).collect();
    for name in &names {
        store.put_schedule(name, &schedule("0 0 1 1 *")).await.unwrap();
    }
    for round in 1..=3 {
        put_back(&store, 7).await;
        let mut firing = JoinSet::new();
        for n in 0..9 {
            let store = Arc::clone(&stores[n % 3]);
            firing.spawn(async move { store.fire().await.unwrap() });
        }
        let mut fired: Vec<Fired> = firing.join_all().await.into_iter().flatten().collect();
        fired.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        let who: Vec<_> = fired.iter().map(|fired| fired.name.clone()).collect();
        assert_eq!(who, names);
        let tasks = store.tasks(&TaskQuery::default()).await.unwrap();
        assert_eq!(tasks.len(), round * names.len());
        for fired in &fired {
            let found = store.schedule(&fired.name).await.unwrap().unwrap();
            assert_eq!((found.last_at, found.last_task), (Some(fired.at), Some(fired.task)));
            assert!(found.next_at.unwrap() > Timestamp::now());
            let task = tasks.iter().find(|task| task.id == fired.task).unwrap();
            assert_eq!(task.tags, ["nightly"]);
            let key = format!("schedule:{}:{}", fired.name, fired.at);
            assert_eq!(task.idempotency_key.as_ref(), Some(&key));
        }
    }
}

async fn missed_times_are_made_up_for_once_or_skipped(store: Fixture) {
    let mut new = schedule("*/5 * * * *");
    store.put_schedule(&name("once"), &new).await.unwrap();
    new.missed = Missed::Skip;
    store.put_schedule(&name("skip"), &new).await.unwrap();
    put_back(&store, 7200).await;
    let due = store.schedule(&name("once")).await.unwrap().unwrap().next_at.unwrap();
    let fired = store.fire().await.unwrap();
    assert_eq!(fired.len(), 1);
    assert_eq!((&fired[0].name, fired[0].at), (&name("once"), due));
    let skipped = store.schedule(&name("skip")).await.unwrap().unwrap();
    assert_eq!((skipped.last_at, skipped.last_task), (None, None));
    assert!(skipped.next_at.unwrap() > due);
    // One that is only a little late was not missed.
    put_back(&store, 2).await;
    assert_eq!(store.fire().await.unwrap().len(), 2);
}

async fn a_paused_or_removed_schedule_hands_in_nothing(store: Fixture) {
    let mut new = schedule("* * * * *");
    store.put_schedule(&name("gone"), &new).await.unwrap();
    store.put_schedule(&name("rests"), &new).await.unwrap();
    put_back(&store, 5).await;
    new.paused = true;
    store.put_schedule(&name("rests"), &new).await.unwrap();
    store.remove_schedule(&name("gone")).await.unwrap();
    assert!(store.fire().await.unwrap().is_empty());
    assert!(store.tasks(&TaskQuery::default()).await.unwrap().is_empty());
}
