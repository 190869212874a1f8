use super::*;
use proptest::prelude::*;

fn isas() -> impl Iterator<Item = Isa> {
    Isa::available().into_iter()
}

fn encoded(rows: &[Row], chosen: &[u8]) -> Vec<u8> {
    let mut all = isas().map(|isa| {
        let mut out = vec![0xA5; HEAD_BYTES + LANES * (rows.len() + 1)];
        let len = encode(isa, rows, chosen, &mut out).expect("room");
        out.truncate(len);
        out
    });
    let reference = all.next().expect("the portable one");
    assert!(all.all(|other| other == reference), "the same bytes");
    reference
}

fn decoded(isa: Isa, bytes: &[u8], chosen: &[u8]) -> Result<Vec<Row>, RansError> {
    let mut rows = vec![[0xA5; LANES]; chosen.len()];
    let mut decoder = Decoder::new(isa, bytes)?;
    // In two goes, as of two tiles.
    let (first, second) = rows.split_at_mut(chosen.len() / 2);
    decoder.decode(&chosen[..first.len()], first)?;
    decoder.decode(&chosen[first.len()..], second)?;
    decoder.finish().map(|()| rows)
}

fn rows(count: usize, spread: u32) -> Vec<Row> {
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as u32 % spread
    };
    let mut row = || std::array::from_fn(|_| ((next() + next() + next()) / 3 % 16) as u8);
    (0..count).map(|_| row()).collect()
}

#[test]
fn rows_come_back_by_every_model() {
    let rows = rows(2 * MODELS, 16);
    let chosen: Vec<u8> = (0..rows.len()).map(|i| (i % MODELS) as u8).collect();
    let bytes = encoded(&rows, &chosen);
    for isa in isas() {
        assert_eq!(decoded(isa, &bytes, &chosen).as_ref(), Ok(&rows), "{isa}");
    }
}

#[test]
fn every_state_is_coded_as_by_division() {
    let models = models();
    for number in 0..MODELS as u8 {
        let model = models.get(number);
        for symbol in 0..SYMBOLS {
            let frequency = u32::from(model.frequencies[symbol]);
            for state in (u32::from(LOW)..1 << 16).step_by(1 + number as usize) {
                let mut states = [state as u16; LANES];
                let row = [symbol as u8; LANES];
                encode_row(&row, model, &mut states, &mut [0; LANES]);
                let is_large = state >> 8 >= frequency;
                let rest = if is_large { state >> 8 } else { state };
                let start = u32::from(model.starts[symbol]);
                let coded = rest / frequency * 256 + rest % frequency + start;
                assert!(
                    states.iter().all(|&s| u32::from(s) == coded),
                    "{state} by {number}"
                );
            }
        }
    }
}

#[test]
fn the_best_model_costs_what_is_written() {
    let rows = rows(1000, 12);
    let mut counts = [0; SYMBOLS];
    let chosen: Vec<(u8, u16)> = rows
        .iter()
        .map(|row| {
            counts.fill(0);
            row.iter().for_each(|&s| counts[usize::from(s)] += 1);
            best_model(&counts)
        })
        .collect();
    let cost: u32 = chosen.iter().map(|&(_, cost)| u32::from(cost)).sum();
    let models: Vec<u8> = chosen.iter().map(|&(model, _)| model).collect();
    let bits = 8.0 * (encoded(&rows, &models).len() - HEAD_BYTES) as f64;
    let expected = f64::from(cost) / 64.0;
    // 0.005 bits a symbol for the coarse states.
    assert!(
        (expected - 300.0..expected * 1.004).contains(&bits),
        "{bits} of {expected}"
    );
}

#[test]
fn too_little_room_and_bad_models_are_refused() {
    let rows = rows(100, 16);
    let chosen = vec![0; 100];
    for isa in isas() {
        assert_eq!(encode(isa, &rows, &chosen, &mut [0; 500]), None, "{isa}");
        assert_eq!(encode(isa, &rows, &chosen, &mut [0; 10]), None, "{isa}");
    }
    let bytes = encoded(&rows, &chosen);
    let unknown = vec![MODELS as u8; 100];
    assert!(decoded(Isa::best(), &bytes, &unknown).is_err());
    for cut in 0..bytes.len() {
        assert!(
            decoded(Isa::best(), &bytes[..cut], &chosen).is_err(),
            "{cut}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_stream_is_refused_or_decoded_alike(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        chosen in prop::collection::vec(0..MODELS as u8, 0..12),
    ) {
        let results: Vec<_> = isas().map(|isa| decoded(isa, &bytes, &chosen)).collect();
        prop_assert!(results.iter().all(|r| *r == results[0]));
    }

    #[test]
    fn any_rows_come_back(
        rows in prop::collection::vec(prop::array::uniform32(0..16_u8), 0..40),
        model in 0..MODELS as u8,
    ) {
        let chosen: Vec<u8> = (0..rows.len()).map(|i| (model + i as u8) % MODELS as u8).collect();
        let bytes = encoded(&rows, &chosen);
        for isa in isas() {
            let back = decoded(isa, &bytes, &chosen);
            prop_assert_eq!(back, Ok(rows.clone()));
        }
    }
}
