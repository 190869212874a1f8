use super::*;
use proptest::prelude::*;

fn isas() -> impl Iterator<Item = Isa> {
    Isa::available().into_iter()
}

fn encoded(parts: &[&[u8]]) -> Vec<u8> {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let mut all = isas().map(|isa| {
        let mut out = vec![0xA5; 2 * bytes + 1000];
        let len = encode(isa, parts, &mut out).expect("room");
        out.truncate(len);
        out
    });
    let reference = all.next().expect("the portable one");
    assert!(all.all(|other| other == reference), "the same bytes");
    reference
}

fn decoded(isa: Isa, bytes: &[u8], lens: &[usize]) -> Result<Vec<Vec<u8>>, RansError> {
    let mut parts: Vec<Vec<u8>> = lens.iter().map(|&len| vec![0xA5; len]).collect();
    let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(|part| &mut part[..]).collect();
    decode(isa, bytes, &mut slices).map(|()| parts)
}

/// Bytes that are mostly small.
fn skewed(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 59) as u8
    };
    (0..len).map(|_| next() & next() & next()).collect()
}

#[test]
fn parts_of_every_kind_come_back() {
    let noise: Vec<u8> = (0..10_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let long = skewed(20_001, 1);
    for parts in [
        vec![&long[..]],
        vec![&long[..77], &[7; 50], &noise[..3]],
        vec![&noise[..], &long[..], &[0; 5000], &[1]],
        vec![&[9]],
    ] {
        let lens: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        let bytes = encoded(&parts);
        for isa in isas() {
            let back = decoded(isa, &bytes, &lens).expect("what was encoded");
            assert!(back.iter().zip(&parts).all(|(a, b)| a == b), "{isa}");
        }
    }
}

#[test]
fn the_size_is_that_of_the_entropy() {
    let part = skewed(100_000, 3);
    let mut counts = [0_u32; 256];
    part.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    let entropy: f64 = counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| f64::from(count) * (100_000.0 / f64::from(count)).log2() / 8.0)
        .sum();
    let bytes = encoded(&[&part]).len() as f64;
    assert!(bytes < entropy * 1.002 + 400.0, "{bytes} of {entropy}");
    for isa in isas() {
        assert_eq!(
            encode(isa, &[&part], &mut [0; 1000]),
            None,
            "too little room"
        );
    }
}

#[test]
fn what_just_fits_is_written_alike_and_nothing_behind_it() {
    for len in [3000, 20_001] {
        let part = skewed(len, 5);
        let whole = encoded(&[&part]);
        for isa in isas() {
            let mut out = vec![0xA5; whole.len() + 64];
            for room in [whole.len(), whole.len() + 1, whole.len() + 63] {
                let found = encode(isa, &[&part], &mut out[..room]);
                assert_eq!(found, Some(whole.len()), "{isa} in {room}");
                assert_eq!(out[..whole.len()], whole, "{isa} in {room}");
            }
            assert_eq!(out.last(), Some(&0xA5), "{isa}");
            let short = &mut out[..whole.len() - 1];
            assert_eq!(encode(isa, &[&part], short), None, "{isa}");
        }
    }
}

#[test]
fn every_state_is_coded_as_by_division() {
    for frequency in (1..4096).step_by(13) {
        let mut table = [0; 256];
        (table[3], table[200]) = (4096 - frequency as u16, frequency as u16);
        let ranges = Ranges::new(&table, 12);
        let states = (0..200).map(|i| LOW + i);
        let states = states.chain((0..200).map(|i| u32::MAX - i * 999_983));
        for state in states.chain((1..200).map(|i| (frequency << 20) - i)) {
            let mut coded = state.max(LOW);
            let is_large = coded >> 20 >= frequency;
            let rest = if is_large { coded >> 16 } else { coded };
            let start = 4096 - frequency;
            let by_division = ((rest / frequency) << 12) + rest % frequency + start;
            ranges
                .encode(200, &mut coded, &mut [0; 2], 2)
                .expect("room");
            assert_eq!(coded, by_division, "{state} by {frequency}");
        }
    }
}

#[test]
fn damaged_and_cut_off_bytes_are_refused_alike() {
    for len in [200, 5000] {
        let part = skewed(len, 4);
        let bytes = encoded(&[&part]);
        for cut in (0..bytes.len()).step_by(1 + len / 500) {
            assert!(
                decoded(Isa::best(), &bytes[..cut], &[len]).is_err(),
                "{cut}"
            );
        }
        assert!(decoded(Isa::best(), &bytes, &[len - 1]).is_err());
        for bit in (0..8 * bytes.len()).step_by(1 + len / 300) {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let results: Vec<_> = isas().map(|isa| decoded(isa, &damaged, &[len])).collect();
            assert!(results.iter().all(|r| *r == results[0]), "bit {bit}");
            assert!(results[0].as_ref() != Ok(&vec![part.clone()]), "bit {bit}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_parts_come_back(
        first in prop::collection::vec(any::<u8>(), 1..3000),
        second in prop::collection::vec(0..5_u8, 1..6000),
    ) {
        let bytes = encoded(&[&first, &second]);
        for isa in isas() {
            let back = decoded(isa, &bytes, &[first.len(), second.len()]);
            prop_assert_eq!(back, Ok(vec![first.clone(), second.clone()]));
        }
    }

    #[test]
    fn any_bytes_are_refused_or_decoded_alike(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Some(first) = bytes.first_mut() {
            *first %= 2;
        }
        let results: Vec<_> = isas().map(|isa| decoded(isa, &bytes, &[100, 20])).collect();
        prop_assert!(results.iter().all(|r| *r == results[0]));
    }
}
