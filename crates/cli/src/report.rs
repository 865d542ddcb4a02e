//! The figures of a run, as JSON.

use baton_engine::evaluate::Judgement;
use baton_protocol::coordinator::StepReport;
use baton_protocol::run::Settings;
use serde::Serialize;
use std::time::Duration;

/// What `--report` writes.
#[derive(Serialize)]
pub(crate) struct Report {
    settings: Settings,
    /// Mean negative log-likelihood over each step's target tokens, before its update.
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    lrs: Vec<f64>,
    /// What the model was worth on the samples kept out of training.
    judgements: Vec<Judged>,
    /// Of a model that writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    target_tokens: Option<u64>,
    seconds: f64,
    /// Target tokens a second, loading not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_second: Option<f64>,
    /// Of a model that labels: samples a second, loading not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    samples_per_second: Option<f64>,
    /// The process's largest resident set; none where the system does not tell.
    pub(crate) peak_memory_bytes: Option<u64>,
    #[serde(skip)]
    labels: bool,
    /// Target tokens, or labels, so far.
    #[serde(skip)]
    learned: u64,
    #[serde(skip)]
    first: Option<(Duration, u32)>,
}

/// A judgement and when it was made.
#[derive(Serialize)]
struct Judged {
    steps: u32,
    loss: f64,
    samples: usize,
    accuracy: Option<f64>,
    f1: Option<f64>,
    pearson: Option<f64>,
    spearman: Option<f64>,
}

impl Report {
    /// `labels`: whether the model labels, and does not write.
    pub(crate) fn new(settings: &Settings, labels: bool) -> Self {
        Self {
            settings: settings.clone(),
            losses: Vec::new(),
            grad_norms: Vec::new(),
            lrs: Vec::new(),
            judgements: Vec::new(),
            target_tokens: None,
            seconds: 0.0,
            tokens_per_second: None,
            samples_per_second: None,
            peak_memory_bytes: None,
            labels,
            learned: 0,
            first: None,
        }
    }

    /// Takes a step in, complete `since` the beginning.
    pub(crate) fn step(&mut self, report: &StepReport, since: Duration) {
        self.losses.push(report.loss);
        self.grad_norms.push(report.grad_norm);
        self.lrs.push(report.lr);
        self.learned += u64::from(report.tokens);
        self.seconds = since.as_secs_f64();
        // The first step waits for the weights: with more than one, speed is counted from its end.
        let speed = match self.first {
            None => {
                self.first = Some((since, report.tokens));
                f64::from(report.tokens) / self.seconds.max(1e-9)
            }
            Some((first, tokens)) => {
                let rest = self.learned - u64::from(tokens);
                rest as f64 / (since - first).as_secs_f64().max(1e-9)
            }
        };
        if self.labels {
            self.samples_per_second = Some(speed);
        } else {
            self.tokens_per_second = Some(speed);
            self.target_tokens = Some(self.learned);
        }
    }

    /// Takes a judgement in.
    pub(crate) fn judged(&mut self, steps: u32, judgement: &Judgement) {
        let Judgement { loss, samples, classification, correlation } = *judgement;
        self.judgements.push(Judged {
            steps,
            loss,
            samples,
            accuracy: classification.map(|classes| classes.accuracy),
            f1: classification.map(|classes| classes.f1.unwrap_or(classes.f1_macro)),
            pearson: correlation.and_then(|values| values.pearson),
            spearman: correlation.and_then(|values| values.spearman),
        });
    }

    /// As in "120 tokens/s".
    pub(crate) fn speed(&self) -> String {
        match (self.samples_per_second, self.tokens_per_second) {
            (Some(samples), _) => format!("{samples:.1} samples/s"),
            (None, tokens) => format!("{:.0} tokens/s", tokens.unwrap_or_default()),
        }
    }
}

/// The largest resident set of this process in bytes, where the system tells (Linux).
pub(crate) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
