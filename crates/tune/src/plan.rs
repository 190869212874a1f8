//! Which examples make which step: the same after a restart.

/// SplitMix64 (Steele, Lea and Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 up to, but not, 1.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = (self.uniform() * (last + 1) as f64) as usize;
            items.swap(last, other.min(last));
        }
    }
}

/// Examples whose lengths are sorted together, so that rows are filled up little.
const SORTED_TOGETHER: usize = 256;

/// The steps of an epoch, as indices of examples of these lengths: as many in each as, filled up to the longest, make at
/// most `batch_tokens`; at least one.
pub(crate) fn steps(
    lengths: &[usize],
    batch_tokens: usize,
    seed: u64,
    epoch: usize,
) -> Vec<Vec<usize>> {
    let mut random = Random::new(seed ^ (epoch as u64 + 1).wrapping_mul(0xD1B5_4A32_D192_ED03));
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    random.shuffle(&mut order);
    let mut steps: Vec<Vec<usize>> = Vec::new();
    for some in order.chunks_mut(SORTED_TOGETHER) {
        some.sort_by_key(|&example| lengths[example]);
        let mut step: Vec<usize> = Vec::new();
        for &example in &*some {
            if !step.is_empty() && (step.len() + 1) * lengths[example] > batch_tokens {
                steps.push(std::mem::take(&mut step));
            }
            step.push(example);
        }
        steps.push(step);
    }
    random.shuffle(&mut steps);
    steps
}

/// The share of the learning rate at a step: rising over the first twentieth, then falling as half a cosine to nothing.
pub(crate) fn rate_share(step: usize, steps: usize) -> f64 {
    let warm = (steps / 20).max(1);
    if step < warm {
        return (step + 1) as f64 / warm as f64;
    }
    let done = (step - warm) as f64 / (steps - warm).max(1) as f64;
    0.5 * (1.0 + (std::f64::consts::PI * done).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_in_one_step_and_steps_have_room() {
        let lengths: Vec<usize> = (0..1000).map(|i| 1 + i * 7919 % 90).collect();
        let steps = steps(&lengths, 256, 7, 2);
        let mut seen: Vec<usize> = steps.iter().flatten().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
        for step in &steps {
            let longest = step.iter().map(|&i| lengths[i]).max().unwrap();
            assert!(longest * step.len() <= 256, "{step:?}");
        }
        assert_eq!(steps, super::steps(&lengths, 256, 7, 2));
        assert_ne!(steps, super::steps(&lengths, 256, 7, 3));
    }

    #[test]
    fn one_example_longer_than_a_step_has_one_of_its_own() {
        assert_eq!(steps(&[300], 256, 0, 0), [[0]]);
        assert!(steps(&[], 256, 0, 0).is_empty());
    }

    #[test]
    fn rates_rise_then_fall_to_nothing() {
        assert_eq!(rate_share(0, 100), 0.2);
        assert_eq!(rate_share(4, 100), 1.0);
        assert!(rate_share(99, 100) < 0.001 && rate_share(50, 100) > 0.4);
        assert!(rate_share(0, 1) > 0.9);
    }
}
