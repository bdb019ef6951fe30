//! The contract of tokens and of the audit log.

use resurgam_model::access::{
    AccessRole, Actor, ActorKind, AuditOutcome, AuditQuery, NewAccessToken, NewAuditEntry,
    TokenHash,
};
use resurgam_model::task::Token;
use resurgam_model::{Duration, TaskId, Timestamp, TokenId, TokenName};
use resurgam_store::access::LeaseStanding;

use crate::fixture::{
    Fixture, HOUR, NOTHING, agent, claimed, completion, failure, lease_ref, task,
};

crate::on_both! {
    a_token_is_found_by_its_hash_alone
    a_revocation_is_for_good_and_makes_the_generation_grow
    tokens_are_listed_in_the_order_in_which_they_were_made
    the_use_of_a_token_is_noted
    standings_tell_the_token_and_who_holds_it
    the_audit_log_keeps_what_it_was_told
    an_outcome_is_told_once
    the_audit_log_is_read_page_by_page_and_filtered
    what_is_old_is_forgotten_and_nothing_else
}

fn new(name: &str, role: AccessRole) -> NewAccessToken {
    NewAccessToken { name: TokenName::new(name).unwrap(), role, agents: None, expires_in: None }
}

fn hash(byte: u8) -> TokenHash {
    TokenHash([byte; 32])
}

fn entry(act: &str, outcome: AuditOutcome) -> NewAuditEntry {
    NewAuditEntry {
        actor: Actor::nameless(ActorKind::Loopback),
        act: act.to_owned(),
        object: "POST /x".to_owned(),
        outcome,
        detail: None,
        request_id: None,
        remote: None,
    }
}

async fn a_token_is_found_by_its_hash_alone(store: Fixture) {
    let asked = NewAccessToken {
        agents: Some("pool-*".parse().unwrap()),
        expires_in: Some(HOUR),
        ..new("workers", AccessRole::Agent)
    };
    let before = Timestamp::now();
    let made = store.create_token(&asked, &hash(1), "token root").await.unwrap();
    assert_eq!((&made.name, made.role), (&asked.name, AccessRole::Agent));
    assert!(made.agents.as_ref().unwrap().matches(&agent("pool-7")));
    assert_eq!(made.created_by, "token root");
    let life = made.expires_at.unwrap().duration_since(made.created_at);
    assert_eq!(life.as_secs(), 3600);
    assert!(made.created_at.duration_since(before).as_secs().abs() < 60);
    assert!(made.is_valid(Timestamp::now()) && !made.is_valid(made.expires_at.unwrap()));
    assert_eq!(store.token_by_hash(&hash(1)).await.unwrap(), Some(made));
    assert_eq!(store.token_by_hash(&hash(2)).await.unwrap(), None);
    // The same hash twice would mean the same secret twice.
    assert!(store.create_token(&asked, &hash(1), "x").await.is_err());

    let forever = store.create_token(&new("ci", AccessRole::Viewer), &hash(3), "x").await.unwrap();
    assert_eq!((forever.expires_at, forever.agents), (None, None));
}

async fn a_revocation_is_for_good_and_makes_the_generation_grow(store: Fixture) {
    let made = store.create_token(&new("a", AccessRole::Admin), &hash(1), "x").await.unwrap();
    let before = store.access_generation().await.unwrap();
    assert_eq!(store.access_generation().await.unwrap(), before);
    let revoked = store.revoke_token(made.id).await.unwrap().unwrap();
    assert!(revoked.revoked_at.is_some() && !revoked.is_valid(Timestamp::now()));
    assert!(store.access_generation().await.unwrap() > before);
    assert_eq!(store.token_by_hash(&hash(1)).await.unwrap(), Some(revoked.clone()));
    assert_eq!(store.revoke_token(made.id).await.unwrap(), Some(revoked));
    assert_eq!(store.revoke_token(TokenId::new()).await.unwrap(), None);
}

async fn tokens_are_listed_in_the_order_in_which_they_were_made(store: Fixture) {
    let mut made = Vec::new();
    for (byte, name) in (0..).zip(["c", "a", "b"]) {
        made.push(
            store.create_token(&new(name, AccessRole::Viewer), &hash(byte), "x").await.unwrap(),
        );
    }
    store.revoke_token(made[1].id).await.unwrap();
    let names = |tokens: Vec<resurgam_model::access::AccessToken>| {
        tokens.into_iter().map(|token| token.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(store.list_tokens(None, 10).await.unwrap()), ["c", "a", "b"]);
    assert_eq!(names(store.list_tokens(None, 2).await.unwrap()), ["c", "a"]);
    assert_eq!(names(store.list_tokens(Some(made[1].id), 2).await.unwrap()), ["b"]);
}

async fn the_use_of_a_token_is_noted(store: Fixture) {
    let made = store.create_token(&new("a", AccessRole::Viewer), &hash(1), "x").await.unwrap();
    let other = store.create_token(&new("b", AccessRole::Viewer), &hash(2), "x").await.unwrap();
    assert_eq!(made.last_used_at, None);
    store.tokens_used(&[]).await.unwrap();
    store.tokens_used(&[TokenId::new(), made.id]).await.unwrap();
    assert!(store.token_by_hash(&hash(1)).await.unwrap().unwrap().last_used_at.is_some());
    assert_eq!(store.token_by_hash(&hash(2)).await.unwrap(), Some(other));
}

async fn standings_tell_the_token_and_who_holds_it(store: Fixture) {
    let nobody = TaskId::new();
    let waiting = store.submit(&[task("y")]).await.unwrap()[0].id;
    let held = claimed(&store, task("x"), HOUR).await;
    let standings = async |task: TaskId| {
        let found = store.lease_standings(&[nobody, task, waiting]).await.unwrap();
        assert_eq!(found[0], None);
        assert_eq!(found[2], Some(LeaseStanding { token: Token(0), holder: None }));
        found[1].clone().unwrap()
    };
    let running = LeaseStanding { token: held.token, holder: Some(agent("holder")) };
    assert_eq!(standings(held.task).await, running);

    // Over, and under the same token: done, or back in the queue.
    let over = LeaseStanding { token: held.token, holder: None };
    store.fail(&[failure(lease_ref(&held), true)]).await.unwrap();
    assert_eq!(standings(held.task).await, over);
    let again = claimed(&store, task("z"), HOUR).await;
    assert_eq!(again.task, held.task);
    assert!(again.token > held.token);
    store.complete(&[completion(lease_ref(&again))]).await.unwrap();
    let over = LeaseStanding { token: again.token, holder: None };
    assert_eq!(standings(held.task).await, over);
    assert!(store.lease_standings(&[]).await.unwrap().is_empty());
}

async fn the_audit_log_keeps_what_it_was_told(store: Fixture) {
    let token = TokenId::new();
    let full = NewAuditEntry {
        actor: Actor { kind: ActorKind::Token, token: Some(token), name: Some("ci".to_owned()) },
        act: "task.cancel".to_owned(),
        object: "POST /tasks/1/cancel".to_owned(),
        outcome: AuditOutcome::Denied,
        detail: Some("needs \0 \"operator\"".to_owned()),
        request_id: Some("r-1".to_owned()),
        remote: Some("[::1]:7".to_owned()),
    };
    let bare = entry("drain", AuditOutcome::Done);
    let sequences = store.record_audit(&[full.clone(), bare.clone()]).await.unwrap();
    assert!(sequences.is_sorted() && sequences.len() == 2);
    assert!(store.record_audit(&[]).await.unwrap().is_empty());
    let log = store.audit_log(&AuditQuery::default()).await.unwrap();
    assert_eq!(log.iter().map(|e| e.sequence).rev().collect::<Vec<_>>(), sequences);
    assert_eq!((&log[0].actor, &log[0].act, &log[0].detail), (&bare.actor, &bare.act, &None));
    let kept = &log[1];
    assert_eq!((&kept.actor, &kept.act, &kept.object), (&full.actor, &full.act, &full.object));
    assert_eq!((kept.outcome, &kept.request_id), (full.outcome, &full.request_id));
    assert_eq!(kept.remote, full.remote);
    assert!(kept.detail.as_ref().unwrap().contains("\"operator\""));
}

async fn an_outcome_is_told_once(store: Fixture) {
    let begun = entry("drain", AuditOutcome::Begun);
    let sequence = store.record_audit(&[begun]).await.unwrap()[0];
    store.finish_audit(sequence, AuditOutcome::Failed, Some("no such worker")).await.unwrap();
    store.finish_audit(sequence, AuditOutcome::Done, None).await.unwrap();
    store.finish_audit(sequence + 1, AuditOutcome::Done, None).await.unwrap();
    let log = store.audit_log(&AuditQuery::default()).await.unwrap();
    assert_eq!(log.len(), 1);
    assert_eq!(log[0].outcome, AuditOutcome::Failed);
    assert_eq!(log[0].detail.as_deref(), Some("no such worker"));
}

async fn the_audit_log_is_read_page_by_page_and_filtered(store: Fixture) {
    let token = TokenId::new();
    let mut entries: Vec<_> = (0..7).map(|_| entry("a", AuditOutcome::Done)).collect();
    entries[2].act = "b".to_owned();
    entries[3].outcome = AuditOutcome::Denied;
    entries[4].actor = Actor { kind: ActorKind::Token, token: Some(token), name: None };
    let sequences = store.record_audit(&entries).await.unwrap();
    let read = async |query: AuditQuery| {
        let log = store.audit_log(&query).await.unwrap();
        let place = |e: resurgam_model::access::AuditEntry| {
            sequences.iter().position(|sequence| *sequence == e.sequence).unwrap()
        };
        log.into_iter().map(place).collect::<Vec<_>>()
    };
    assert_eq!(read(AuditQuery { limit: 3, ..AuditQuery::default() }).await, [6, 5, 4]);
    let next = AuditQuery { limit: 3, before: Some(sequences[4]), ..AuditQuery::default() };
    assert_eq!(read(next).await, [3, 2, 1]);
    assert_eq!(read(AuditQuery { act: Some("b".to_owned()), ..AuditQuery::default() }).await, [2]);
    let denied = AuditQuery { outcome: Some(AuditOutcome::Denied), ..AuditQuery::default() };
    assert_eq!(read(denied).await, [3]);
    assert_eq!(read(AuditQuery { token: Some(token), ..AuditQuery::default() }).await, [4]);
    let nul = AuditQuery { act: Some("a\0".to_owned()), ..AuditQuery::default() };
    assert!(read(nul).await.is_empty());
}

async fn what_is_old_is_forgotten_and_nothing_else(store: Fixture) {
    let entries: Vec<_> = (0..5).map(|_| entry("a", AuditOutcome::Done)).collect();
    store.record_audit(&entries).await.unwrap();
    let gone = store.create_token(&new("a", AccessRole::Viewer), &hash(1), "x").await.unwrap();
    let stays = store.create_token(&new("b", AccessRole::Viewer), &hash(2), "x").await.unwrap();
    store.revoke_token(gone.id).await.unwrap();
    assert_eq!(store.prune_access(HOUR, 100).await.unwrap(), 0);
    assert_eq!(store.list_tokens(None, 9).await.unwrap().len(), 2);
    // The clock goes on between the entries and now.
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    assert_eq!(store.prune_access(NOTHING, 3).await.unwrap(), 3);
    assert_eq!(store.prune_access(Duration::from_secs(0), 3).await.unwrap(), 2);
    assert!(store.audit_log(&AuditQuery::default()).await.unwrap().is_empty());
    assert_eq!(store.list_tokens(None, 9).await.unwrap(), [stays]);
}
