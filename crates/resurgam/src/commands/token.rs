//! `resurgam token`

use clap::{Args, Subcommand};
use resurgam_client::Client;
use resurgam_client::wire::MadeToken;
use resurgam_model::access::{
    AccessRole, AccessToken, Actor, ActorKind, AgentPattern, AuditEntry, AuditOutcome, AuditQuery,
    NewAccessToken, NewAuditEntry,
};
use resurgam_model::{Duration, Timestamp, TokenId, TokenName};
use resurgam_platform::Secret;
use resurgam_store::SharedStore;

use super::api::ApiArgs;
use super::store::StoreArgs;
use crate::failure::{Failure, code};
use crate::output;

/// Make, list and revoke tokens: who may come in, and what they may do.
///
/// Roles, each of which may do what those before it may: viewer reads; agent hands in tasks and
/// works; operator cancels, requeues, limits, schedules and drains; admin makes tokens and reads
/// the audit log.
///
/// By way of the API this needs an admin's token. With --sqlite FILE, or with --direct and
/// DATABASE_URL, it works on the database itself: so the first token is made.
///
/// Examples:
///   resurgam token create root --role admin --sqlite agents.db
///   resurgam token create team-a --role agent --agents 'team-a/*' --expires-in 2160h
///   resurgam token list
///   resurgam token revoke 01a21010-7eb9-742a-9294-313c04c247da
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token, and print it this one time.
    Create(CreateArgs),
    /// List the tokens; the tokens themselves are not on record.
    List(ListArgs),
    /// Revoke a token for good; within a second nobody can use it any more.
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// What people call it.
    name: TokenName,
    /// What it allows: viewer, agent, operator or admin.
    #[arg(long)]
    role: AccessRole,
    /// The agents that it may act as: a name, or how names begin and '*'. Only for the role agent.
    #[arg(long, value_name = "PATTERN")]
    agents: Option<AgentPattern>,
    /// How long it is valid; until it is revoked if not given.
    #[arg(long, value_name = "TIME")]
    expires_in: Option<Duration>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    way: WayArgs,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    way: WayArgs,
}

#[derive(Debug, Args)]
struct RevokeArgs {
    /// The token's id, as `list` shows it.
    id: TokenId,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    way: WayArgs,
}

/// The way to tokens and audit log: the API or the database.
#[derive(Clone, Debug, Args)]
pub(crate) struct WayArgs {
    /// Work on the database that DATABASE_URL names, without a server. So does --sqlite with a
    /// file.
    #[arg(long)]
    direct: bool,
    #[command(flatten)]
    database: StoreArgs,
    #[command(flatten)]
    api: ApiArgs,
}

/// What was chosen.
pub(crate) enum Way {
    Api(Box<Client>),
    Direct(SharedStore),
}

impl WayArgs {
    pub(crate) async fn open(self) -> Result<Way, Failure> {
        if !self.direct && self.database.sqlite.is_none() {
            return Ok(Way::Api(Box::new(self.api.client()?)));
        }
        let store = self.database.open("token")?;
        store.migrate().await?;
        Ok(Way::Direct(store))
    }
}

/// So many are asked for at once.
const PAGE: u32 = 1000;

impl Way {
    async fn create(&self, new: &NewAccessToken) -> Result<MadeToken, Failure> {
        let store = match self {
            Self::Api(client) => return Ok(client.create_token(new).await?),
            Self::Direct(store) => store,
        };
        new.check().map_err(|error| Failure::usage(error.to_string()))?;
        let secret = Secret::generate()?;
        let by = who();
        let object = format!("{} for {}", new.role, new.name);
        let token = recorded(store, "token.create", object, async {
            Ok(Some(store.create_token(new, &secret.hash(), &by.to_string()).await?))
        });
        let token = token.await?.ok_or_else(|| Failure::new("the token was not made"))?;
        Ok(MadeToken { secret: secret.expose().to_owned(), token })
    }

    async fn list(&self) -> Result<Vec<AccessToken>, Failure> {
        let mut all: Vec<AccessToken> = Vec::new();
        loop {
            let after = all.last().map(|token| token.id);
            let page = match self {
                Self::Api(client) => client.tokens(after, PAGE).await?,
                Self::Direct(store) => store.list_tokens(after, PAGE).await?,
            };
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }

    async fn revoke(&self, id: TokenId) -> Result<AccessToken, Failure> {
        let store = match self {
            Self::Api(client) => return Ok(client.revoke_token(id).await?),
            Self::Direct(store) => store,
        };
        let revoked = recorded(store, "token.revoke", id.to_string(), async {
            Ok(store.revoke_token(id).await?)
        });
        revoked.await?.ok_or_else(|| Failure::new(format!("there is no token {id}")))
    }

    pub(crate) async fn audit_log(&self, query: &AuditQuery) -> Result<Vec<AuditEntry>, Failure> {
        Ok(match self {
            Self::Api(client) => client.audit_log(query).await?,
            Self::Direct(store) => store.audit_log(query).await?,
        })
    }
}

/// Whoever can write to the database, by the user that it is on this machine.
fn who() -> Actor {
    let name = Some(format!("uid {}", rustix::process::getuid().as_raw()));
    Actor { kind: ActorKind::Database, token: None, name }
}

/// Does something that is on record before it is done, and its outcome after. Nothing came of it
/// when it gives nothing.
async fn recorded<T>(
    store: &SharedStore,
    act: &str,
    object: String,
    what: impl Future<Output = Result<Option<T>, Failure>>,
) -> Result<Option<T>, Failure> {
    let begun = NewAuditEntry {
        actor: who(),
        act: act.to_owned(),
        object,
        outcome: AuditOutcome::Begun,
        detail: None,
        request_id: None,
        remote: None,
    };
    let sequences = store.record_audit(&[begun]).await?;
    let result = what.await;
    let outcome = match &result {
        Ok(Some(_)) => AuditOutcome::Done,
        Ok(None) | Err(_) => AuditOutcome::Failed,
    };
    for sequence in sequences {
        store.finish_audit(sequence, outcome, None).await?;
    }
    result
}

pub(crate) async fn run(args: TokenArgs) -> Result<u8, Failure> {
    match args.command {
        TokenCommand::Create(args) => {
            let CreateArgs { name, role, agents, expires_in, json, way } = args;
            let new = NewAccessToken { name, role, agents, expires_in };
            let made = way.open().await?.create(&new).await?;
            if json {
                output::json(&made)?;
            } else {
                output::note(&format!(
                    "token {} of the role {}; keep it, for it is not shown again:",
                    made.token.id, made.token.role
                ));
                output::data(&made.secret);
            }
        }
        TokenCommand::List(args) => {
            let tokens = args.way.open().await?.list().await?;
            if args.json {
                output::json(&tokens)?;
            } else {
                output::data(&table(&tokens));
            }
        }
        TokenCommand::Revoke(args) => {
            let revoked = args.way.open().await?.revoke(args.id).await?;
            if args.json {
                output::json(&revoked)?;
            } else {
                output::note(&format!("token {} ({}) is revoked", revoked.id, revoked.name));
            }
        }
    }
    Ok(code::OK)
}

fn table(tokens: &[AccessToken]) -> String {
    let mut table =
        output::table(&["id", "name", "role", "agents", "made by", "made", "last used", "state"]);
    let now = Timestamp::now();
    let moment = |at: Timestamp| at.strftime("%Y-%m-%d %H:%M").to_string();
    for token in tokens {
        let state = match (token.revoked_at, token.expires_at) {
            (Some(at), _) => format!("revoked {}", moment(at)),
            (None, Some(_)) if !token.is_valid(now) => "expired".to_owned(),
            (None, Some(at)) => format!("until {}", moment(at)),
            (None, None) => "valid".to_owned(),
        };
        table.add_row([
            token.id.to_string(),
            token.name.to_string(),
            token.role.to_string(),
            token.agents.as_ref().map(ToString::to_string).unwrap_or_default(),
            token.created_by.clone(),
            moment(token.created_at),
            token.last_used_at.map(moment).unwrap_or_default(),
            state,
        ]);
    }
    table.to_string()
}
