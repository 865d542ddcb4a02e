//! How good predictions are: accuracy, F1 and Matthews of classes, Pearson and Spearman of values.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a classifier's predictions are worth, each from 0 to 1 (Matthews from -1 to 1).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Classification {
    /// The share of predictions that are right.
    pub accuracy: f64,
    /// The F1 of class 1, where there are no classes but 0 and 1.
    pub f1: Option<f64>,
    /// The mean of the F1 of each class that is predicted or true somewhere.
    pub f1_macro: f64,
    /// Matthews' correlation coefficient (Gorodkin's for more than two classes); 0 where it is undefined.
    pub matthews: f64,
}

/// How well predicted values go with the true ones, from -1 to 1; `None` where one side does not vary or is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Correlation {
    /// Pearson's: of the values.
    pub pearson: Option<f64>,
    /// Spearman's: of their ranks, ties sharing the mean of theirs.
    pub spearman: Option<f64>,
}

/// Why there is nothing to measure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetricsError {
    /// Not a prediction for each label.
    #[error("{predictions} predictions cannot be set beside {labels} labels; each sample needs one of both")]
    Lengths {
        /// How many predictions there are.
        predictions: usize,
        /// How many labels there are.
        labels: usize,
    },
    /// No samples.
    #[error("there are no predictions to measure; give at least one validation sample")]
    Empty,
}

/// Measures predicted classes against the true ones.
///
/// F1 of a class is `2·hits / (predicted + true)`. Figures are those of scikit-learn 1.9 with `zero_division=0`.
///
/// # Errors
///
/// [`MetricsError`] when there are none, or not as many of each.
pub fn classification(predictions: &[u32], labels: &[u32]) -> Result<Classification, MetricsError> {
    check(predictions, labels)?;
    #[derive(Default)]
    struct Class {
        hits: f64,
        predicted: f64,
        labelled: f64,
    }
    let mut classes: BTreeMap<u32, Class> = BTreeMap::new();
    for (prediction, label) in predictions.iter().zip(labels) {
        classes.entry(*prediction).or_default().predicted += 1.0;
        classes.entry(*label).or_default().labelled += 1.0;
        if prediction == label {
            classes.entry(*label).or_default().hits += 1.0;
        }
    }
    // A class is here only if it was seen, so that the denominator is not 0.
    let f1 = |class: &Class| 2.0 * class.hits / (class.predicted + class.labelled);
    let samples = labels.len() as f64;
    let sum = |part: fn(&Class) -> f64| classes.values().map(part).sum::<f64>();
    let hits = sum(|class| class.hits);
    let covariance = hits * samples - sum(|class| class.predicted * class.labelled);
    let spread_predicted = samples * samples - sum(|class| class.predicted * class.predicted);
    let spread_labelled = samples * samples - sum(|class| class.labelled * class.labelled);
    let spread = (spread_predicted * spread_labelled).sqrt();
    let binary = classes.keys().all(|class| *class < 2);
    Ok(Classification {
        accuracy: hits / samples,
        f1: binary.then(|| classes.get(&1).map_or(0.0, f1)),
        f1_macro: classes.values().map(f1).sum::<f64>() / classes.len() as f64,
        matthews: if spread == 0.0 { 0.0 } else { covariance / spread },
    })
}

/// Measures predicted values against the true ones.
///
/// # Errors
///
/// [`MetricsError`] when there are none, or not as many of each.
pub fn correlation(predictions: &[f32], labels: &[f32]) -> Result<Correlation, MetricsError> {
    check(predictions, labels)?;
    let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
    let (predictions, labels) = (wide(predictions), wide(labels));
    Ok(Correlation {
        pearson: pearson(&predictions, &labels),
        spearman: pearson(&ranks(&predictions), &ranks(&labels)),
    })
}

fn check<T>(predictions: &[T], labels: &[T]) -> Result<(), MetricsError> {
    if predictions.len() != labels.len() {
        return Err(MetricsError::Lengths { predictions: predictions.len(), labels: labels.len() });
    }
    if labels.is_empty() { Err(MetricsError::Empty) } else { Ok(()) }
}

fn pearson(left: &[f64], right: &[f64]) -> Option<f64> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_left, mean_right) = (mean(left), mean(right));
    let (mut product, mut square_left, mut square_right) = (0.0, 0.0, 0.0);
    for (left, right) in left.iter().zip(right) {
        let (left, right) = (left - mean_left, right - mean_right);
        product += left * right;
        square_left += left * left;
        square_right += right * right;
    }
    let correlation = product / (square_left.sqrt() * square_right.sqrt());
    correlation.is_finite().then(|| correlation.clamp(-1.0, 1.0))
}

/// The rank of each value, from 1; equal values share the mean of their ranks. A NaN has none, and gives none.
fn ranks(values: &[f64]) -> Vec<f64> {
    if values.iter().any(|value| value.is_nan()) {
        return vec![f64::NAN; values.len()];
    }
    let mut order: Vec<(f64, usize)> =
        values.iter().enumerate().map(|(place, value)| (*value, place)).collect();
    order.sort_by(|left, right| left.0.total_cmp(&right.0));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    // `==`, so that -0 and 0, which the order above tells apart and leaves side by side, are equal.
    for equal in order.chunk_by(|left, right| left.0 == right.0) {
        let rank = before as f64 + (equal.len() as f64 + 1.0) / 2.0;
        for (_, place) in equal {
            ranks[*place] = rank;
        }
        before += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    fn classes(
        predictions: &[u32],
        labels: &[u32],
        accuracy: f64,
        f1: Option<f64>,
        f1_macro: f64,
        matthews: f64,
    ) {
        let found = classification(predictions, labels).unwrap();
        near(found.accuracy, accuracy);
        near(found.f1_macro, f1_macro);
        near(found.matthews, matthews);
        assert_eq!(found.f1.is_some(), f1.is_some());
        near(found.f1.unwrap_or(0.0), f1.unwrap_or(0.0));
    }

    // scikit-learn 1.9.1, with p the predictions and y the labels:
    // python -c "from sklearn.metrics import *; p = …; y = …; print(accuracy_score(y, p), f1_score(y, p),
    //            f1_score(y, p, average='macro', zero_division=0), matthews_corrcoef(y, p))"
    #[test]
    fn classes_are_measured_as_scikit_learn_does() {
        classes(
            &[0, 1, 1, 0, 1, 1, 0, 1, 0, 0],
            &[0, 1, 0, 0, 1, 1, 1, 1, 0, 1],
            0.7,
            Some(0.727_272_727_272_727_3),
            0.696_969_696_969_697,
            0.408_248_290_463_863,
        );
        classes(
            &[0, 2, 1, 2, 0, 1, 1, 3, 2, 0],
            &[0, 2, 2, 2, 1, 1, 0, 3, 2, 0],
            0.7,
            None,
            0.730_952_380_952_380_9,
            0.591_607_978_309_961_6,
        );
        classes(&[0, 0, 0, 0], &[0, 1, 0, 2], 0.5, None, 0.222_222_222_222_222_2, 0.0);
        classes(&[1, 1, 1, 1], &[0, 0, 0, 0], 0.0, Some(0.0), 0.0, 0.0);
    }

    // scipy 1.17.1: python -c "from scipy.stats import *; a = …; b = …; print(pearsonr(a, b), spearmanr(a, b))"
    #[test]
    fn values_are_measured_as_scipy_does_with_ties_averaged() {
        let found =
            correlation(&[0.1, 2.5, -3.0, 4.25, 2.5, 0.0, 7.5], &[0.0, 2.0, -1.0, 5.0, 2.0, 0.5, 3.0]);
        let found = found.unwrap();
        // 0.1 is not exact as f32.
        assert!((found.pearson.unwrap() - 0.832_781_091_525_926_2).abs() < 1e-8);
        near(found.spearman.unwrap(), 0.927_272_727_272_727_4);
    }

    #[test]
    fn what_does_not_vary_or_is_no_number_has_no_correlation() {
        for (left, right) in [([1.0, 1.0], [1.0, 2.0]), ([0.0, f32::NAN], [1.0, 2.0])] {
            assert_eq!(correlation(&left, &right), Ok(Correlation { pearson: None, spearman: None }));
        }
        let infinite = correlation(&[1.0, f32::INFINITY], &[1.0, 2.0]).unwrap();
        assert_eq!(infinite.pearson, None);
        near(infinite.spearman.unwrap(), 1.0);
    }

    #[test]
    fn sides_of_different_length_and_none_are_refused() {
        assert_eq!(classification(&[1], &[]), Err(MetricsError::Lengths { predictions: 1, labels: 0 }));
        assert_eq!(correlation(&[], &[]), Err(MetricsError::Empty));
    }
}
