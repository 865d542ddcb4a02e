//! `baton join`: this machine as one or several devices of a room.

mod link;
mod memory;
mod name;
mod screen;
mod stage;
mod visit;

use anyhow::{Context, Result, bail};
use baton_formats::files::DirCache;
use clap::Args;
use link::RoomLink;
use memory::{Lent, Size};
use name::Name;
use screen::Screen;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use visit::{Outcome, Visitor};

/// The cache takes no more of the disk than this.
const CACHE_LIMIT: u64 = 16 << 30;
/// The socket of a first visit is tried again after 0.5, 1, 2 and 4 seconds: there was no room yet that could come back.
const FIRST_ATTEMPTS: u32 = 4;
/// A room that was lost is tried again after 1, 2, 4, … seconds, once each: for about a minute in all, or two where
/// nothing refuses and nothing answers.
const MOST_RETURNS: u32 = 6;
/// After so long in a room its loss is the first again.
const SETTLED: Duration = Duration::from_secs(60);

/// Lend this machine to a room: it takes a part of the model and trains with the phones.
///
/// LINK is what the host's page shows beside its QR code. Put it in quotes: it has a # in it. The machine then waits
/// for work, loads its part of the model (from the room or the hub; every byte is checked), and trains with the others,
/// until the host closes the room or Ctrl-C is pressed. Ctrl-C leaves cleanly: the others go on without it.
///
/// A stage computes on one core of the CPU; more cores are put to use by more stages.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Join {
    /// The join link of the room, in quotes
    link: String,
    /// What the host calls this machine, in 1 to 40 characters [default: its host name]
    #[arg(long)]
    name: Option<Name>,
    /// Stages, each a device of its own in the room with its own part of the model
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    stages: u16,
    /// Memory that its stages may take together, such as 2GB; at least 16MiB each [default: three quarters of what is free]
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Folder where pieces of models are kept for the next time [default: $BATON_CACHE or ~/.cache/baton]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Keep nothing on this machine's disk
    #[arg(long, conflicts_with = "cache")]
    no_cache: bool,
}

impl Join {
    pub(crate) fn run(self) -> Result<()> {
        let link = RoomLink::parse(&self.link)?;
        let lent = Lent::new(self.memory, NonZeroU16::new(self.stages).unwrap_or(NonZeroU16::MIN))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            // The stages have threads of their own; this is the network's.
            .worker_threads(2)
            .enable_all()
            .build()
            .context("the network cannot be started")?;
        let outcome = runtime.block_on(self.stay(link, lent));
        // A stage in the middle of a long job is not waited for.
        runtime.shutdown_background();
        outcome
    }

    async fn stay(self, link: RoomLink, lent: Lent) -> Result<()> {
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(heed_signals(stop));
        let host_name = || Name::cut(&gethostname::gethostname().to_string_lossy());
        let name = self.name.unwrap_or_else(host_name);
        let folder = self.cache.or_else(|| Some(DirCache::standard()?.path().to_owned()));
        let cache = folder.filter(|_| !self.no_cache).map(|folder| (folder, CACHE_LIMIT));
        let screen = Screen::new();
        let several = self.stages > 1;
        let mut stays = Vec::new();
        for stage in 1..=self.stages {
            let visitor = Visitor {
                link: link.clone(),
                name: if several { name.of_stage(stage) } else { name.to_string() },
                cache: cache.clone(),
                lent,
                row: screen.row(if several { format!("stage {stage}: ") } else { String::new() }),
                doubted: stage > 1,
            };
            stays.push(tokio::spawn(come_and_go(visitor, stopped.clone())));
        }
        let mut failures = Vec::new();
        for (stage, stay) in (1..).zip(stays) {
            if let Err(error) = stay.await.context("the network broke off: this is an error in Baton")? {
                failures.push((stage, format!("{error:#}")));
            }
        }
        let Some((_, first)) = failures.first() else { return Ok(()) };
        if failures.iter().all(|(_, words)| words == first) && failures.len() == usize::from(self.stages) {
            bail!("{first}");
        }
        // Each has words of its own.
        let mut failures = failures.into_iter().map(|(stage, words)| format!("stage {stage}: {words}"));
        let first = failures.next().unwrap_or_default();
        failures.for_each(|other| screen.say(&other));
        bail!("{first}")
    }
}

/// Visits the room, again after a loss, until it is over. A server that was never reached is no loss, but a wrong link.
async fn come_and_go(mut visitor: Visitor, mut stop: watch::Receiver<bool>) -> Result<()> {
    let mut lost: Option<String> = None;
    let mut returns = 0;
    loop {
        let began = Instant::now();
        let attempts = if lost.is_none() { FIRST_ATTEMPTS } else { 0 };
        let why = match visitor.visit(attempts, &mut stop).await {
            Outcome::Left => {
                visitor.row.end("left the room");
                return Ok(());
            }
            Outcome::Over(words) => {
                visitor.row.end(&words);
                return Ok(());
            }
            Outcome::Unreachable(words) if lost.is_none() => bail!("{}", screen::plain(&words)),
            Outcome::Unreachable(words) | Outcome::Lost(words) => words,
            // Its host may be back in a moment; what was lost first says more.
            Outcome::Refused { no_room: true, .. } if lost.is_some() => lost.clone().unwrap_or_default(),
            Outcome::Refused { words, .. } => bail!("{}", screen::plain(&words)),
        };
        if began.elapsed() >= SETTLED {
            returns = 0;
        }
        if returns >= MOST_RETURNS {
            bail!("{}", screen::plain(&why));
        }
        let wait = Duration::from_secs(1 << returns);
        returns += 1;
        visitor.row.say(&format!("{why}; joining again in {} s", wait.as_secs()));
        lost = Some(why);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stop.wait_for(|stop| *stop) => {
                visitor.row.end("left the room");
                return Ok(());
            }
        }
    }
}

/// The first Ctrl-C (or SIGTERM) asks the stages to leave; a second one does not wait for them.
async fn heed_signals(stop: watch::Sender<bool>) {
    one_signal().await;
    // The stages may have ended by themselves.
    let _ = stop.send(true);
    one_signal().await;
    std::process::exit(130);
}

async fn one_signal() {
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminated = async {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<Option<()>>();
    tokio::select! {
        () = interrupted => {}
        _ = terminated => {}
    }
}
