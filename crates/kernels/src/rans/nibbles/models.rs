//! The models that rows are coded by.

use super::{LANES, LOW, SCALE_BITS, SYMBOLS};

const SCALE: u32 = 1 << SCALE_BITS;
/// One, in numbers of 32 bits after the point.
const ONE: u64 = 1 << 32;
/// Models that a row may be coded by.
pub const MODELS: usize = SHAPES.len();
/// Costs of one symbol, by model, in whole vectors.
pub(super) type Costs = [u16; MODELS.next_multiple_of(32)];

/// What a model looks like: the weights exp(-(s - mean)² / 2 deviation²) of the symbols `s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Twice the mean.
    mean_2: i32,
    /// exp(-1 / 8 deviation²), 32 bits after the point.
    fall: u32,
}

/// Deviations, as [`Shape::fall`]: 0.35, 0.5, 0.7, 1, 1.4, 2, 2.8, 4, and for symbols of equal weight 1000.
const FALLS: [u32; 9] = [
    1_548_111_464,
    2_605_029_347,
    3_327_901_417,
    3_790_295_335,
    4_029_605_300,
    4_162_825_044,
    4_227_031_879,
    4_261_543_595,
    4_294_966_759,
];

/// The means, doubled, of each deviation: first, last, step.
const MEANS: [(i32, i32, i32); 9] = [
    (12, 20, 1),
    (11, 21, 1),
    (10, 22, 1),
    (8, 23, 1),
    (8, 23, 1),
    (7, 24, 1),
    (7, 23, 2),
    (9, 21, 3),
    (15, 15, 1),
];

const fn count_shapes() -> usize {
    let (mut count, mut i) = (0, 0);
    while i < MEANS.len() {
        count += ((MEANS[i].1 - MEANS[i].0) / MEANS[i].2 + 1) as usize;
        i += 1;
    }
    count
}

pub(super) const SHAPES: [Shape; count_shapes()] = shapes();

const fn shapes() -> [Shape; count_shapes()] {
    let mut shapes = [Shape { mean_2: 0, fall: 0 }; count_shapes()];
    let (mut at, mut i) = (0, 0);
    while i < MEANS.len() {
        let mut mean_2 = MEANS[i].0;
        while mean_2 <= MEANS[i].1 {
            shapes[at] = Shape {
                mean_2,
                fall: FALLS[i],
            };
            at += 1;
            mean_2 += MEANS[i].2;
        }
        i += 1;
    }
    shapes
}

impl Shape {
    /// Frequencies that sum to [`SCALE`], from 1 to 255 each. In integers, so that they are the same everywhere.
    fn frequencies(self) -> [u8; SYMBOLS] {
        let weight = |symbol: usize| {
            let distance = (2 * symbol as i32 - self.mean_2).unsigned_abs();
            power(u64::from(self.fall), distance * distance)
        };
        let weights: [u64; SYMBOLS] = std::array::from_fn(weight);
        let sum: u64 = weights.iter().sum::<u64>().max(1);
        // One is given to each symbol, the rest by weight.
        let shared = u64::from(SCALE) - SYMBOLS as u64;
        let mut frequencies = weights.map(|w| 1 + (w * shared / sum) as u32);
        let given: u32 = frequencies.iter().sum();
        let largest = (0..SYMBOLS)
            .max_by_key(|&s| (frequencies[s], s))
            .unwrap_or(0);
        frequencies[largest] += SCALE - given;
        frequencies.map(|f| f as u8)
    }
}

/// `base` to the power of `exponent`, 32 bits after the point.
fn power(base: u64, exponent: u32) -> u64 {
    let (mut result, mut square, mut rest) = (ONE, base, exponent);
    while rest > 0 {
        if rest % 2 == 1 {
            result = (result * square) >> 32;
        }
        square = (square * square) >> 32;
        rest /= 2;
    }
    result
}

/// One model.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Model {
    /// The symbol of each slot.
    pub(super) slots: [u8; SCALE as usize],
    /// By slot the largest high byte of a state that needs a refill once its symbol is taken; zero, which no state has, if
    /// none does.
    pub(super) small: [u8; SCALE as usize],
    pub(super) frequencies: [u8; SYMBOLS],
    /// Sums of the frequencies before.
    pub(super) starts: [u8; SYMBOLS],
    /// The low and high bytes of 2^16 / frequency, rounded down, or of the largest number below that.
    pub(super) reciprocals: [[u8; SYMBOLS]; 2],
}

impl Model {
    fn new(frequencies: [u8; SYMBOLS]) -> Self {
        let mut model = Self {
            slots: [0; SCALE as usize],
            small: [0; SCALE as usize],
            frequencies,
            starts: [0; SYMBOLS],
            reciprocals: [0, 1].map(|byte| {
                let reciprocal = |f: u8| (1_u32 << 16) / u32::from(f).max(1);
                frequencies.map(|f| reciprocal(f).min(0xFFFF).to_le_bytes()[byte])
            }),
        };
        let mut start = 0;
        for (symbol, &frequency) in frequencies.iter().enumerate() {
            model.starts[symbol] = start as u8;
            let end = start + usize::from(frequency);
            model.slots[start..end].fill(symbol as u8);
            for (rest, small) in model.small[start..end].iter_mut().enumerate() {
                // frequency * high + rest < LOW
                *small = ((usize::from(LOW - 1) - rest) / usize::from(frequency)) as u8;
            }
            start = end;
        }
        model
    }
}

/// All models, and what each symbol costs by each.
pub(super) struct Models {
    models: Vec<Model>,
    /// In sixty-fourths of a bit.
    pub(super) costs: [Costs; SYMBOLS],
}

impl Models {
    pub(super) fn new(shapes: &[Shape; MODELS]) -> Self {
        let models: Vec<Model> = shapes
            .iter()
            .map(|shape| Model::new(shape.frequencies()))
            .collect();
        // What fills up the last vector costs more than any model.
        let mut costs = [[1000; MODELS.next_multiple_of(32)]; SYMBOLS];
        for (number, model) in models.iter().enumerate() {
            for (symbol, &frequency) in model.frequencies.iter().enumerate() {
                let bits = f64::from(SCALE_BITS) - f64::from(frequency).log2();
                // At most 512: those of a row's symbols together fit 16 bits.
                costs[symbol][number] = (64.0 * bits).round() as u16;
            }
        }
        Self { models, costs }
    }

    /// # Panics
    /// If there is no such model.
    #[inline(always)]
    pub(super) fn get(&self, number: u8) -> &Model {
        &self.models[usize::from(number)]
    }

    /// The model that costs least, the first of several, and what it costs, in sixty-fourths of a bit.
    pub(super) fn best(&self, counts: &[u8; SYMBOLS]) -> (u8, u16) {
        debug_assert!(counts.iter().map(|&c| usize::from(c)).sum::<usize>() <= LANES);
        let mut sums: Costs = [0; MODELS.next_multiple_of(32)];
        for (&count, costs) in counts.iter().zip(&self.costs) {
            for (sum, &cost) in sums.iter_mut().zip(costs) {
                // Never wraps: see `new`. Checked sums would be summed one by one.
                *sum = sum.wrapping_add(u16::from(count).wrapping_mul(cost));
            }
        }
        let least = sums.iter().fold(u16::MAX, |least, &sum| least.min(sum));
        let best = sums.iter().position(|&sum| sum == least).unwrap_or(0);
        (best as u8, least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn falls_are_of_the_deviations_that_they_stand_for() {
        let deviations = [0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 1000.0];
        for (deviation, fall) in deviations.into_iter().zip(FALLS) {
            let exact = (-1.0 / (8.0_f64 * deviation * deviation)).exp() * ONE as f64;
            assert!(
                (exact - f64::from(fall)).abs() < 1.0,
                "{deviation}: {exact}"
            );
        }
    }

    #[test]
    fn frequencies_sum_to_all_slots_and_none_is_zero() {
        for shape in SHAPES {
            let frequencies = shape.frequencies();
            let sum: u32 = frequencies.iter().map(|&f| u32::from(f)).sum();
            assert_eq!(sum, SCALE, "{shape:?}");
            assert!(frequencies.iter().all(|&f| f > 0), "{shape:?}");
        }
    }

    #[test]
    fn what_is_small_is_told_by_slot_and_high_byte() {
        for shape in SHAPES {
            let model = Model::new(shape.frequencies());
            for slot in 0..SCALE {
                let symbol = usize::from(model.slots[slot as usize]);
                let rest = slot - u32::from(model.starts[symbol]);
                for high in 1..=255 {
                    let next = u32::from(model.frequencies[symbol]) * high + rest;
                    let is_small = high <= u32::from(model.small[slot as usize]);
                    assert_eq!(is_small, next < u32::from(LOW), "{high}, {slot}");
                }
            }
        }
    }
}
