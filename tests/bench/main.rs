//! `honcho-bench`: claims on one coupon, by Honcho and by its peers, in turns in the same run.
//!
//! `make bench` builds what it needs and runs it. It starts private PostgreSQL clusters, Redis
//! servers and services, measures every case in each round, checks the books after each, and
//! writes `docs/benchmarks.md` and `docs/claims-per-second.svg`.
#![forbid(unsafe_code)]

mod before;
mod case;
mod clients;
mod ground;
mod growth;
mod load;
mod machine;
mod peer_service;
mod plot;
mod redis;
mod redis_claims;
mod report;
mod results;
mod rush;
mod stage;
mod units;
mod watchers;

use std::{
    iter,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    before::Build,
    case::{CLOSE_TURNS, Case, NOON_CLIENTS},
    peer_service::Store,
    report::Run,
    results::Results,
    stage::Stage,
};

#[derive(Parser)]
#[command(
    version,
    about = "Claims on one coupon, by Honcho and by its peers, in turns"
)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
struct Options {
    /// Measurements of each case, three times as many over HTTP with 256 connections and at noon (not with a slower flush); the report gives medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Duration of each measurement, in seconds
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Only the cases whose names contain this; may be given several times
    #[arg(long)]
    only: Vec<String>,
    /// List the cases and stop
    #[arg(long)]
    list: bool,
    /// Checkout of another version, after `make build` there: the subject `before` of plain claims
    #[arg(long, value_name = "DIRECTORY")]
    against: Option<PathBuf>,
    /// Directory of the report and the plot [default: docs/, but only from a whole run]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Directory of the data of clusters and Redis servers, on the disk to be measured
    #[arg(long, default_value_os_t = state())]
    state: PathBuf,
}

/// Other modes of this binary, for its own use.
#[derive(Subcommand)]
enum Role {
    /// The prior system's claim over HTTP, the claim in Redis, or with neither a route that only parses the claim
    #[command(hide = true)]
    PeerService {
        #[arg(long, requires = "database_url")]
        pool: Option<usize>,
        #[arg(long)]
        database_url: Option<String>,
        /// Socket of a Redis server
        #[arg(long, conflicts_with = "pool")]
        redis: Option<PathBuf>,
    },
    /// Prints the microseconds of a flush of 8 KiB appended to this file
    #[command(hide = true)]
    FlushProbe { file: PathBuf },
}

/// A whole run has at least these; anything less does not overwrite `docs/`.
const WHOLE_ROUNDS: u32 = 3;
const WHOLE_SECONDS: u32 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.role {
        Some(Role::PeerService {
            pool,
            database_url,
            redis,
        }) => {
            let store = match (pool.zip(database_url), redis) {
                (Some((size, database_url)), _) => Store::Pool { size, database_url },
                (None, Some(socket)) => Store::Redis(socket),
                (None, None) => Store::Nothing,
            };
            peer_service::serve(store).await.map(|()| true)
        }
        Some(Role::FlushProbe { file }) => machine::probe_flush(&file).map(|median| {
            println!("{median}");
            true
        }),
        None => until_stopped(arguments.options).await,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("honcho-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the benchmark; Ctrl+C or SIGTERM drops it, and every server that it started.
async fn until_stopped(options: Options) -> Result<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = run(options) => done,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("stopped"),
        _ = terminate.recv() => anyhow::bail!("stopped"),
    }
}

/// Runs all cases, and tells if each was measured with correct books.
async fn run(options: Options) -> Result<bool> {
    let cases: Vec<Case> = Case::all(options.against.is_some())
        .into_iter()
        .filter(|case| {
            let name = case.to_string();
            options.only.is_empty() || options.only.iter().any(|part| name.contains(part))
        })
        .collect();
    anyhow::ensure!(
        !cases.is_empty(),
        "no case has such a name; --list shows them all"
    );
    if options.list {
        for case in &cases {
            println!("{case}");
        }
        return Ok(true);
    }
    machine::ensure_postgresql()?;
    let before = options.against.as_deref().map(Build::of).transpose()?;
    machine::install_tools()?;
    std::fs::create_dir_all(&options.state)
        .with_context(|| format!("cannot make {}", options.state.display()))?;
    // Other programs get the paths of socket and data directories, so they contain no symlinks.
    let state = options.state.canonicalize()?;
    machine::ensure_disk(&state)?;
    machine::raise_file_limit(clients::files(NOON_CLIENTS))?;

    let started = Instant::now();
    let mut stage = Stage::new(state, options.seconds, before.clone());
    let mut results = Results::new();
    for round in 0..options.rounds {
        let mut turns = cases.clone();
        if let Some(last) = cases.iter().rposition(Case::is_close) {
            let close = cases.iter().filter(|case| case.is_close()).copied();
            let further = iter::repeat_n(close, CLOSE_TURNS - 1).flatten();
            turns.splice(last + 1..=last, further);
        }
        // Every other round runs backwards, so that no case always follows the same neighbour.
        if round % 2 == 1 {
            turns.reverse();
        }
        for case in turns {
            let outcome = stage
                .measure(case)
                .await
                .map_err(|error| format!("{error:#}"));
            let minutes = started.elapsed().as_secs_f64() / 60.0;
            match &outcome {
                Ok(figures) => {
                    eprintln!("{minutes:5.1} min  round {}  {case}: {figures}", round + 1)
                }
                Err(error) => {
                    eprintln!(
                        "{minutes:5.1} min  round {}  {case}: BROKEN: {error}",
                        round + 1
                    );
                }
            }
            results.entry(case).or_default().push(outcome);
        }
    }
    let mut machine = machine::describe(&stage.directory)?;
    machine.extend(before.map(|build| ("Version before", build.commit)));
    let run = Run {
        date: machine::today()?,
        took: started.elapsed(),
        rounds: options.rounds,
        seconds: options.seconds,
        machine,
        settings: stage.settings().await?,
        flush: stage.flush_times(),
    };
    drop(stage);

    let broken = results.values().flatten().any(|outcome| outcome.is_err());
    let report = report::render(&run, &results);
    println!("{report}");
    let whole = options.only.is_empty()
        && options.rounds >= WHOLE_ROUNDS
        && options.seconds >= WHOLE_SECONDS
        && !broken;
    let out = match options.out {
        Some(out) => Some(out),
        None if whole => Some(root().join("docs")),
        None => {
            eprintln!(
                "Not a whole and sound run: docs/ stays as it is (--out DIR writes elsewhere)"
            );
            None
        }
    };
    if let Some(out) = out {
        std::fs::create_dir_all(&out)?;
        std::fs::write(out.join("benchmarks.md"), report)?;
        plot::draw(&out.join("claims-per-second.svg"), &run, &results)?;
        eprintln!("Wrote {}", out.display());
    }
    Ok(!broken)
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn state() -> PathBuf {
    root().join(".honcho/bench")
}
