//! From counts to what is to be expected: survival analysis of the stays of blocks.
//!
//! A hazard is uses per unit of time at an age, among the stays that reached it.

use super::{
    AGES, CLASSES, NEW_CLASSES, TURN_CLASSES, USE_CLASSES, age_floor, age_width, features_of,
};

/// Weight of what is expected of a class in its own hazard, in uses.
const PRIOR_USES: f32 = 20.0;
/// Rounds in which the factors are fitted; they hardly change after three.
const ROUNDS: usize = 4;

/// Uses and time at risk of one class at each age.
pub(super) struct Exposure {
    uses: Vec<f32>,
    risk: Vec<f32>,
}

impl Exposure {
    /// From stays that ended by a use or else, by age. `alive` are the stays that have not ended yet: without
    /// them the model would only know of ages that somebody came back from. `late` are the ages at which some of both
    /// came in: before that they were not at risk here (left truncation: Klein and Moeschberger, "Survival
    /// Analysis", 2003), and taken for such they would make young blocks look dead.
    pub(super) fn new((uses, ends): (&[f32], &[f32]), alive: &[f32], late: &[f32]) -> Self {
        let mut risk = vec![0.0; AGES];
        let mut older = 0.0f32;
        for age in (0..AGES).rev() {
            let here = uses[age] + ends[age] + alive[age];
            let there = older + 0.5 * (here - late[age]);
            risk[age] = age_width(age) * there.max(0.0);
            older += here - late[age];
        }
        Self {
            uses: uses.to_vec(),
            risk,
        }
    }
}

/// The oldest age that a stay reached.
pub(super) fn oldest(classes: &[Exposure]) -> usize {
    (0..AGES)
        .rev()
        .find(|&age| classes.iter().any(|class| class.risk[age] > 0.0))
        .unwrap_or(0)
}

/// The hazard of all classes together at each age.
pub(super) fn pooled(classes: &[Exposure]) -> Vec<f32> {
    let at = |age: usize| {
        let uses: f32 = classes.iter().map(|class| class.uses[age]).sum();
        let risk: f32 = classes.iter().map(|class| class.risk[age]).sum();
        // The constants keep an age that nobody reached from having no hazard at all.
        (uses + 1e-3) / (risk + age_floor(age) as f32 + 1.0)
    };
    (0..AGES).map(at).collect()
}

/// How many times `pooled` the hazard of each class is, as a product of one factor for each of its features
/// (proportional hazards: Cox, "Regression models and life-tables", 1972), fitted in turns. What a class of
/// its own was seen too little to tell, its features tell together.
pub(super) fn factors(classes: &[Exposure], pooled: &[f32]) -> Vec<f32> {
    // (uses, uses that `pooled` promises) of each class.
    let of_class = |class: &Exposure| -> (f32, f32) {
        let promised = class.risk.iter().zip(pooled).map(|(risk, p)| risk * p);
        (class.uses.iter().sum(), promised.sum())
    };
    let counts: Vec<(f32, f32)> = classes.iter().map(of_class).collect();
    let mut factors = [
        vec![1.0f32; USE_CLASSES],
        vec![1.0; NEW_CLASSES],
        vec![1.0; TURN_CLASSES],
        vec![1.0; 2],
    ];
    let product = |factors: &[Vec<f32>; 4], class: usize| -> f32 {
        let values = features_of(class);
        factors
            .iter()
            .zip(values)
            .map(|(of, value)| of[value])
            .product()
    };
    for _ in 0..ROUNDS {
        for feature in 0..factors.len() {
            let mut seen = vec![PRIOR_USES; factors[feature].len()];
            let mut promised = seen.clone();
            for (class, &(uses, by_pooled)) in counts.iter().enumerate() {
                let value = features_of(class)[feature];
                seen[value] += uses;
                promised[value] += by_pooled * product(&factors, class) / factors[feature][value];
            }
            let fitted = seen.iter().zip(&promised).map(|(s, p)| s / p);
            factors[feature] = fitted.collect();
        }
    }
    (0..CLASSES).map(|class| product(&factors, class)).collect()
}

/// The hazard of one class at each age, drawn towards `factor` times `pooled` where it was seen little.
pub(super) fn hazards(class: &Exposure, pooled: &[f32], factor: f32) -> Vec<f32> {
    let draw = |(age, &common): (usize, &f32)| {
        (class.uses[age] + PRIOR_USES) / (class.risk[age] + PRIOR_USES / (common * factor))
    };
    pooled.iter().enumerate().map(draw).collect()
}

/// From the hazards, for each age: the greatest uses per unit of time that keeping the block until some
/// later age, or its use, promises (the Gittins index of the stay).
pub(super) fn densities(hazards: &[f32], oldest: usize, out: &mut [f32]) {
    // For each age: the share that is used within it, and the mean time spent in it, of those who come into it.
    let ages = hazards.iter().enumerate().map(|(age, hazard)| {
        let used = -(-hazard * age_width(age)).exp_m1();
        (used, used / hazard)
    });
    let ages: Vec<(f32, f32)> = ages.collect();
    for (age, out) in out.iter_mut().enumerate() {
        let (mut survival, mut uses, mut time, mut best) = (1.0f32, 0.0f32, 0.0f32, 0.0f32);
        let end = AGES.min(oldest + 2).max(age + 1);
        for (used, spent) in &ages[age..end] {
            uses += survival * used;
            time += survival * spent;
            survival *= 1.0 - used;
            best = best.max(uses / time);
            if survival < 1e-3 {
                break;
            }
        }
        *out = best;
    }
}

#[cfg(test)]
mod tests {
    use super::super::class_from;
    use super::*;

    #[test]
    fn who_came_late_was_not_at_risk_before() {
        let at = |places: &[(usize, f32)]| {
            let mut ages = vec![0.0; AGES];
            places.iter().for_each(|&(age, n)| ages[age] = n);
            ages
        };
        // Six stays end at age 8, four of them came at age 5.
        let (uses, late, none) = (at(&[(8, 6.0)]), at(&[(5, 4.0)]), at(&[]));
        let exposure = Exposure::new((&uses, &none), &none, &late);
        let there = |age: usize| exposure.risk[age] / age_width(age);
        assert_eq!([4, 5, 7, 8, 9].map(there), [2.0, 4.0, 6.0, 3.0, 0.0]);
    }

    #[test]
    fn features_that_make_uses_likelier_are_found_apart() {
        for class in 0..CLASSES {
            assert_eq!(class_from(features_of(class)), class);
        }
        // Few new tokens: three times as many uses; partial: a tenth. Each class alone was seen little.
        let classes: Vec<Exposure> = (0..CLASSES)
            .map(|class| {
                let [_, new, _, partial] = features_of(class);
                let likelier =
                    if new == 0 { 3.0 } else { 1.0 } * if partial == 1 { 0.1 } else { 1.0 };
                let (mut uses, mut risk) = (vec![0.0; AGES], vec![0.0; AGES]);
                (uses[40], risk[40]) = (10.0 * likelier, 1e4);
                Exposure { uses, risk }
            })
            .collect();
        let factors = factors(&classes, &pooled(&classes));
        let ratio = |a: [usize; 4], b: [usize; 4]| factors[class_from(a)] / factors[class_from(b)];
        let by_new = ratio([2, 0, 1, 0], [2, 3, 1, 0]);
        let by_partial = ratio([2, 3, 1, 1], [2, 3, 1, 0]);
        assert!((2.7..3.1).contains(&by_new), "{by_new}");
        assert!((0.09..0.15).contains(&by_partial), "{by_partial}");
    }
}
