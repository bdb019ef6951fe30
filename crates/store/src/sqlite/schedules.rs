//! Schedules that hand in tasks.

use async_trait::async_trait;
use resurgam_model::schedule::{NewSchedule, Schedule};
use resurgam_model::{ScheduleName, TaskId};
use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::ends::Ready;
use super::fault::Fault;
use super::submit::submit;
use super::{SqliteStore, get, now};
use crate::column::{from_json, parsed, time, time_if, to_json};
use crate::schedules::{next, turn};
use crate::{Fired, Result, Schedules};

#[async_trait]
impl Schedules for SqliteStore {
    async fn put_schedule(&self, name: &ScheduleName, new: &NewSchedule) -> Result<Schedule> {
        let (name, new) = (name.clone(), new.clone());
        self.writer.run("set a schedule", move |c| put(c, &name, &new)).await
    }

    async fn remove_schedule(&self, name: &ScheduleName) -> Result<bool> {
        let name = name.clone();
        let request = move |c: &Connection| {
            let removed = c
                .prepare_cached("DELETE FROM schedules WHERE name = ?1")?
                .execute([name.as_str()])?;
            Ok(removed > 0)
        };
        self.writer.run("remove a schedule", request).await
    }

    async fn schedule(&self, name: &ScheduleName) -> Result<Option<Schedule>> {
        let name = name.clone();
        self.readers.run("read a schedule", move |c| one(c, &name)).await
    }

    async fn schedules(&self) -> Result<Vec<Schedule>> {
        let request = |c: &Connection| {
            let mut statement = c.prepare_cached("SELECT * FROM schedules ORDER BY name")?;
            let mut rows = statement.query([])?;
            let mut schedules = Vec::new();
            while let Some(row) = rows.next()? {
                schedules.push(read_schedule(row)?);
            }
            Ok(schedules)
        };
        self.readers.run("list schedules", request).await
    }

    async fn fire(&self) -> Result<Vec<Fired>> {
        // Most of the time there is nothing, which costs no transaction.
        let due = |c: &Connection| {
            Ok(c.prepare_cached("SELECT 1 FROM schedules WHERE next_at <= ?1")?.exists([now()])?)
        };
        if !self.readers.run("look for due schedules", due).await? {
            return Ok(Vec::new());
        }
        let (fired, ready) = self.writer.run("fire schedules", fire).await?;
        self.ring(ready);
        Ok(fired)
    }
}

fn put(c: &Connection, name: &ScheduleName, new: &NewSchedule) -> Result<Schedule, Fault> {
    let next = next(new, time(now())?)?.map(|next| next.as_microsecond());
    c.prepare_cached(
        "INSERT INTO schedules (name, spec, next_at) VALUES (?1, ?2, ?3)
         ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, next_at = excluded.next_at",
    )?
    .execute(params![name.as_str(), to_json(new)?, next])?;
    let missing = || crate::Error::Corrupt("a schedule that was set is missing".to_owned());
    one(c, name)?.ok_or_else(|| missing().into())
}

fn one(c: &Connection, name: &ScheduleName) -> Result<Option<Schedule>, Fault> {
    let mut statement = c.prepare_cached("SELECT * FROM schedules WHERE name = ?1")?;
    let mut rows = statement.query([name.as_str()])?;
    rows.next()?.map(read_schedule).transpose()
}

fn fire(c: &Connection) -> Result<(Vec<Fired>, Ready), Fault> {
    let now = now();
    let mut due = Vec::new();
    let mut statement =
        c.prepare_cached("SELECT * FROM schedules WHERE next_at <= ?1 ORDER BY name")?;
    let mut rows = statement.query([now])?;
    while let Some(row) = rows.next()? {
        due.push(read_schedule(row)?);
    }
    let (mut fired, mut ready) = (Vec::new(), Ready::new());
    for schedule in due {
        let Some(at) = schedule.next_at else { continue };
        let turn = turn(&schedule.name, &schedule.new, at, time(now)?)?;
        let mut last = None;
        if let Some((at, task)) = turn.task {
            let (submitted, is_ready) = submit(c, &task)?;
            if submitted.created {
                last = Some((at, submitted.id));
                let task = submitted.id;
                fired.push(Fired { name: schedule.name.clone(), at, task });
            }
            if is_ready {
                *ready.entry(task.capability).or_default() += 1;
            }
        }
        c.prepare_cached(
            "UPDATE schedules SET next_at = ?2, last_at = ifnull(?3, last_at),
                 last_task = ifnull(?4, last_task)
             WHERE name = ?1",
        )?
        .execute(params![
            schedule.name.as_str(),
            turn.next.map(|next| next.as_microsecond()),
            last.map(|(at, _)| at.as_microsecond()),
            last.map(|(_, task)| *task.0.as_bytes()),
        ])?;
    }
    Ok((fired, ready))
}

fn read_schedule(row: &Row<'_>) -> Result<Schedule, Fault> {
    Ok(Schedule {
        name: parsed(&get::<String>(row, "name")?)?,
        new: from_json(&get::<String>(row, "spec")?)?,
        next_at: time_if(get(row, "next_at")?)?,
        last_at: time_if(get(row, "last_at")?)?,
        last_task: get::<Option<[u8; 16]>>(row, "last_task")?
            .map(|bytes| TaskId(Uuid::from_bytes(bytes))),
    })
}
