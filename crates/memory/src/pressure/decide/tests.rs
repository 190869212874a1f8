use super::super::{CgroupLevel, Psi};
use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A container in which we and others hold memory; we follow the target at once.
struct World {
    governed: Governed,
    limit: u64,
    others: u64,
    operator_limit: u64,
    stalled_us: u64,
    events: u64,
    now_ms: u64,
    /// (time, target, reason) of every change.
    changes: Vec<(u64, u64, Reason)>,
}

impl World {
    fn new(limit: u64, operator_limit: u64) -> Self {
        Self {
            governed: Governed::new(Config::default(), operator_limit),
            limit,
            others: 0,
            operator_limit,
            stalled_us: 0,
            events: 0,
            now_ms: 0,
            changes: Vec::new(),
        }
    }

    fn step(&mut self, ms: u64) -> Decision {
        self.now_ms += ms;
        let held = self.governed.target();
        let snapshot = Snapshot {
            total: Some(64 * GIB),
            available: Some(60 * GIB),
            cgroups: vec![CgroupLevel {
                max: Some(self.limit),
                current: held + self.others,
                high_events: self.events,
                ..CgroupLevel::default()
            }],
            psi: Some(Psi {
                some_total_us: self.stalled_us,
                ..Psi::default()
            }),
        };
        let own = Own {
            anonymous: held,
            operator_limit: self.operator_limit,
        };
        let decision = self.governed.decide(&snapshot, own, self.now_ms);
        if decision.target != held {
            self.changes
                .push((self.now_ms, decision.target, decision.reason));
        }
        decision
    }

    fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step(500);
        }
    }
}

#[test]
fn nothing_happens_when_all_is_well() {
    let mut world = World::new(8 * GIB, 4 * GIB);
    world.run(1000);
    assert_eq!(world.changes, []);
}

#[test]
fn another_process_takes_memory_and_gives_it_back() {
    let mut world = World::new(8 * GIB, 6 * GIB);
    world.run(10);
    world.others = 4 * GIB;
    let decision = world.step(500);
    assert_eq!(decision.reason, Reason::Capacity(Bound::Container));
    assert!(decision.target + world.others <= world.limit - margin_bytes(world.limit));
    world.run(100);
    assert_eq!(world.changes.len(), 1, "one shrink settles it");
    world.others = 0;
    world.run(22);
    assert!(world.changes.len() > 1, "growth follows");
    world.run(60);
    assert_eq!(
        world.governed.target(),
        6 * GIB,
        "back to what the operator allows"
    );
    assert!(
        world.changes[1..].windows(2).all(|w| w[0].1 < w[1].1),
        "growth has no setbacks"
    );
}

#[test]
fn noise_of_half_a_band_moves_nothing_after_it_has_settled() {
    let mut world = World::new(8 * GIB, 8 * GIB);
    let band = 8 * GIB / 1000 * 30;
    let mut seed = 1u64;
    let mut noisy_run = |world: &mut World, steps: u64| {
        for _ in 0..steps {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            world.others = 2 * GIB + (seed >> 33) % (band / 2);
            world.step(500);
        }
    };
    noisy_run(&mut world, 400);
    let settled = world.changes.len();
    assert!(settled <= 8, "{:?}", world.changes);
    noisy_run(&mut world, 10_000);
    assert_eq!(
        world.changes.len(),
        settled,
        "{:?}",
        &world.changes[settled..]
    );
}

#[test]
fn a_sawtooth_does_not_make_it_flap() {
    // Another process takes and frees 2 GiB every four seconds: we stay low rather than follow.
    let mut world = World::new(8 * GIB, 8 * GIB);
    for step in 0..2000u64 {
        world.others = if step / 8 % 2 == 0 { 0 } else { 2 * GIB };
        world.step(500);
    }
    let late: Vec<_> = world.changes.iter().filter(|c| c.0 > 20_000).collect();
    assert!(late.is_empty(), "{late:?}");
}

#[test]
fn stalls_shrink_by_steps_with_pauses_and_stop_at_the_floor() {
    let mut world = World::new(8 * GIB, 4 * GIB);
    world.step(500);
    for _ in 0..400 {
        world.stalled_us += 200_000; // 40 % of each half second
        world.step(500);
    }
    assert!(
        matches!(world.changes[0].2, Reason::Stall { percent } if percent > 39.0 && percent < 41.0)
    );
    assert!(world.changes.windows(2).all(|w| w[1].0 - w[0].0 >= 2_000));
    assert_eq!(world.governed.target(), Config::default().floor);
    let low = world.governed.target();
    world.run(15);
    assert_eq!(world.governed.target(), low, "no growth before it is calm");
    world.run(400);
    assert_eq!(world.governed.target(), 4 * GIB);
}

#[test]
fn limit_events_shrink_but_old_ones_do_not() {
    let mut world = World::new(8 * GIB, 4 * GIB);
    world.events = 1000;
    assert_eq!(world.step(500).reason, Reason::Steady);
    world.events = 1003;
    assert_eq!(world.step(500).reason, Reason::LimitEvents { count: 3 });
}

#[test]
fn the_operator_is_obeyed_at_once_both_ways() {
    let mut world = World::new(8 * GIB, 4 * GIB);
    world.run(3);
    world.operator_limit = 2 * GIB;
    assert_eq!(world.step(1).target, 2 * GIB);
    world.operator_limit = 5 * GIB;
    let up = world.step(1);
    assert_eq!((up.target, up.reason), (5 * GIB, Reason::Operator));
    world.operator_limit = 100 * GIB;
    assert!(
        world.step(1).target < 8 * GIB,
        "not beyond what the container leaves"
    );
    world.operator_limit = 10 * MIB;
    assert_eq!(world.step(1).target, 10 * MIB, "even below the floor");
}

#[test]
fn a_small_container_is_followed_too() {
    let mut world = World::new(48 * MIB, 24 * MIB);
    world.others = 16 * MIB;
    assert_eq!(world.step(1000).target, 24 * MIB, "there is room");
    world.others = 26 * MIB;
    let decision = world.step(1000);
    assert_eq!(decision.reason, Reason::Capacity(Bound::Container));
    assert!(
        (12 * MIB..17 * MIB).contains(&decision.target),
        "{decision:?}"
    );
    world.others = 48 * MIB;
    assert_eq!(world.step(1000).target, 6 * MIB, "the floor");
}

#[test]
fn an_unknown_system_leaves_the_operators_word() {
    let mut governed = Governed::new(Config::default(), GIB);
    let own = Own {
        anonymous: 0,
        operator_limit: GIB,
    };
    let decision = governed.decide(&Snapshot::default(), own, 0);
    assert_eq!(
        (decision.target, decision.reason, decision.capacity),
        (GIB, Reason::Steady, u64::MAX)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Whatever others do, the target is within the operator's limit, not below the floor, and within
    /// what the container leaves one reading later.
    #[test]
    fn bounds_hold_on_any_trace(trace in prop::collection::vec((0..9 * GIB, 0..600_000u64, 0..3u64, 1..5000u64), 1..200)) {
        let mut world = World::new(8 * GIB, 6 * GIB);
        for (others, stalled, events, ms) in trace {
            world.others = others;
            world.stalled_us += stalled;
            world.events += events / 2;
            let decision = world.step(ms);
            prop_assert!(decision.target <= 6 * GIB);
            prop_assert!(decision.target >= Config::default().floor);
            prop_assert!(decision.target <= decision.capacity.max(Config::default().floor));
        }
    }
}
