use super::*;
use proptest::prelude::*;

#[test]
fn a_charge_is_given_back_when_dropped() {
    let budget = Budget::new(100);
    let charge = budget.try_charge(ChargeKind::Kv, 60).unwrap();
    assert_eq!(budget.charged(), 60);
    assert_eq!(budget.snapshot().of_kind(ChargeKind::Kv), 60);
    drop(charge);
    assert_eq!(budget.charged(), 0);
    assert_eq!(budget.snapshot().peak_charged, 60);
}

#[test]
fn a_refusal_names_all_figures_and_charges_nothing() {
    let budget = Budget::new(100);
    let _held = budget.try_charge(ChargeKind::Weights, 70).unwrap();
    let refusal = budget.try_charge(ChargeKind::Kv, 31).unwrap_err();
    assert_eq!(
        (refusal.needed, refusal.available, refusal.limit),
        (31, 30, 100)
    );
    assert_eq!(refusal.kind, ChargeKind::Kv);
    assert_eq!(refusal.refused_by, RefusedBy::Budget);
    assert_eq!(budget.charged(), 70);
    assert_eq!(budget.snapshot().refusals, 1);
}

#[test]
fn a_shrink_grants_nothing_until_the_excess_is_back() {
    let budget = Budget::new(100);
    let mut held = budget.try_charge(ChargeKind::Kv, 80).unwrap();
    assert_eq!(budget.set_limit(50), 30);
    assert_eq!(budget.fill(), Fill::Over);
    assert!(budget.try_charge(ChargeKind::Io, 1).is_err());
    assert!(held.resize(81).is_err());
    assert_eq!(held.bytes(), 80);
    assert!(!budget.wait_within(Duration::from_millis(1)));
    held.resize(20).unwrap();
    assert!(budget.wait_within(Duration::ZERO));
    assert_eq!(budget.available(), 30);
}

#[test]
fn a_waiter_wakes_when_a_shrink_ends() {
    let budget = Budget::new(100);
    let held = budget.try_charge(ChargeKind::Kv, 80).unwrap();
    budget.set_limit(10);
    let waiter = {
        let budget = budget.clone();
        std::thread::spawn(move || budget.wait_within(Duration::from_secs(30)))
    };
    drop(held);
    assert!(waiter.join().unwrap());
}

#[test]
fn the_soft_mark_follows_the_limit() {
    let budget = Budget::new(1000);
    let _held = budget.try_charge(ChargeKind::Kv, 901).unwrap();
    assert_eq!(budget.fill(), Fill::AboveSoft);
    budget.set_limit(2000);
    assert_eq!(budget.soft_limit(), 1800);
    assert_eq!(budget.fill(), Fill::Normal);
    budget.set_limit(u64::MAX);
    assert!(budget.soft_limit() > u64::MAX / 2);
}

#[test]
fn split_and_merge_move_bytes_without_the_budget() {
    let budget = Budget::new(100);
    let mut reservation = budget.try_charge(ChargeKind::Kv, 100).unwrap();
    budget.set_limit(0);
    let part = reservation.split(40).unwrap();
    assert!(reservation.split(61).is_none());
    assert_eq!((reservation.bytes(), part.bytes()), (60, 40));
    reservation.merge(part).unwrap();
    assert_eq!((reservation.bytes(), budget.charged()), (100, 100));
    let stranger = Budget::new(10).try_charge(ChargeKind::Kv, 5).unwrap();
    assert_eq!(reservation.merge(stranger).unwrap_err().bytes(), 5);
}

#[test]
fn threads_never_exceed_the_limit() {
    let budget = Budget::new(1000);
    std::thread::scope(|scope| {
        for t in 0..4u64 {
            let budget = &budget;
            scope.spawn(move || {
                let mut held = Vec::new();
                for i in 0..if cfg!(miri) { 50 } else { 5000u64 } {
                    if let Ok(charge) = budget.try_charge(ChargeKind::Kv, (i * 7 + t) % 300) {
                        held.push(charge);
                    }
                    assert!(budget.charged() <= 1000);
                    if i % 3 == 0 {
                        held.clear();
                    }
                }
            });
        }
    });
    assert_eq!(budget.charged(), 0);
    budget.check_conservation().unwrap();
}

#[derive(Clone, Debug)]
enum Op {
    Charge(usize, u64),
    Resize(usize, u64),
    Drop(usize),
    Split(usize, u64),
    SetLimit(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..5usize, 0..400u64).prop_map(|(k, b)| Op::Charge(k, b)),
        3 => (any::<usize>(), 0..400u64).prop_map(|(i, b)| Op::Resize(i, b)),
        2 => any::<usize>().prop_map(Op::Drop),
        1 => (any::<usize>(), 0..400u64).prop_map(|(i, b)| Op::Split(i, b)),
        1 => (0..2000u64).prop_map(Op::SetLimit),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, failure_persistence: None, ..Default::default() })]

    /// The budget against plain integers: a list of (kind, bytes) and a limit.
    #[test]
    fn agrees_with_a_naive_ledger(ops in prop::collection::vec(op(), 1..80)) {
        let budget = Budget::new(1000);
        let mut limit = 1000u64;
        let mut held: Vec<Charge> = Vec::new();
        let mut naive: Vec<(usize, u64)> = Vec::new();
        for op in ops {
            let total: u64 = naive.iter().map(|n| n.1).sum();
            match op {
                Op::Charge(kind, bytes) => {
                    let got = budget.try_charge(ChargeKind::ALL[kind], bytes);
                    prop_assert_eq!(got.is_ok(), bytes <= limit.saturating_sub(total));
                    if let Ok(charge) = got {
                        held.push(charge);
                        naive.push((kind, bytes));
                    }
                }
                Op::Resize(i, needed) if !held.is_empty() => {
                    let i = i % held.len();
                    let old = naive[i].1;
                    match held[i].resize(needed) {
                        Ok(resize) => {
                            // C' = max(0, C + M − max(C, M)), in the form it was first written.
                            let kept = (old + needed).saturating_sub(old.max(needed));
                            prop_assert_eq!(resize.kept, kept);
                            prop_assert_eq!(resize.kept + resize.acquired, needed);
                            prop_assert_eq!(resize.kept + resize.released, old);
                            naive[i].1 = needed;
                        }
                        Err(_) => prop_assert!(needed - old > limit.saturating_sub(total)),
                    }
                }
                Op::Drop(i) if !held.is_empty() => {
                    let i = i % held.len();
                    drop(held.swap_remove(i));
                    naive.swap_remove(i);
                }
                Op::Split(i, bytes) if !held.is_empty() => {
                    let i = i % held.len();
                    if let Some(part) = held[i].split(bytes) {
                        naive[i].1 -= bytes;
                        naive.push((naive[i].0, bytes));
                        held.push(part);
                    } else {
                        prop_assert!(naive[i].1 < bytes);
                    }
                }
                Op::SetLimit(bytes) => {
                    limit = bytes;
                    budget.set_limit(bytes);
                }
                _ => {}
            }
            budget.check_conservation().unwrap();
            let total: u64 = naive.iter().map(|n| n.1).sum();
            prop_assert_eq!(budget.charged(), total);
            prop_assert_eq!(budget.excess(), total.saturating_sub(limit));
            for (index, kind) in ChargeKind::ALL.into_iter().enumerate() {
                let sum: u64 = naive.iter().filter(|n| n.0 == index).map(|n| n.1).sum();
                prop_assert_eq!(budget.snapshot().of_kind(kind), sum);
            }
        }
        drop(held);
        prop_assert_eq!(budget.charged(), 0);
    }
}
