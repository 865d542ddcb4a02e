//! How long samples are: bars, and the same in words.

use crate::format;
use baton_web_api::Lengths;
use leptos::prelude::*;

const WIDTH: f64 = 320.0;
const HEIGHT: f64 = 72.0;
const GAP: f64 = 3.0;

/// `usize` is no wider than this.
fn wide(n: usize) -> u64 {
    n as u64
}

/// Each bar: its lengths in words, the length that it begins above, and how many samples have such a length.
fn bars(histogram: &[(usize, usize)]) -> Vec<(String, u64, u64)> {
    let mut above = 0;
    let mut bars = Vec::new();
    for &(most, samples) in histogram {
        let words = if above == 0 { format!("up to {most}") } else { format!("{} to {most}", above + 1) };
        bars.push((words, wide(above), wide(samples)));
        above = most;
    }
    bars
}

/// How many samples have how many tokens, with those beyond the sequence length marked.
#[component]
pub(crate) fn LengthsChart(lengths: Lengths, seq_len: u64) -> impl IntoView {
    let Lengths { histogram, median, p90, longest, .. } = lengths;
    let bars = bars(&histogram);
    let highest = bars.iter().map(|(.., samples)| *samples).max().unwrap_or_default().max(1);
    #[allow(clippy::cast_precision_loss)] // pixels
    let (step, highest) = (WIDTH / bars.len().max(1) as f64, highest as f64);
    let mut left = 0.0;
    let drawn: Vec<_> = bars
        .iter()
        .map(|&(_, above, samples)| {
            #[allow(clippy::cast_precision_loss)] // pixels
            let share = samples as f64 / highest;
            // A bar of few samples is seen all the same.
            let height = if samples == 0 { 0.0 } else { (share * HEIGHT).max(2.0) };
            let (x, beyond) = (left, above >= seq_len);
            left += step;
            view! {
                <rect class:beyond=beyond x=x y=HEIGHT - height width=(step - GAP).max(1.0) height=height rx="2" />
            }
        })
        .collect();
    let words: Vec<String> = bars
        .iter()
        .map(|(tokens, _, samples)| format!("{tokens} tokens: {}", format::grouped(*samples)))
        .collect();
    let label = format!("Samples by length. {}.", words.join("; "));
    let rows = bars
        .into_iter()
        .map(|(tokens, _, samples)| {
            view! { <tr data-samples=samples><th scope="row">{tokens}</th><td>{format::grouped(samples)}</td></tr> }
        })
        .collect_view();
    let figures = format!(
        "Half of the samples have up to {} tokens, nine in ten up to {}; the longest has {}.",
        format::grouped(wide(median)),
        format::grouped(wide(p90)),
        format::grouped(wide(longest)),
    );
    view! {
        <details class="fold" id="text-lengths" data-median=median data-longest=longest>
            <summary>"How long the samples are"</summary>
            <figure class="lengths">
                <svg viewBox=format!("0 0 {WIDTH} {HEIGHT}") role="img" aria-label=label preserveAspectRatio="none">
                    {drawn}
                </svg>
                <figcaption class="hint">{figures}</figcaption>
            </figure>
            <table>
                <thead><tr><th scope="col">"Tokens"</th><th scope="col">"Samples"</th></tr></thead>
                <tbody>{rows}</tbody>
            </table>
        </details>
    }
}
