//! Listens for clients until it is told to stop, and prints what was counted.

use std::io::{Read, Write};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use asymflow::service::protocol::MAX_IMAGES;
use asymflow::service::{Promise, ServiceReport};
use asymflow_enclave::channel::{Channel, ChannelLimits, ChannelStats};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::args::ServeArgs;
use crate::door::Door;
use crate::evidence::Identity;
use crate::executor::SharedStats;

/// Serves clients at the door until an interrupt, a termination, or the end of standard input where that was asked for.
pub async fn listen(
    args: &ServeArgs,
    identity: &Identity,
    door: Door,
    promise: &Promise,
    stats: &SharedStats,
) -> Result<()> {
    let mut limits = ChannelLimits { sessions: args.sessions, ..ChannelLimits::default() };
    limits.message.body_bytes = limits.message.body_bytes.min(u64::from(MAX_IMAGES) * door.image_bytes as u64);
    let channel = Channel::bind(&args.listen, identity.tls(), limits, door)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    let seen = channel.stats();
    say(&serde_json::json!({
        "listening": channel.address().context("cannot listen")?.to_string(),
        "assurance": identity.assurance(),
        "runtime": promise.runtime,
        "mode": promise.mode,
        "network": promise.network,
        "promise_sha256": identity.promise_sha256(),
    }))?;
    let serving = tokio::spawn(channel.run());
    if args.report_seconds > 0 {
        let (every, stats, seen) = (Duration::from_secs(args.report_seconds), Arc::clone(stats), Arc::clone(&seen));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                // A closed stdout is no reason to leave clients alone.
                let _ = say(&report(&stats, &seen));
            }
        });
    }
    stopped(args.exit_with_parent).await?;
    serving.abort();
    let _ = serving.await;
    say(&report(stats, &seen))
}

async fn stopped(with_parent: bool) -> Result<()> {
    let stop = Arc::new(Notify::new());
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut signals, stop) = (signal(kind).context("cannot handle signals")?, Arc::clone(&stop));
        tokio::spawn(async move {
            signals.recv().await;
            stop.notify_one();
        });
    }
    if with_parent {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin().by_ref(), &mut std::io::sink());
            stop.notify_one();
        });
    }
    stop.notified().await;
    Ok(())
}

fn report(stats: &SharedStats, seen: &ChannelStats) -> ServiceReport {
    ServiceReport {
        service: *stats.lock().unwrap_or_else(PoisonError::into_inner),
        sessions: seen.sessions(),
        refused_connections: seen.refused(),
        failed_sessions: seen.failed(),
        resident_bytes: resident_bytes(),
    }
}

/// Resident bytes of this process, of the file that Gramine has as well.
fn resident_bytes() -> Option<u64> {
    const PAGE_BYTES: u64 = 4096;
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    pages.split_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * PAGE_BYTES)
}

fn say(line: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(line).context("cannot print")?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).context("cannot write to stdout")
}
