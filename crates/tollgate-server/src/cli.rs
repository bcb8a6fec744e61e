//! The command line.

mod admin;
mod explain;
#[cfg(test)]
mod tests;

use std::{io::BufRead, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use tokio::runtime::Builder;
use tollgate_core::api_key::KeyHash;
use tollgate_policy::{api_key, format};
use tollgate_store::redis::RedisConfig;

use crate::{
    error::RunError,
    escape, logs, policies,
    run::{Backend, Listeners, run},
    settings::{self, Options, Settings, StoreSettings},
};

/// The secret of the demo key in the embedded policy. It is valid only on a node with the embedded policy and store.
const DEMO_KEY: &str = "tg_demoVeniceKeyForLoopbackUseOnly04QjPeg";

/// Tollgate: a rate-limit service for API platforms.
///
/// Without a command it runs a node. Without settings the node uses the embedded store and the Venice policy,
/// on loopback.
#[derive(Parser)]
#[command(name = "tollgate", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// Configuration file: YAML, with the names of the flags as keys. Flags and variables have precedence over it
    #[arg(long, env = "TOLLGATE_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Check policy files, or folders of them: print every mistake, and warnings of what is valid but probably not
    /// meant
    CheckPolicy {
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,

        /// Fail if there are warnings
        #[arg(long)]
        strict: bool,

        /// Print a table of all tiers and resources with their limits
        #[arg(long)]
        matrix: bool,
    },
    /// Explain the quotas of a call: which rule of a policy wins, which lose, and what names the counters
    Explain(Box<explain::ExplainArgs>),
    /// Check the Redis of the settings: print what is wrong and what to do, and fail if a node cannot rely on it
    Doctor(Box<Options>),
    /// Print the JSON Schema of policy files
    PolicySchema,
    /// Print the `OpenAPI` description of the REST API
    Openapi,
    /// Generate an API key: print its secret, and the hash for a policy file
    GenerateKey,
    /// Generate a token for a service or an administrator: print it, and the hash for a token file
    GenerateToken,
    /// Read a secret from standard input and print its hash, for a policy file or a token file
    HashKey,
    /// Manage accounts through a running node
    Account(Box<admin::Admin<admin::AccountVerb>>),
    /// Manage API keys through a running node
    Key(Box<admin::Admin<admin::KeyVerb>>),
    /// List tiers through a running node
    Tier(Box<admin::Admin<admin::TierVerb>>),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let client = || {
        cli.config
            .as_deref()
            .map_or(Ok(settings::ClientOptions::default()), |file| settings::read(file).map(|file| file.client))
    };
    let result = match cli.command {
        None => cli.options.resolve(cli.config.as_deref()).and_then(serve),
        Some(Command::CheckPolicy { paths, strict, matrix }) => check_policy(&paths, strict, matrix),
        Some(Command::Explain(args)) => args.run().and_then(|text| print(&text)),
        Some(Command::Doctor(options)) => {
            options.or(cli.options).resolve_redis(cli.config.as_deref()).and_then(|configs| examine(&configs))
        }
        Some(Command::PolicySchema) => serde_json::to_string_pretty(&format::schema())
            .map_err(|error| error.to_string())
            .and_then(|text| print(&text)),
        Some(Command::Openapi) => {
            crate::openapi_json().map_err(|error| error.to_string()).and_then(|text| print(&text))
        }
        Some(Command::GenerateKey) => {
            let secret = api_key::generate();
            print(&format!("secret: {secret}\nhash: {}", KeyHash::of(&secret).to_text()))
        }
        Some(Command::GenerateToken) => {
            let token = crate::auth::generate();
            print(&format!("token: {token}\nhash: {}", KeyHash::of(&token).to_text()))
        }
        Some(Command::HashKey) => read_secret().and_then(|secret| print(&KeyHash::of(&secret).to_text())),
        Some(Command::Account(admin)) => admin.run(client()).and_then(|text| print(&text)),
        Some(Command::Key(admin)) => admin.run(client()).and_then(|text| print(&text)),
        Some(Command::Tier(admin)) => admin.run(client()).and_then(|text| print(&text)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", escape::hidden(&error));
            ExitCode::FAILURE
        }
    }
}

fn check_policy(paths: &[PathBuf], strict: bool, matrix: bool) -> Result<(), String> {
    let checked = policies::check(paths).map_err(|errors| policies::join_errors(&errors))?;
    print(&if matrix { checked.matrix() } else { checked.summary() })?;
    let warnings = checked.warnings();
    if warnings.is_empty() {
        return Ok(());
    }
    if strict {
        return Err(warnings);
    }
    eprintln!("{}", escape::hidden(&warnings));
    Ok(())
}

fn examine(configs: &[RedisConfig]) -> Result<(), String> {
    if configs.is_empty() {
        return Err("redis: is not set; the memory store needs no check".to_owned());
    }
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let (text, is_usable) = runtime.block_on(crate::doctor::run(configs));
    // An address that is still being resolved must not delay the exit.
    runtime.shutdown_background();
    print(&text)?;
    if is_usable { Ok(()) } else { Err("redis: see above".to_owned()) }
}

fn serve(settings: Settings) -> Result<(), String> {
    logs::start_logging(settings.log_format, &settings.log_filter)?;
    // For background work only; calls have their own threads.
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let result = runtime.block_on(serve_until_signalled(settings)).map_err(|error| error.to_string());
    // A file system that does not respond must not delay the exit.
    runtime.shutdown_background();
    result
}

async fn serve_until_signalled(settings: Settings) -> Result<(), RunError> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|error| RunError::Serve(format!("signals: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    // Without a handler, SIGHUP would end the process.
    let _hangup = listen(SignalKind::hangup())?;
    let backend = Backend::from_settings(&settings)?;
    let listeners = Listeners::bind(&settings)?;
    let greeting = greeting(&settings, &listeners);
    let greet = move || {
        if let Err(error) = print(&greeting) {
            tracing::debug!(error, "standard output is closed");
        }
    };
    run(settings, backend, listeners, greet, async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await
}

/// The text at startup, with commands to try.
fn greeting(settings: &Settings, listeners: &Listeners) -> String {
    let address = |listener: &tokio::net::TcpListener| {
        listener.local_addr().map(|address| address.to_string()).unwrap_or_default()
    };
    let (http, grpc) = (address(&listeners.http), address(&listeners.grpc));
    let memory = matches!(settings.store, StoreSettings::Memory { .. });
    let counters = if memory { "in this process's memory" } else { "in Redis" };
    let scheme = if settings.auth.tls.is_some() { "https" } else { "http" };
    let ops = listeners.ops.as_ref().map(|ops| format!(", health and metrics on http://{}", address(ops)));
    let listening = format!(
        "tollgate {} listens: REST on {scheme}://{http}, gRPC on {grpc}{}; counters {counters}",
        env!("CARGO_PKG_VERSION"),
        ops.unwrap_or_default()
    );
    if !memory || !settings.policy.is_empty() || settings.auth.service_tokens.is_some() || scheme == "https" {
        return listening;
    }
    let call =
        format!(r#"{{"caller":{{"api_key":"{DEMO_KEY}"}},"resource":"llama-3.3-70b","usage":{{"tokens":1500}}}}"#);
    format!(
        "{listening}\n\n\
         Consume one request and 1,500 tokens:\n  \
         curl -s http://{http}/v1/consume -H 'content-type: application/json' -d '{call}'\n\n\
         Read the key's limits:\n  \
         curl -s http://{http}/api_keys/rate_limits -H 'authorization: Bearer {DEMO_KEY}'\n\n\
         The same over gRPC:\n  \
         grpcurl -plaintext -d '{{\"call\":{call}}}' {grpc} tollgate.v1.RateLimitService/Consume\n"
    )
}

fn read_secret() -> Result<String, String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|error| error.to_string())?;
    let secret = line.trim_end_matches(['\r', '\n']);
    if secret.is_empty() { Err("standard input: the secret is missing".to_owned()) } else { Ok(secret.to_owned()) }
}

/// Writes to standard output, which may be closed.
fn print(text: &str) -> Result<(), String> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{}", escape::hidden(text)).map_err(|error| format!("standard output: {error}"))
}
