use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

fn shape(heads: usize, window: Option<usize>) -> AttentionShape<'static> {
    AttentionShape {
        layer: 0,
        heads,
        scale: 1.0,
        window,
        softcap: None,
        sinks: None,
    }
}

fn sequence(rows: usize, first_position: usize) -> AttentionSequence<'static> {
    AttentionSequence {
        blocks: &[],
        rows,
        first_position,
    }
}

/// Sees that every row, head and split is computed once, and that states are written where the merges read them.
fn check(
    layout: &KvLayout,
    shape: &AttentionShape<'_>,
    sequences: &[AttentionSequence<'_>],
    threads: usize,
) {
    let mut plan = Plan::default();
    plan.make(layout, shape, sequences, threads);
    let group = shape.heads / layout.kv_heads();
    let mut seen: HashMap<(usize, usize, usize), usize> = HashMap::new();
    let mut records: HashMap<usize, (usize, usize, usize)> = HashMap::new();
    let record = record_lines(layout.head_dim());
    for task in &plan.tasks {
        let queries = task.rows.len() * group * task.kv_heads.len();
        assert!(worker_lines(layout.head_dim(), queries) <= plan.lines_per_worker);
        for split in task.splits.clone() {
            for row in task.rows.clone() {
                for head in task.kv_heads.start * group..task.kv_heads.end * group {
                    let row_in_out = task.first_row + row - task.rows.start;
                    *seen.entry((row_in_out, head, split)).or_default() += 1;
                    if let Some(partial) = &task.partial {
                        let row =
                            (split - partial.first_split) * task.rows.len() + row - task.rows.start;
                        let line = partial.first_line + (row * shape.heads + head) * record;
                        assert!(line + record <= plan.partial_lines);
                        assert_eq!(records.insert(line, (row_in_out, head, split)), None);
                    }
                }
            }
        }
    }
    let mut first_row = 0;
    for sequence in sequences {
        for row in 0..sequence.rows {
            let position = sequence.first_position + row;
            for split in first_seen(shape.window, position) / SPLIT_TOKENS..=position / SPLIT_TOKENS
            {
                for head in 0..shape.heads {
                    assert_eq!(seen.get(&(first_row + row, head, split)), Some(&1));
                }
            }
        }
        first_row += sequence.rows;
    }
    assert!(seen.values().all(|&times| times == 1));
    let mut merged = 0;
    for merge in &plan.merges {
        for row_and_head in merge.rows_and_heads.clone() {
            let row = merge.first_row + row_and_head / shape.heads;
            let head = row_and_head % shape.heads;
            let at = |split: usize| {
                let number = split * merge.split_records + row_and_head;
                records[&(merge.first_line + number * record)]
            };
            let first_split = at(0).2;
            for split in 0..merge.splits {
                assert_eq!(at(split), (row, head, first_split + split));
                merged += 1;
            }
        }
    }
    assert_eq!(merged, records.len(), "every state is merged");
    check_bytes(layout, shape, sequences, threads, &plan);
}

/// Sees that what is charged for a call is enough for what it holds.
fn check_bytes(
    layout: &KvLayout,
    shape: &AttentionShape<'_>,
    sequences: &[AttentionSequence<'_>],
    threads: usize,
    plan: &Plan,
) {
    let rows = sequences.iter().map(|s| s.rows).sum();
    let lines = plan.lines_per_worker * threads + plan.partial_lines;
    let context = sequences
        .iter()
        .map(|s| s.first_position + s.rows)
        .max()
        .unwrap_or(0);
    let needed = bytes_needed(layout, shape.heads, rows, context, threads);
    assert!(lines * size_of::<Line>() + plan.bytes() <= needed);
}

proptest! {
    #[test]
    fn every_row_head_and_split_is_computed_once(
        (kv_heads, group, head_dim) in (1..9_usize, 1..9_usize, 1..130_usize),
        sequences in prop::collection::vec((0..40_usize, 0..20_000_usize), 0..6),
        window in prop::option::of(1..3000_usize),
        threads in 1..20_usize,
    ) {
        let layout = KvLayout::new(1, kv_heads, head_dim).unwrap();
        let sequences: Vec<_> = sequences.iter().map(|&(rows, first)| sequence(rows, first)).collect();
        check(&layout, &shape(kv_heads * group, window), &sequences, threads);
    }
}

#[test]
fn a_long_sequence_is_shared_by_all_threads() {
    let layout = KvLayout::new(1, 8, 64).unwrap();
    for (threads, least) in [(1, 1), (2, 16), (64, 128)] {
        let mut plan = Plan::default();
        plan.make(&layout, &shape(32, None), &[sequence(1, 16_383)], threads);
        assert!(
            plan.tasks.len() >= least,
            "{} tasks for {threads} threads",
            plan.tasks.len()
        );
    }
}

#[test]
fn little_work_is_one_task() {
    let layout = KvLayout::new(1, 8, 64).unwrap();
    let mut plan = Plan::default();
    plan.make(&layout, &shape(32, None), &[sequence(1, 30)], 8);
    assert_eq!((plan.tasks.len(), plan.merges.len()), (1, 0));
}
