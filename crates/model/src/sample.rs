//! The choice of the next token.

use rand::Rng;

/// A token drawn from `softmax(logits / temperature)`; at temperature 0 (or below) the first of the largest logits.
///
/// Logits that are NaN are never chosen. Without any logit it is token 0.
pub fn sample(logits: &[f32], temperature: f64, rng: &mut impl Rng) -> u32 {
    let mut best = 0;
    for (token, logit) in (0..).zip(logits) {
        let largest = logits.get(best as usize).copied().unwrap_or(f32::NAN);
        if *logit > largest || (largest.is_nan() && !logit.is_nan()) {
            best = token;
        }
    }
    if temperature.is_nan() || temperature <= 0.0 {
        return best;
    }
    let largest = logits.get(best as usize).copied().map_or(0.0, f64::from);
    let weight = |logit: f32| {
        let weight = ((f64::from(logit) - largest) / temperature).exp();
        if weight.is_nan() { 0.0 } else { weight }
    };
    let total: f64 = logits.iter().copied().map(weight).sum();
    let mut left = rng.random::<f64>() * total;
    for (token, logit) in (0..).zip(logits) {
        left -= weight(*logit);
        if left < 0.0 {
            return token;
        }
    }
    // Rounding may leave a crumb after the last token.
    best
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::sample;

    #[test]
    fn temperature_zero_takes_the_first_maximum() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        assert_eq!(sample(&[0.0, 2.0, 1.0, 2.0], 0.0, &mut rng), 1);
        assert_eq!(sample(&[f32::NAN, -3.0, f32::NAN], 0.0, &mut rng), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        // softmax([0, ln 9] / 2) = [1/4, 3/4]
        let logits = [0.0, 9f32.ln()];
        let ones: u32 = (0..20_000).map(|_| sample(&logits, 2.0, &mut rng)).sum();
        let share = f64::from(ones) / 20_000.0;
        assert!((share - 0.75).abs() < 0.01, "{share}");
    }
}
