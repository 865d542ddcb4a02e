//! The loss curve, as SVG drawn to the width that there is, and as a table.

use crate::format;
use baton_web_api::StepReport;
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

/// The loss of every step so far, of `steps` that there will be.
#[component]
pub(crate) fn LossChart(reports: RwSignal<Vec<StepReport>>, steps: Signal<u32>) -> impl IntoView {
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
        let (low, high) = points
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (_, y)| (low.min(*y), high.max(*y)));
        let (low, high) = if points.is_empty() { (0.0, 1.0) } else { (low, high) };
        let pad = ((high - low) * 0.12).max(0.05);
        let (low, high) = ((low - pad).max(0.0), high + pad);
        let last_step = f64::from(steps.get().max(2));
        let right = width - RIGHT;
        let bottom = HEIGHT - BOTTOM;
        let x = move |step: f64| LEFT + (step - 1.0) / (last_step - 1.0) * (right - LEFT);
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
        let mut steps = ticks(1.0, last_step, (width / 76.0).max(2.0));
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
        view! {
            <svg
                class="chart"
                viewBox=format!("0 0 {width} {HEIGHT}")
                height=HEIGHT
                role="img"
                aria-labelledby="loss-title loss-desc"
            >
                <title id="loss-title">"Training loss"</title>
                <desc id="loss-desc">{describe(&points)}</desc>
                {y_ticks}
                <line class="axis" x1=LEFT x2=right y1=bottom y2=bottom />
                {x_ticks}
                <path class="raw" d=path(&points, x, y) />
                <path class="smooth" d=path(&smooth, x, y) />
                {end}
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
            </details>
        </figure>
    }
}

fn describe(points: &[(f64, f64)]) -> String {
    match (points.first(), points.last()) {
        (Some((_, first)), Some((step, last))) => {
            format!(
                "After {step} steps the loss is {}; it began at {}.",
                format::number(*last),
                format::number(*first)
            )
        }
        _ => "No step is complete yet.".into(),
    }
}
