//! A row of radio buttons, as the first two steps begin with.

use leptos::prelude::*;

/// One of a few ways; each has an id, a value and a label.
#[component]
pub(crate) fn Ways<T, const N: usize>(
    /// The radio buttons' common name.
    name: &'static str,
    /// What is chosen, for those who do not see it.
    legend: &'static str,
    /// The ways.
    ways: [(&'static str, T, &'static str); N],
    /// The chosen one.
    chosen: RwSignal<T>,
    /// Called when a person chooses.
    on_choose: impl Fn(T) + Copy + Send + Sync + 'static,
) -> impl IntoView
where
    T: Copy + PartialEq + Send + Sync + 'static,
{
    let way = move |(id, value, label): (&'static str, T, &'static str)| {
        view! {
            <label class="option">
                <input
                    id=id
                    type="radio"
                    name=name
                    prop:checked=move || chosen.get() == value
                    on:change=move |_| {
                        chosen.set(value);
                        on_choose(value);
                    }
                />
                <span>{label}</span>
            </label>
        }
    };
    view! {
        <fieldset class="options">
            <legend class="visually-hidden">{legend}</legend>
            {ways.map(way).into_iter().collect_view()}
        </fieldset>
    }
}
