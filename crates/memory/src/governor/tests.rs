use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn block(id: u64) -> Candidate {
    Candidate {
        id,
        level: Level::Hot,
        bytes: MIB,
        hot_bytes: MIB,
        trimmed_bytes: MIB,
        tokens: 32,
        before: 0,
        uses_per_s: 0.01,
        is_on_disk: false,
        lowest: Level::Int8,
        is_in_use: false,
        may_drop: true,
    }
}

fn packed() -> Sink {
    Sink {
        level: Level::Packed,
        comes_back_at: Level::Hot,
        ratio: 0.8,
        quality_price_us: 0.0,
    }
}

fn packed_int4() -> Sink {
    Sink {
        level: Level::Packed,
        comes_back_at: Level::Int4,
        ratio: 0.2,
        quality_price_us: 2.0,
    }
}

fn int8() -> Sink {
    Sink {
        level: Level::Int8,
        comes_back_at: Level::Int8,
        ratio: 0.5,
        quality_price_us: 1.0,
    }
}

fn situation(bytes_to_free: u64, candidates: Vec<Candidate>) -> Situation {
    Situation {
        bytes_to_free,
        candidates,
        sinks: vec![packed(), packed_int4(), int8()],
        disk_room: 1 << 40,
        horizon_s: 60.0,
        ..Situation::default()
    }
}

#[test]
fn what_is_used_least_goes_first() {
    let busy = Candidate {
        uses_per_s: 5.0,
        ..block(1)
    };
    let idle = Candidate {
        uses_per_s: 0.0001,
        ..block(2)
    };
    let plan = plan(&situation(MIB, vec![busy, idle]));
    assert_eq!(
        (plan.steps.len(), plan.steps[0].id, plan.short_bytes),
        (1, 2, 0)
    );
    assert_eq!(plan.steps[0].action, Action::Drop, "not worth a write");
}

#[test]
fn what_will_come_back_is_spilled_rather_than_dropped() {
    let plan = plan(&situation(
        MIB,
        vec![Candidate {
            uses_per_s: 0.02,
            ..block(1)
        }],
    ));
    assert_eq!(plan.steps[0].action, Action::Spill);
    let copied = Candidate {
        is_on_disk: true,
        ..block(1)
    };
    assert_eq!(
        super::plan(&situation(MIB, vec![copied])).steps[0].action,
        Action::DropCopied
    );
}

#[test]
fn a_block_in_use_stays_attendable() {
    let used = Candidate {
        is_in_use: true,
        uses_per_s: 0.0,
        ..block(1)
    };
    let plan = plan(&situation(MIB, vec![used]));
    assert_eq!(plan.steps[0].action, Action::Demote(Level::Int8));
    assert_eq!((plan.frees_bytes, plan.short_bytes), (MIB / 2, MIB / 2));
}

#[test]
fn an_exact_block_never_becomes_lossy() {
    let exact = Candidate {
        lowest: Level::Hot,
        may_drop: false,
        ..block(1)
    };
    let mut situation = situation(MIB, vec![exact]);
    (situation.disk_room, situation.sinks) = (0, vec![int8()]);
    assert_eq!(plan(&situation).steps, []);
    situation.candidates[0].lowest = Level::Int8;
    assert_eq!(
        plan(&situation).steps[0].action,
        Action::Demote(Level::Int8)
    );
}

#[test]
fn without_disk_or_leave_to_drop_it_packs() {
    let pinned = Candidate {
        may_drop: false,
        ..block(1)
    };
    let mut situation = situation(MIB / 10, vec![pinned]);
    situation.disk_room = 0;
    situation.sinks = vec![packed()];
    assert_eq!(
        plan(&situation).steps[0].action,
        Action::Demote(Level::Packed)
    );
}

#[test]
fn gentle_actions_are_replaced_when_they_are_not_enough() {
    // Very busy blocks: demotion to int8 costs least per byte, but frees half.
    let busy: Vec<_> = (0..4)
        .map(|id| Candidate {
            uses_per_s: 10.0,
            ..block(id)
        })
        .collect();
    let half = plan(&situation(2 * MIB, busy.clone()));
    assert!(
        half.steps
            .iter()
            .all(|s| s.action == Action::Demote(Level::Int8))
    );
    let all = plan(&situation(4 * MIB, busy));
    assert_eq!((all.frees_bytes, all.short_bytes), (4 * MIB, 0));
}

#[test]
fn the_log_keeps_the_latest() {
    let mut log = DecisionLog::new(2);
    for at in 0..5 {
        log.plan(at, Occasion::Shrink, &situation(MIB, vec![block(1)]));
    }
    assert_eq!(log.entries().map(|e| e.at_ms).collect::<Vec<_>>(), [3, 4]);
}

#[test]
fn long_plans_are_logged_in_smaller_number() {
    let mut log = DecisionLog::new(100);
    let blocks: Vec<_> = (0..10_000).map(block).collect();
    let situation = situation(u64::MAX, blocks);
    (0..9).for_each(|at| drop(log.plan(at, Occasion::Shrink, &situation)));
    let kept: Vec<u64> = log.entries().map(|e| e.at_ms).collect();
    assert_eq!(kept, [6, 7, 8]);
}

#[test]
fn what_may_be_lossy_packs_with_loss_and_nothing_else_does() {
    let packs = |level, lowest, is_in_use| {
        let candidate = Candidate {
            level,
            lowest,
            is_in_use,
            ..block(0)
        };
        let situation = situation(MIB, vec![candidate]);
        let mut steps = Vec::new();
        Weighing::new(&candidate, &situation).push_demotions(&mut steps);
        let packed = steps
            .into_iter()
            .find(|step| step.action == Action::Demote(Level::Packed));
        packed.map(|step| step.frees_bytes * 10 / MIB)
    };
    assert_eq!(packs(Level::Hot, Level::Hot, false), Some(1));
    assert_eq!(packs(Level::Hot, Level::Int8, false), Some(1));
    assert_eq!(packs(Level::Hot, Level::Int4, false), Some(7));
    assert_eq!(packs(Level::Int4, Level::Int4, false), Some(7));
    assert_eq!(packs(Level::Int8, Level::Int8, false), None);
    assert_eq!(packs(Level::Int4, Level::Int4, true), None);
}

#[test]
fn what_is_behind_a_window_goes_before_anything_else() {
    let trimmable = Candidate {
        trimmed_bytes: MIB / 6,
        ..block(0)
    };
    let mut situation = situation(MIB / 2, vec![trimmable, block(1)]);
    situation.sinks = vec![packed(), int8()];
    let steps = plan(&situation).steps;
    assert_eq!(steps.len(), 1);
    assert_eq!((steps[0].id, steps[0].action), (0, Action::Trim));
    // Where that is not enough, more of it is given, or another.
    situation.bytes_to_free = 2 * MIB;
    assert_eq!(plan(&situation).frees_bytes, 2 * MIB);
}

fn candidate() -> impl Strategy<Value = Candidate> {
    (
        0..3usize,
        0..3usize,
        1..MIB,
        0.0..10.0f64,
        any::<[bool; 4]>(),
    )
        .prop_map(|(level, lowest, bytes, uses_per_s, flags)| Candidate {
            level: [Level::Hot, Level::Int8, Level::Packed][level],
            lowest: [Level::Hot, Level::Int8, Level::Int4][lowest],
            bytes,
            trimmed_bytes: if flags[3] { bytes / 6 } else { bytes },
            uses_per_s,
            is_on_disk: flags[0],
            is_in_use: flags[1] && level < 2,
            may_drop: flags[2],
            ..block(0)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_plan_is_legal_and_adds_up(
        mut candidates in prop::collection::vec(candidate(), 0..40),
        need in 0..20 * MIB,
        disk_room in 0..10 * MIB,
    ) {
        for (id, candidate) in candidates.iter_mut().enumerate() {
            candidate.id = id as u64;
        }
        let mut situation = situation(need, candidates.clone());
        situation.disk_room = disk_room;
        let plan = plan(&situation);
        prop_assert_eq!(&plan, &super::plan(&situation));
        prop_assert_eq!(plan.frees_bytes, plan.steps.iter().map(|s| s.frees_bytes).sum::<u64>());
        prop_assert_eq!(plan.short_bytes, need.saturating_sub(plan.frees_bytes));
        let mut seen = std::collections::HashSet::new();
        let mut spilled = 0;
        for step in &plan.steps {
            prop_assert!(seen.insert(step.id), "one action per block");
            let c = &candidates[step.id as usize];
            prop_assert!(step.frees_bytes <= c.bytes && step.frees_bytes > 0 && step.cost_us >= 0.0);
            match step.action {
                Action::Trim => prop_assert!(!c.is_in_use && step.frees_bytes == c.bytes - c.trimmed_bytes),
                Action::Demote(to) => {
                    prop_assert!(to > c.level && (!c.is_in_use || to.is_attendable()));
                    prop_assert!(!to.is_lossy() || to <= c.lowest);
                    prop_assert!(to != Level::Packed || c.level == Level::Hot || c.lowest == Level::Int4);
                }
                Action::Spill => { prop_assert!(!c.is_in_use && !c.is_on_disk); spilled += c.bytes; }
                Action::DropCopied => prop_assert!(!c.is_in_use && c.is_on_disk),
                Action::Drop => prop_assert!(!c.is_in_use && c.may_drop),
            }
        }
        prop_assert!(spilled <= disk_room);
        // If it is short, nobody who may go entirely was spared for want of trying.
        if plan.short_bytes > 0 {
            for c in candidates.iter().filter(|c| !c.is_in_use && (c.may_drop || c.is_on_disk)) {
                let freed = plan.steps.iter().find(|s| s.id == c.id).map_or(0, |s| s.frees_bytes);
                prop_assert_eq!(freed, c.bytes);
            }
        }
    }
}
