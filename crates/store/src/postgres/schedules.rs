//! Schedules that hand in tasks.

use async_trait::async_trait;
use resurgam_model::schedule::{NewSchedule, Schedule};
use resurgam_model::{ScheduleName, TaskId, Timestamp};
use tokio_postgres::Row;

use super::{PostgresStore, get};
use crate::column::{from_json, parsed, time, time_if, to_json};
use crate::schedules::{next, turn};
use crate::{Fired, Result, Schedules};

/// The columns of a schedule.
macro_rules! columns {
    () => {
        "name, spec, (extract(epoch FROM next_at) * 1000000)::bigint AS next_at,
         (extract(epoch FROM last_at) * 1000000)::bigint AS last_at, last_task"
    };
}

/// So many schedules are fired in one transaction.
const BATCH: i64 = 100;

#[async_trait]
impl Schedules for PostgresStore {
    async fn put_schedule(&self, name: &ScheduleName, new: &NewSchedule) -> Result<Schedule> {
        let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now";
        let rows = self.query("read the clock", sql, &[]).await?;
        let now = rows.first().map_or(Ok(Timestamp::UNIX_EPOCH), |row| time(get(row, "now")?))?;
        let next = next(new, now)?.map(Timestamp::as_microsecond);
        let sql = concat!(
            "INSERT INTO schedules (name, spec, next_at)
             VALUES ($1, $2, timestamptz 'epoch' + $3::bigint * interval '1 microsecond')
             ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, next_at = excluded.next_at
             RETURNING ",
            columns!()
        );
        let params = [&name.as_str() as _, &to_json(new)? as _, &next as _];
        let rows = self.query("set a schedule", sql, &params).await?;
        rows.first().map_or_else(
            || Err(crate::Error::Corrupt("a schedule that was set is missing".to_owned())),
            read_schedule,
        )
    }

    async fn remove_schedule(&self, name: &ScheduleName) -> Result<bool> {
        let sql = "DELETE FROM schedules WHERE name = $1 RETURNING name";
        Ok(!self.query("remove a schedule", sql, &[&name.as_str()]).await?.is_empty())
    }

    async fn schedule(&self, name: &ScheduleName) -> Result<Option<Schedule>> {
        let sql = concat!("SELECT ", columns!(), " FROM schedules WHERE name = $1");
        let rows = self.query("read a schedule", sql, &[&name.as_str()]).await?;
        rows.first().map(read_schedule).transpose()
    }

    async fn schedules(&self) -> Result<Vec<Schedule>> {
        let sql = concat!("SELECT ", columns!(), " FROM schedules ORDER BY name COLLATE \"C\"");
        self.query("list schedules", sql, &[]).await?.iter().map(read_schedule).collect()
    }

    async fn fire(&self) -> Result<Vec<Fired>> {
        // Most of the time there is nothing, which costs no transaction.
        let due = "SELECT 1 FROM schedules WHERE next_at <= statement_timestamp() LIMIT 1";
        if self.query("look for due schedules", due, &[]).await?.is_empty() {
            return Ok(Vec::new());
        }
        let mut session = self.session("fire schedules").await?;
        session.batch("BEGIN").await?;
        let sql = concat!(
            "SELECT ",
            columns!(),
            ", (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now
             FROM schedules WHERE next_at <= statement_timestamp()
             ORDER BY name LIMIT $1 FOR UPDATE SKIP LOCKED"
        );
        let (mut fired, mut ready) = (Vec::new(), Vec::new());
        for row in &session.query(sql, &[&BATCH]).await? {
            let schedule = read_schedule(row)?;
            let Some(due) = schedule.next_at else { continue };
            let turn = turn(&schedule.name, &schedule.new, due, time(get(row, "now")?)?)?;
            let id = TaskId::new();
            let mut last = None;
            if let Some((at, task)) = turn.task {
                let tasks = std::slice::from_ref(&task);
                if Self::submit_within(&mut session, &[id], tasks).await?.contains(&id) {
                    last = Some((at, id));
                    fired.push(Fired { name: schedule.name.clone(), at, task: id });
                    ready.push(task);
                }
            }
            let sql = "UPDATE schedules SET
                     next_at = timestamptz 'epoch' + $2::bigint * interval '1 microsecond',
                     last_at = coalesce(
                         timestamptz 'epoch' + $3::bigint * interval '1 microsecond', last_at),
                     last_task = coalesce($4, last_task)
                 WHERE name = $1";
            let next = turn.next.map(Timestamp::as_microsecond);
            let last_at = last.map(|(at, _)| at.as_microsecond());
            let last_task = last.map(|(_, id)| id.0);
            session.query(sql, &[&schedule.name.as_str(), &next, &last_at, &last_task]).await?;
        }
        session.batch("COMMIT").await?;
        session.finish();
        self.ring_for(ready.iter().collect());
        Ok(fired)
    }
}

fn read_schedule(row: &Row) -> Result<Schedule> {
    Ok(Schedule {
        name: parsed(get(row, "name")?)?,
        new: from_json(get(row, "spec")?)?,
        next_at: time_if(get(row, "next_at")?)?,
        last_at: time_if(get(row, "last_at")?)?,
        last_task: get::<Option<_>>(row, "last_task")?.map(TaskId),
    })
}
