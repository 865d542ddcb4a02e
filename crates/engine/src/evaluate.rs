//! Judging the model on samples that it is not trained on, by forward passes beside the training.

use crate::batches::{Aim, MicroBatchData};
use baton_formats::Label;
use baton_formats::metrics::{self, Classification, Correlation};
use std::ops::Range;

/// The first of the numbers under which the coordinator is asked for passes that judge; those of texts are lower.
pub const FIRST_REQUEST: u32 = 1 << 30;
/// One more than the last.
const LAST_REQUEST: u32 = 1 << 31;

/// What the model is worth on the samples kept out of training.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Judgement {
    /// The mean loss: over target tokens, or over samples.
    pub loss: f64,
    /// Samples.
    pub samples: usize,
    /// For labels that are classes.
    pub classification: Option<Classification>,
    /// For labels that are values.
    pub correlation: Option<Correlation>,
}

/// The samples, and a judgement in the making.
#[derive(Debug)]
pub struct Evaluation {
    batches: Vec<MicroBatchData>,
    tally: Option<Tally>,
    /// The first number that no judgement has used: what is left of an ended run is not taken for the next one's.
    next: u32,
}

impl Default for Evaluation {
    fn default() -> Self {
        Self { batches: Vec::new(), tally: None, next: FIRST_REQUEST }
    }
}

/// What the passes so far gave.
#[derive(Debug, Default)]
struct Tally {
    done: u32,
    requests: Range<u32>,
    left: usize,
    loss: f64,
    judged: usize,
    predictions: Vec<Label>,
    labels: Vec<Label>,
}

impl Evaluation {
    /// Takes other samples to judge by, in slices as the pipeline takes them; none is no judging. A judgement in the making is
    /// dropped.
    pub fn replace(&mut self, batches: Vec<MicroBatchData>) {
        (self.batches, self.tally) = (batches, None);
    }

    /// Whether a number is that of a pass that judges.
    pub fn is_request(request: u32) -> bool {
        (FIRST_REQUEST..LAST_REQUEST).contains(&request)
    }

    /// Begins to judge the model as it is after `done` steps; gives the requests to make, none if there is nothing to
    /// judge by.
    pub fn begin(&mut self, done: u32) -> Range<u32> {
        let count = u32::try_from(self.batches.len()).unwrap_or(0).min(LAST_REQUEST - FIRST_REQUEST);
        if LAST_REQUEST - self.next < count {
            self.next = FIRST_REQUEST;
        }
        let requests = self.next..self.next + count;
        self.next = requests.end;
        if count > 0 {
            let requests = requests.clone();
            self.tally = Some(Tally { done, requests, left: self.batches.len(), ..Tally::default() });
        }
        requests
    }

    /// Whether a judgement is in the making.
    pub fn is_open(&self) -> bool {
        self.tally.is_some()
    }

    /// The samples of a request of the judgement in the making.
    pub fn batch(&self, request: u32) -> Option<&MicroBatchData> {
        let requests = &self.tally.as_ref()?.requests;
        let place = request.checked_sub(requests.start).filter(|_| requests.contains(&request))?;
        self.batches.get(usize::try_from(place).ok()?)
    }

    /// Takes down what a pass gave: its part of the mean loss, and what a head took the samples for.
    pub fn add(&mut self, request: u32, loss: f64, predictions: Vec<Label>) {
        let Some(labels) = self.batch(request).map(|batch| match &batch.aim {
            Aim::Labels { labels, .. } => labels.clone(),
            Aim::Tokens { .. } => Vec::new(),
        }) else {
            return;
        };
        if let Some(tally) = &mut self.tally {
            tally.loss += loss;
            tally.judged += 1;
            tally.predictions.extend(predictions);
            tally.labels.extend(labels);
        }
    }

    /// A request is over, well or not. After the last: the steps that were done, and the judgement if all went well.
    pub fn over(&mut self, request: u32) -> Option<(u32, Option<Judgement>)> {
        let tally = self.tally.as_mut().filter(|tally| tally.requests.contains(&request))?;
        tally.left = tally.left.saturating_sub(1);
        if tally.left > 0 {
            return None;
        }
        let tally = self.tally.take()?;
        let whole = tally.judged == self.batches.len();
        Some((tally.done, whole.then(|| tally.judgement(self.batches.iter().map(|b| b.ids.len()).sum()))))
    }
}

impl Tally {
    fn judgement(&self, samples: usize) -> Judgement {
        let classes = |labels: &[Label]| {
            let class = |label: &Label| if let Label::Class(class) = label { Some(*class) } else { None };
            labels.iter().map(class).collect::<Option<Vec<u32>>>().filter(|all| !all.is_empty())
        };
        let values = |labels: &[Label]| {
            let value = |label: &Label| if let Label::Value(value) = label { Some(*value) } else { None };
            labels.iter().map(value).collect::<Option<Vec<f32>>>().filter(|all| !all.is_empty())
        };
        let both = classes(&self.predictions).zip(classes(&self.labels));
        let classification = both.and_then(|(found, wanted)| metrics::classification(&found, &wanted).ok());
        let both = values(&self.predictions).zip(values(&self.labels));
        let correlation = both.and_then(|(found, wanted)| metrics::correlation(&found, &wanted).ok());
        Judgement { loss: self.loss, samples, classification, correlation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_formats::Example;

    fn evaluation() -> Evaluation {
        let example =
            |class| Example { ids: vec![1, 2], label: Some(Label::Class(class)), ..Example::default() };
        let mut evaluation = Evaluation::default();
        evaluation.replace(MicroBatchData::all(&[0, 1, 1].map(example), 2));
        evaluation
    }

    #[test]
    fn all_passes_together_make_a_judgement() {
        let mut evaluation = evaluation();
        let requests: Vec<u32> = evaluation.begin(5).collect();
        assert_eq!(requests.len(), 2);
        evaluation.add(requests[0], 0.5, vec![Label::Class(0), Label::Class(1)]);
        assert_eq!(evaluation.over(requests[0]), None);
        evaluation.add(requests[1], 0.25, vec![Label::Class(0)]);
        let (done, judgement) = evaluation.over(requests[1]).unwrap();
        let judgement = judgement.unwrap();
        assert_eq!((done, judgement.loss, judgement.samples), (5, 0.75, 3));
        assert_eq!(judgement.classification.unwrap().accuracy, 2.0 / 3.0);
        assert!(!evaluation.is_open());
    }

    #[test]
    fn a_pass_that_failed_leaves_no_judgement() {
        let mut evaluation = evaluation();
        let requests = evaluation.begin(0);
        evaluation.add(requests.start, 0.5, vec![Label::Class(0), Label::Class(1)]);
        evaluation.over(requests.start);
        assert_eq!(evaluation.over(requests.start + 1), Some((0, None)));
        assert_eq!(Evaluation::default().begin(3).count(), 0);
    }

    #[test]
    fn what_is_left_of_an_older_judgement_is_not_counted() {
        let mut evaluation = evaluation();
        let old = evaluation.begin(4);
        let new = evaluation.begin(0);
        assert!(evaluation.batch(old.start).is_none() && evaluation.batch(new.start).is_some());
        assert_eq!((evaluation.over(old.start), evaluation.over(old.start + 1)), (None, None));
        assert!(evaluation.is_open());
    }
}
