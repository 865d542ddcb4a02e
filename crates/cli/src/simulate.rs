//! `baton simulate`: a room in virtual time, as a table and a timeline.

use anyhow::{Context, Result, bail};
use baton_sim::scenario::Scenario;
use baton_sim::{Seeds, Series, campaign, timeline};
use clap::Args;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Runs of which the shortest time of each call counts.
const MEASURES: u32 = 5;

/// Play a room in virtual time.
#[derive(Args)]
pub(crate) struct Simulate {
    /// The scenario, a TOML file: docs/simulator.md says what may stand in it, examples are in crates/sim/scenarios.
    #[arg(required_unless_present = "campaign")]
    scenario: Option<PathBuf>,
    /// Write what every device did, and when, as an SVG picture.
    #[arg(long, value_name = "FILE.svg", conflicts_with = "campaign")]
    timeline: Option<PathBuf>,
    /// The seconds that the picture shows; all by default.
    #[arg(long, value_name = "FROM..TO", value_parser = window, requires = "timeline")]
    window: Option<Range<Duration>>,
    /// Measure what the host's machine takes of the real processor.
    #[arg(long, conflicts_with = "campaign")]
    host_time: bool,
    /// So many seeds, one after the other.
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// The first seed; the scenario's by default.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Rooms drawn from seeds instead of a scenario, with faults at every point of their steps.
    #[arg(long, conflicts_with = "scenario")]
    campaign: bool,
    /// Threads of a campaign; one for each core by default.
    #[arg(long, value_name = "N", requires = "campaign")]
    threads: Option<usize>,
}

fn window(text: &str) -> Result<Range<Duration>, String> {
    let seconds = |text: &str| Duration::try_from_secs_f64(text.trim().parse().ok()?).ok();
    let both = text.split_once("..").and_then(|(from, to)| Some(seconds(from)?..seconds(to)?));
    both.filter(|window| window.start < window.end)
        .ok_or_else(|| format!("\"{text}\" is not a window of seconds such as 10..25.5"))
}

impl Simulate {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<()> {
        match &self.scenario {
            Some(path) => self.scenario(path),
            None => self.campaign(),
        }
    }

    fn scenario(&self, path: &PathBuf) -> Result<()> {
        let named = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("{named} cannot be read"))?;
        let mut scenario = Scenario::parse(&text).with_context(|| format!("{named} is not a scenario"))?;
        scenario.measures = if self.host_time { MEASURES } else { 0 };
        let seeds = Seeds::new(self.seed.unwrap_or(scenario.seed), self.runs.unwrap_or(1))?;
        println!("{}", scenario.title);
        let mut series = Series::new(seeds);
        for seed in seeds.each() {
            let outcome = scenario.run(seed)?;
            if seeds.runs() == 1 {
                print!("{}", outcome.table());
            }
            if let Some(file) = self.timeline.as_ref().filter(|_| seed == seeds.first()) {
                let picture = timeline::svg(&outcome, &scenario.title, self.window.as_ref())?;
                std::fs::write(file, picture)
                    .with_context(|| format!("{} cannot be written", file.display()))?;
            }
            series.add(&outcome);
        }
        print!("{series}");
        if let Some(seed) = series.first_broken() {
            println!("repeat it with: baton simulate {named} --seed {seed}");
        }
        Ok(series.verdict()?)
    }

    fn campaign(&self) -> Result<()> {
        let seeds = Seeds::new(self.seed.unwrap_or(0), self.runs.unwrap_or(10_000))?;
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let begun = Instant::now();
        let tally = campaign::campaign(seeds, self.threads.unwrap_or_else(cores))?;
        println!("{tally}");
        println!("in {:.1} s", begun.elapsed().as_secs_f64());
        if let Some((seed, _)) = tally.broken.first() {
            bail!("repeat the first with: baton simulate --campaign --seed {seed} --runs 1");
        }
        Ok(())
    }
}
