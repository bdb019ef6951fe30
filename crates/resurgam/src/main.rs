//! `resurgam`: run fleets of AI agents, and bring them back when something is lost.

mod audit;
mod backups;
mod brokers;
mod calendar;
mod cli;
mod commands;
mod failure;
mod junit;
mod output;
mod plan;
mod points;
mod report;
mod restorer;
mod shipping;
mod shutdown;
mod telemetry;
mod vaults;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use cli::{Cli, Command};
use failure::{Failure, code};
use resurgam_deployment::brokers::{Node, become_node};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let wanted = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // A closed pipe is no reason to fail.
            let _ = error.print();
            return ExitCode::from(if wanted { code::OK } else { code::USAGE });
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(cli));
            // Whoever reads or writes a vault may be cut off at any moment, and is not waited for.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Failure::new(format!("no threads can be made: {error}"))),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output::error(&failure);
            ExitCode::from(failure.code)
        }
    }
}

async fn run(cli: Cli) -> Result<u8, Failure> {
    let exporting = telemetry::start(cli.log_format, level(&cli.command))?;
    let result = perform(cli.command).await;
    if let Some(exporting) = exporting {
        exporting.finish().await;
    }
    result
}

async fn perform(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Demo(args) => commands::demo::run(args).await,
        Command::Drill(args) => commands::drill::run(args).await,
        Command::Up(args) if args.guard => commands::guard::run(args.plan.as_deref()).await,
        Command::Up(args) => commands::up::run(args).await,
        Command::Status(args) => commands::status::run(&args).await,
        Command::Incident(args) => commands::incident::run(args).await,
        Command::Approve(args) => commands::incident::decide(&args, true),
        Command::Reject(args) => commands::incident::decide(&args, false),
        Command::Recover(args) => commands::recover::run(args).await,
        Command::Failback(args) => commands::failback::run(args).await,
        Command::Restart(args) => commands::recover::restart(args).await,
        Command::Scale(args) => commands::recover::scale(args).await,
        Command::Top(args) => commands::top::run(&args).await,
        Command::Logs(args) => commands::recover::logs(&args),
        Command::Vault(args) => commands::vault::run(args).await,
        Command::Backup(args) => commands::backup::run(args).await,
        Command::Restore(args) => commands::restore::run(args).await,
        Command::Notify(args) => commands::notify::run(args).await,
        Command::Runbook(args) => commands::runbook::run(&args),
        Command::Journal(args) => commands::journal::run(args),
        Command::Agents(args) => commands::agents::run(args).await,
        Command::Plan(args) => commands::plan::run(&args),
        Command::Task(args) => commands::task::run(args).await,
        Command::Limit(args) => commands::limit::run(args).await,
        Command::Message(args) => commands::message::run(args).await,
        Command::Bus(args) => commands::bus::run(args).await,
        Command::Schedule(args) => commands::schedule::run(args).await,
        Command::Token(args) => commands::token::run(args).await,
        Command::Audit(args) => commands::audit::run(args).await,
        Command::AuditLog(args) => commands::audit_log::run(args).await,
        Command::Report(args) => commands::report::run(&args),
        Command::Serve(args) => commands::serve::run(args).await,
        Command::Worker(args) => commands::worker::run(args).await,
        Command::Workflow(args) => commands::workflow::run(args).await,
        Command::Instance(args) => commands::instance::run(args).await,
        Command::Broker(args) => Err(become_node(&Node::read(&args.node)?).into()),
    }
}

/// What is logged by default: long-running commands say more by themselves.
fn level(command: &Command) -> &'static str {
    match command {
        Command::Up(_)
        | Command::Serve(_)
        | Command::Worker(_)
        | Command::Instance(_)
        | Command::Broker(_) => "info",
        _ => "error",
    }
}
