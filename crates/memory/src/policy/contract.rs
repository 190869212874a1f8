//! The contract of [`Policy`], run over every policy.

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

fn all() -> Vec<Box<dyn Policy>> {
    vec![
        Box::new(Fifo::default()),
        Box::new(Lru::default()),
        Box::new(Sieve::default()),
        Box::new(S3Fifo::default()),
        Box::new(CostModel::default()),
        Box::new(Belady::default()),
    ]
}

#[test]
fn names_are_distinct() {
    let names: HashSet<_> = all().iter().map(|p| p.name()).collect();
    assert_eq!(names.len(), all().len());
}

#[test]
fn an_empty_policy_offers_nothing() {
    for mut policy in all() {
        assert_eq!(policy.candidate(0), None, "{}", policy.name());
        policy.touch(1, &Facts::at(0));
        policy.remove(1, true);
        policy.defer(1);
        assert!(policy.is_empty(), "{}", policy.name());
    }
}

#[test]
fn deferring_reaches_every_block() {
    for mut policy in all() {
        for id in 0..50 {
            policy.insert(id, &Facts::at(id));
        }
        for id in 0..25 {
            policy.touch(id, &Facts::at(50 + id));
        }
        let mut offered = HashSet::new();
        for _ in 0..500 {
            let id = policy.candidate(100).unwrap();
            offered.insert(id);
            policy.defer(id);
        }
        assert!(
            offered.len() >= 25,
            "{}: {} offered",
            policy.name(),
            offered.len()
        );
        assert_eq!(policy.len(), 50);
    }
}

#[test]
fn what_is_used_all_the_time_survives_a_scan_except_under_fifo() {
    for mut policy in all() {
        let mut evicted_hot = false;
        for now in 0..4000u64 {
            // Id 7 is used at every step, the others never again.
            let facts = Facts {
                next_use: now + 1,
                ..Facts::at(now)
            };
            policy.insert(7, &facts);
            policy.insert(100 + now, &Facts::at(now));
            while policy.len() > 20 {
                let id = policy.candidate(now).unwrap();
                evicted_hot |= id == 7;
                policy.remove(id, true);
            }
        }
        assert_eq!(evicted_hot, policy.name() == "fifo", "{}", policy.name());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]

    /// Every policy against the naive set of held ids: the candidate is held and stable, the length is
    /// right, nothing is lost, and two runs of one trace agree.
    #[test]
    fn agrees_with_a_naive_set(ops in prop::collection::vec((0..6u8, 0..40u64, any::<bool>()), 1..400)) {
        for (mut policy, mut twin) in all().into_iter().zip(all()) {
            let mut held = HashSet::new();
            for (now, &(op, id, flag)) in ops.iter().enumerate() {
                let now = now as u64;
                let facts = Facts { is_partial: flag, next_use: now + id, ..Facts::at(now) };
                match op {
                    0 | 1 => {
                        policy.insert(id, &facts);
                        twin.insert(id, &facts);
                        held.insert(id);
                    }
                    2 => {
                        policy.touch(id, &facts);
                        twin.touch(id, &facts);
                    }
                    3 => {
                        policy.remove(id, flag);
                        twin.remove(id, flag);
                        held.remove(&id);
                    }
                    _ => {
                        let candidate = policy.candidate(now);
                        prop_assert_eq!(candidate, policy.candidate(now));
                        prop_assert_eq!(candidate, twin.candidate(now));
                        prop_assert_eq!(candidate.is_some(), !held.is_empty());
                        if let Some(id) = candidate {
                            prop_assert!(held.contains(&id), "{} offers a stranger", policy.name());
                            if op == 4 {
                                policy.defer(id);
                                twin.defer(id);
                            } else {
                                policy.remove(id, true);
                                twin.remove(id, true);
                                held.remove(&id);
                            }
                        }
                    }
                }
                prop_assert_eq!(policy.len(), held.len());
            }
            while let Some(id) = policy.candidate(1000) {
                prop_assert!(held.remove(&id));
                policy.remove(id, true);
            }
            prop_assert!(held.is_empty() && policy.is_empty());
        }
    }
}
