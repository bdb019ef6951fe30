//! `resurgam message`

use clap::{Args, Subcommand};
use resurgam_client::wire::Announcement;
use resurgam_model::message::{Message, NewMessage, default_topic};
use resurgam_model::{AgentId, Capability, Duration, MessageId, Payload};

use super::api::ApiArgs;
use crate::failure::{Failure, code};
use crate::output;

/// Send messages to agents, look into mailboxes, and care for what could not be delivered.
///
/// Examples:
///   resurgam message send writer-1 note --body '{"text": "thank you"}' --from boss
///   resurgam message send writer-1 question --from boss --ttl 1m --answer-within 10s
///   resurgam message announce plan.changed --body '{"version": 7}'
///   resurgam message announce help.wanted --any translate/de-en --from boss
///   resurgam message read writer-1 --wait 10s
///   resurgam message reject writer-1 42 --reason "no such document"
///   resurgam message dead
///   resurgam message resend 0198c0de-0000-7000-8000-0000000000aa
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct MessageArgs {
    #[command(subcommand)]
    command: MessageCommand,
}

#[derive(Debug, Subcommand)]
enum MessageCommand {
    /// Send a message to an agent.
    Send(SendArgs),
    /// Send a message to all agents, or to any one that can do something.
    Announce(AnnounceArgs),
    /// Show what waits in a mailbox, without taking it out.
    Read(ReadArgs),
    /// Take messages out of a mailbox.
    Acknowledge(AcknowledgeArgs),
    /// Say that an agent can do nothing with messages: after five times they are dead letters.
    Reject(RejectArgs),
    /// List dead letters: what was rejected too often, or not read within its time to live.
    Dead(DeadArgs),
    /// Send a dead letter again, under a new id.
    Resend(LetterArgs),
    /// Forget a dead letter.
    Forget(LetterArgs),
}

#[derive(Debug, Args)]
struct SendArgs {
    /// Who gets it.
    to: AgentId,
    /// What kind of message, such as note.
    kind: String,
    /// What it says: JSON, or else a text.
    #[arg(long, value_name = "JSON")]
    body: Option<String>,
    /// Who sends it. With tokens, an agent can only send as itself.
    #[arg(long, value_name = "AGENT")]
    from: Option<AgentId>,
    /// The stream it belongs to.
    #[arg(long, default_value_t = default_topic())]
    topic: String,
    /// How long it is of use; then it becomes a dead letter.
    #[arg(long, value_name = "TIME")]
    ttl: Option<Duration>,
    /// The message that this one answers.
    #[arg(long, value_name = "ID")]
    in_reply_to: Option<MessageId>,
    /// Wait for an answer in the mailbox of the sender, print it and take it out. Exit code 1
    /// when none comes.
    #[arg(long, value_name = "TIME", requires = "from")]
    answer_within: Option<Duration>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct AnnounceArgs {
    /// What kind of message, such as plan.changed.
    kind: String,
    /// Only to one agent that has this capability: the one with the most free places.
    #[arg(long, value_name = "CAPABILITY", conflicts_with = "all")]
    any: Option<Capability>,
    /// Only to agents that have this capability.
    #[arg(long, value_name = "CAPABILITY")]
    all: Option<Capability>,
    /// What it says: JSON, or else a text.
    #[arg(long, value_name = "JSON")]
    body: Option<String>,
    /// Who sends it. With tokens, an agent can only send as itself.
    #[arg(long, value_name = "AGENT")]
    from: Option<AgentId>,
    /// The stream it belongs to.
    #[arg(long, default_value_t = default_topic())]
    topic: String,
    /// Whose mailbox answers are for.
    #[arg(long, value_name = "AGENT")]
    reply_to: Option<AgentId>,
    /// How long it is of use; then it becomes a dead letter.
    #[arg(long, value_name = "TIME")]
    ttl: Option<Duration>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct ReadArgs {
    /// Whose mailbox.
    agent: AgentId,
    /// At most so many.
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// How long to wait for a message when there is none; at most 30s.
    #[arg(long, value_name = "TIME", default_value = "0s")]
    wait: Duration,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct AcknowledgeArgs {
    /// Whose mailbox.
    agent: AgentId,
    /// The numbers that `resurgam message read` shows.
    #[arg(required = true)]
    sequences: Vec<i64>,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct RejectArgs {
    /// Whose mailbox.
    agent: AgentId,
    /// The numbers that `resurgam message read` shows.
    #[arg(required = true)]
    sequences: Vec<i64>,
    /// Why.
    #[arg(long)]
    reason: String,
    /// Do not let them come again: they are dead letters now.
    #[arg(long)]
    at_once: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct DeadArgs {
    /// At most so many, the newest first.
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct LetterArgs {
    /// Which one; see `resurgam message dead`.
    id: MessageId,
    #[command(flatten)]
    api: ApiArgs,
}

pub(crate) async fn run(args: MessageArgs) -> Result<u8, Failure> {
    match args.command {
        MessageCommand::Send(args) => return send(args).await,
        MessageCommand::Announce(args) => return announce(args).await,
        MessageCommand::Read(args) => {
            let client = args.api.client()?;
            let came = client.receive(&args.agent, None, args.limit, args.wait).await?;
            show(&came, args.json)?;
        }
        MessageCommand::Acknowledge(args) => {
            args.api.client()?.acknowledge(&args.agent, &args.sequences).await?;
        }
        MessageCommand::Reject(args) => {
            let client = args.api.client()?;
            let RejectArgs { agent, sequences, reason, at_once, .. } = args;
            let dead = client.reject_messages(&agent, &sequences, &reason, at_once).await?;
            output::data(&format!("{dead} became dead letters"));
        }
        MessageCommand::Dead(args) => dead(&args).await?,
        MessageCommand::Resend(args) => {
            let again = args.api.client()?.resend_letter(args.id).await?;
            let again = again.ok_or_else(|| no_letter(args.id))?;
            output::data(&format!("sent again as {again}"));
        }
        MessageCommand::Forget(args) => {
            if !args.api.client()?.forget_letter(args.id).await? {
                return Err(no_letter(args.id));
            }
        }
    }
    Ok(code::OK)
}

fn no_letter(id: MessageId) -> Failure {
    Failure::new(format!("there is no dead letter {id}; see `resurgam message dead`"))
}

async fn send(args: SendArgs) -> Result<u8, Failure> {
    let body = args
        .body
        .as_deref()
        .map(|text| Payload::from_json(text).unwrap_or_else(|_| Payload::from_text(text)));
    let message = NewMessage {
        topic: args.topic,
        from: args.from.clone(),
        body: body.unwrap_or_default(),
        reply_to: args.from.filter(|_| args.answer_within.is_some()),
        in_reply_to: args.in_reply_to,
        ttl: args.ttl,
        ..NewMessage::new(args.to, &args.kind)
    };
    let client = args.api.client()?;
    let Some(patience) = args.answer_within else {
        client.send(std::slice::from_ref(&message)).await?;
        if args.json {
            output::json(&serde_json::json!({ "id": message.id }))?;
        } else {
            output::data(&message.id.to_string());
        }
        return Ok(code::OK);
    };
    let Some(answer) = client.request(&message, patience).await? else {
        return Err(Failure::new(format!(
            "{} has not answered message {} within {patience}; the answer may still come to the \
             mailbox of the sender",
            message.to, message.id
        )));
    };
    show(&[answer], args.json)?;
    Ok(code::OK)
}

async fn announce(args: AnnounceArgs) -> Result<u8, Failure> {
    let body = args
        .body
        .as_deref()
        .map(|text| Payload::from_json(text).unwrap_or_else(|_| Payload::from_text(text)));
    let announcement = Announcement {
        capability: args.any.clone().or(args.all),
        topic: args.topic,
        from: args.from,
        body: body.unwrap_or_default(),
        reply_to: args.reply_to,
        ttl: args.ttl,
        ..Announcement::new(&args.kind)
    };
    let client = args.api.client()?;
    if let Some(capability) = args.any {
        let Some(to) = client.send_to_any(&announcement).await? else {
            return Err(Failure::new(format!(
                "there is no agent for {capability}; see: resurgam agents list"
            )));
        };
        if args.json {
            output::json(&serde_json::json!({ "id": announcement.id, "to": to }))?;
        } else {
            output::data(&format!("{to} gets it"));
        }
        return Ok(code::OK);
    }
    let agents = client.send_to_all(&announcement).await?;
    if args.json {
        output::json(&serde_json::json!({ "id": announcement.id, "agents": agents }))?;
    } else {
        output::data(&format!("{agents} agents get it"));
    }
    Ok(code::OK)
}

fn show(messages: &[Message], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&messages);
    }
    let mut table = output::table(&["number", "id", "from", "kind", "sent", "rejected", "body"]);
    for message in messages {
        table.add_row([
            message.sequence.to_string(),
            message.id.to_string(),
            message.from.as_ref().map(ToString::to_string).unwrap_or_default(),
            message.kind.clone(),
            message.created_at.to_string(),
            message.rejections.to_string(),
            message.body.json().to_owned(),
        ]);
    }
    output::data(&table.to_string());
    Ok(())
}

async fn dead(args: &DeadArgs) -> Result<(), Failure> {
    let letters = args.api.client()?.dead_letters(args.limit).await?;
    if args.json {
        return output::json(&letters);
    }
    let mut table = output::table(&["id", "to", "from", "kind", "given up", "reason", "body"]);
    for letter in &letters {
        table.add_row([
            letter.id.to_string(),
            letter.to.as_ref().map(ToString::to_string).unwrap_or_default(),
            letter.from.as_ref().map(ToString::to_string).unwrap_or_default(),
            letter.kind.clone(),
            letter.died_at.to_string(),
            letter.reason.clone(),
            letter.body.json().to_owned(),
        ]);
    }
    output::data(&table.to_string());
    Ok(())
}
