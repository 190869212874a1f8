//! Which model codes a row, and whether as it is or as differences.

use super::{DIFFERENCES, MIDDLE};
use crate::Isa;
use crate::rans::nibbles::{self, Row, SYMBOLS};

#[cfg(target_arch = "x86_64")]
mod avx2;

/// Makes differences of the rows that take fewer bits so; the models of all, marked where they are differences. The same
/// on every instruction set.
pub(super) fn choose(isa: Isa, rows: &mut [Row], models: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if isa.includes_avx2() {
        // SAFETY: the machine has AVX2.
        return unsafe { avx2::choose(rows, models) };
    }
    let _ = isa;
    for (row, model) in rows.iter_mut().zip(models) {
        *model = choose_one(row);
    }
}

/// Makes a row of differences if that takes fewer bits; its model, and the mark.
fn choose_one(row: &mut Row) -> u8 {
    let mut differences = *row;
    let mut before = MIDDLE;
    for code in &mut differences {
        (*code, before) = (code.wrapping_sub(before).wrapping_add(MIDDLE) % 16, *code);
    }
    let (plain, plain_cost) = nibbles::best_model(&count(row));
    let (changing, changing_cost) = nibbles::best_model(&count(&differences));
    if changing_cost < plain_cost {
        *row = differences;
        changing | DIFFERENCES
    } else {
        plain
    }
}

fn count(row: &Row) -> [u8; SYMBOLS] {
    // In the bytes of two numbers: counters in memory would wait for each other.
    let (mut low, mut high) = (0_u64, 0_u64);
    for &code in row {
        let one = 1_u64 << (8 * u32::from(code % 8));
        let is_high = u64::from(code / 8).wrapping_neg();
        low += one & !is_high;
        high += one & is_high;
    }
    let mut counts = [0; SYMBOLS];
    counts[..8].copy_from_slice(&low.to_le_bytes());
    counts[8..].copy_from_slice(&high.to_le_bytes());
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

        #[test]
        fn every_instruction_set_chooses_the_same(
            mut rows in prop::collection::vec(prop::array::uniform32(0..16_u8), 1..20),
            (least, most) in (0..16_u8, 0..16_u8),
            is_slow in any::<bool>(),
        ) {
            for row in &mut rows {
                let mut before = MIDDLE;
                for code in row {
                    // Within bounds, or little by little.
                    *code = match is_slow {
                        true => (before + *code % 3).saturating_sub(1).min(15),
                        false => (*code).max(least.min(most)).min(least.max(most)),
                    };
                    before = *code;
                }
            }
            let chosen = |isa| {
                let (mut rows, mut models) = (rows.clone(), vec![0; rows.len()]);
                choose(isa, &mut rows, &mut models);
                (rows, models)
            };
            let reference = chosen(Isa::Scalar);
            for isa in Isa::available() {
                prop_assert_eq!(&chosen(isa), &reference);
            }
        }
    }
}
