//! The loss curve and what the model is worth on samples that it is not trained on, as SVG drawn to the width that there is, and as a table.

use crate::format;
use baton_web_api::{Judgement, StepReport};
use gloo::events::EventListener;
use leptos::prelude::*;
use std::fmt::Write as _;

const HEIGHT: f64 = 248.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 30.0;
/// More points than pixels are of no use.
const MAX_POINTS: usize = 700;

/// Numbers at round distances inside `low..=high`, about `wanted` of them.
fn ticks(low: f64, high: f64, wanted: f64) -> Vec<f64> {
    let span = (high - low).max(1e-9);
    let raw = span / wanted;
    let power = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= raw).unwrap_or(raw);
    let mut tick = (low / step).ceil() * step;
    let mut ticks = Vec::new();
    while tick <= high + step * 1e-6 && ticks.len() < 20 {
        ticks.push(if tick.abs() < step * 1e-6 { 0.0 } else { tick });
        tick += step;
    }
    ticks
}

fn tick_label(x: f64) -> String {
    let text = format!("{x:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Averages runs of neighbours until few enough are left: `(step, loss)`, steps counted from 1.
fn thin(reports: &[StepReport]) -> Vec<(f64, f64)> {
    let run = reports.len().div_ceil(MAX_POINTS).max(1);
    #[allow(clippy::cast_precision_loss)] // a run of a few steps
    reports
        .chunks(run)
        .filter_map(|chunk| {
            let step = f64::from(chunk.last()?.step.0) + 1.0;
            let losses: Vec<f64> = chunk.iter().map(|r| r.loss).filter(|loss| loss.is_finite()).collect();
            (!losses.is_empty()).then(|| (step, losses.iter().sum::<f64>() / losses.len() as f64))
        })
        .collect()
}

/// Each point averaged with as many before it as after it, so that the curve does not lag.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = (points.len() / 16).clamp(1, 20);
    let averaged = points.iter().enumerate().map(|(i, &(step, loss))| {
        let reach = reach.min(i).min(points.len() - 1 - i);
        let near = points.get(i - reach..=i + reach).unwrap_or_default();
        #[allow(clippy::cast_precision_loss)] // at most 41
        let count = near.len() as f64;
        let sum: f64 = near.iter().map(|(_, loss)| loss).sum();
        (step, if near.is_empty() { loss } else { sum / count })
    });
    averaged.collect()
}

fn path(points: &[(f64, f64)], x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
    let mut d = String::new();
    for (i, (step, loss)) in points.iter().enumerate() {
        let letter = if i == 0 { 'M' } else { 'L' };
        write!(d, "{letter}{:.1} {:.1}", x(*step), y(*loss)).ok();
    }
    d
}

/// The loss of every step so far, of `steps` that there will be, and of the judgements between them.
#[component]
pub(crate) fn LossChart(
    reports: RwSignal<Vec<StepReport>>,
    judgements: RwSignal<Vec<Judgement>>,
    steps: Signal<u32>,
) -> impl IntoView {
    let holder = NodeRef::<leptos::html::Div>::new();
    let width = RwSignal::new(600.0);
    let measure = move || {
        if let Some(holder) = holder.get_untracked() {
            let now = f64::from(holder.client_width());
            if now > 0.0 && (now - width.get_untracked()).abs() > 0.5 {
                width.set(now);
            }
        }
    };
    Effect::new(move |_| {
        holder.track();
        reports.with(Vec::len);
        measure();
    });
    let listener = StoredValue::new_local(EventListener::new(&window(), "resize", move |_| measure()));
    on_cleanup(move || listener.dispose());

    let drawing = move || {
        let width = width.get();
        let points = reports.with(|reports| thin(reports));
        let smooth = smooth(&points);
        let judged = judgements.with(|judgements| judged(judgements));
        let (low, high) = points
            .iter()
            .chain(&judged)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (_, y)| (low.min(*y), high.max(*y)));
        let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
        let pad = ((high - low) * 0.12).max(0.05);
        let (low, high) = ((low - pad).max(0.0), high + pad);
        let last_step = f64::from(steps.get().max(2));
        // The first judgement is made before the first step.
        let first_step = if judged.is_empty() { 1.0 } else { 0.0 };
        let right = width - RIGHT;
        let bottom = HEIGHT - BOTTOM;
        let x = move |step: f64| LEFT + (step - first_step) / (last_step - first_step) * (right - LEFT);
        let y = move |loss: f64| bottom - (loss - low) / (high - low) * (bottom - TOP);
        let y_ticks = ticks(low, high, 4.0)
            .into_iter()
            .map(|tick| {
                view! {
                    <line class="grid" x1=LEFT x2=right y1=y(tick) y2=y(tick) />
                    <text class="tick" x=LEFT - 8.0 y=y(tick) text-anchor="end" dominant-baseline="central">
                        {tick_label(tick)}
                    </text>
                }
            })
            .collect_view();
        let mut steps = ticks(first_step, last_step, (width / 76.0).max(2.0));
        steps.retain(|tick| tick.fract() == 0.0);
        let x_ticks = steps
            .into_iter()
            .map(|tick| {
                view! {
                    <text class="tick" x=x(tick) y=bottom + 18.0 text-anchor="middle">{tick_label(tick)}</text>
                }
            })
            .collect_view();
        let end = smooth.last().map(|&(step, loss)| {
            view! { <circle class="now" cx=x(step) cy=y(loss) r="4.5" /> }
        });
        let dots = judged
            .iter()
            .map(|&(step, loss)| view! { <circle class="judged" cx=x(step) cy=y(loss) r="3.5" /> })
            .collect_view();
        view! {
            <svg
                class="chart"
                viewBox=format!("0 0 {width} {HEIGHT}")
                height=HEIGHT
                role="img"
                aria-labelledby="loss-title loss-desc"
            >
                <title id="loss-title">
                    {if judged.is_empty() { "Training loss" } else { "Training and validation loss" }}
                </title>
                <desc id="loss-desc">{describe(&points, &judged)}</desc>
                {y_ticks}
                <line class="axis" x1=LEFT x2=right y1=bottom y2=bottom />
                {x_ticks}
                <path class="raw" d=path(&points, x, y) />
                <path class="smooth" d=path(&smooth, x, y) />
                <path class="judged" d=path(&judged, x, y) />
                {end}
                {dots}
            </svg>
        }
    };
    let last = move || reports.with(|reports| reports.last().copied());
    view! {
        <figure
            id="loss"
            class="loss"
            data-step=move || last().map_or(0, |report| report.step.0 + 1)
            data-steps=move || steps.get()
            data-loss=move || last().map(|report| report.loss.to_string())
        >
            <figcaption>
                <span>"Loss by step"</span>
                <span class="legend"><i class="key-raw"></i>"each step"</span>
                <span class="legend"><i class="key-smooth"></i>"smoothed"</span>
                <span class="legend" hidden=move || judgements.with(Vec::is_empty)>
                    <i class="key-judged"></i>
                    "validation"
                </span>
            </figcaption>
            <div node_ref=holder class="chart-holder">{drawing}</div>
            <details class="numbers">
                <summary>"The same as a table"</summary>
                <div class="scroll" tabindex="0" role="region" aria-label="Losses as a table">
                    <table id="loss-table">
                        <thead><tr><th scope="col">"Step"</th><th scope="col">"Loss"</th></tr></thead>
                        <tbody>
                            <For
                                each=move || 0..reports.with(Vec::len)
                                key=|row| *row
                                children=move |row| {
                                    let report = move || reports.with(|reports| reports.get(row).copied());
                                    view! {
                                        <tr
                                            data-step=move || report().map(|r| r.step.0 + 1)
                                            data-loss=move || report().map(|r| r.loss.to_string())
                                        >
                                            <td>{move || report().map(|r| r.step.0 + 1)}</td>
                                            <td>{move || report().map(|r| format!("{:.4}", r.loss))}</td>
                                        </tr>
                                    }
                                }
                            />
                        </tbody>
                    </table>
                </div>
                <JudgementTable judgements=judgements />
            </details>
        </figure>
    }
}

/// The losses of judgements: `(steps done, loss)`.
fn judged(judgements: &[Judgement]) -> Vec<(f64, f64)> {
    let finite = judgements.iter().filter(|judgement| judgement.loss.is_finite());
    finite.map(|judgement| (f64::from(judgement.done), judgement.loss)).collect()
}

/// A figure of a judgement: its name, and how it is read off and written. Only those that there are get a column.
type Figure = (&'static str, fn(&Judgement) -> Option<f64>, fn(f64) -> String);

const FIGURES: [Figure; 5] = [
    ("Accuracy", |j| Some(j.classification?.accuracy), format::percent),
    ("F1", |j| j.classification?.f1, |f1| format!("{f1:.3}")),
    // Where there are two classes, the F1 of the second is what people speak of.
    (
        "Macro F1",
        |j| j.classification.filter(|c| c.f1.is_none()).map(|c| c.f1_macro),
        |f1| format!("{f1:.3}"),
    ),
    ("Pearson", |j| j.correlation?.pearson, |r| format!("{r:.3}")),
    ("Spearman", |j| j.correlation?.spearman, |r| format!("{r:.3}")),
];

/// The figures that a judgement has, as text.
pub(crate) fn figures(judgement: &Judgement) -> Vec<(&'static str, String)> {
    let figure = |(name, read, write): &Figure| Some((*name, write(read(judgement)?)));
    FIGURES.iter().filter_map(figure).collect()
}

/// Every judgement.
#[component]
fn JudgementTable(judgements: RwSignal<Vec<Judgement>>) -> impl IntoView {
    let names = Memo::new(move |_| {
        judgements.with(|all| {
            let there = |(name, read, _): &Figure| all.iter().any(|j| read(j).is_some()).then_some(*name);
            FIGURES.iter().filter_map(there).collect::<Vec<_>>()
        })
    });
    let row = move |judgement: Judgement| {
        let written = figures(&judgement);
        let cells = names.get().into_iter().map(|name| {
            let figure = written.iter().find(|(other, _)| *other == name).map(|(_, figure)| figure.clone());
            view! { <td>{figure.unwrap_or_else(|| "–".into())}</td> }
        });
        let cells = cells.collect_view();
        view! {
            <tr
                data-step=judgement.done
                data-loss=judgement.loss.to_string()
                data-accuracy=judgement.classification.map(|c| c.accuracy.to_string())
                data-f1=judgement.classification.and_then(|c| c.f1).map(|f1| f1.to_string())
                data-pearson=judgement.correlation.and_then(|c| c.pearson).map(|r| r.to_string())
                data-spearman=judgement.correlation.and_then(|c| c.spearman).map(|r| r.to_string())
            >
                <td>{judgement.done}</td>
                <td>{format!("{:.4}", judgement.loss)}</td>
                {cells}
            </tr>
        }
    };
    view! {
        <div
            class="scroll"
            tabindex="0"
            role="region"
            aria-label="Validation as a table"
            hidden=move || judgements.with(Vec::is_empty)
        >
            <table id="judged-table">
                <thead>
                    <tr>
                        <th scope="col">"After step"</th>
                        <th scope="col">"Validation loss"</th>
                        {move || names.get().into_iter().map(|name| view! { <th scope="col">{name}</th> }).collect_view()}
                    </tr>
                </thead>
                <tbody>{move || judgements.get().into_iter().map(row).collect_view()}</tbody>
            </table>
        </div>
    }
}

fn describe(points: &[(f64, f64)], judged: &[(f64, f64)]) -> String {
    let validation = match (judged.first(), judged.last()) {
        (Some((_, first)), Some((step, last))) if judged.len() > 1 => format!(
            " On validation samples it is {} after {step} steps; it began at {}.",
            format::number(*last),
            format::number(*first)
        ),
        (Some((step, loss)), _) => {
            format!(" On validation samples it is {} after {step} steps.", format::number(*loss))
        }
        _ => String::new(),
    };
    let training = match (points.first(), points.last()) {
        (Some((_, first)), Some((step, last))) => {
            format!(
                "After {step} steps the loss is {}; it began at {}.",
                format::number(*last),
                format::number(*first)
            )
        }
        _ => "No step is complete yet.".into(),
    };
    training + &validation
}
