use super::*;
use crate::budget::Budget;
use crate::region::page_bytes;
use proptest::prelude::*;

const BLOCK_TOKENS: usize = 4;

fn pool_of(blocks: u64) -> (Budget, KvPool) {
    let budget = Budget::new(blocks * page_bytes() as u64);
    let pool = KvPool::new(&budget, page_bytes(), BLOCK_TOKENS);
    (budget, pool)
}

/// Writes `values` as the next tokens: slot `s` of a block is its byte `s`.
fn append(table: &mut BlockTable, values: &[u8]) -> Result<(), OverBudget> {
    table.reserve(values.len())?;
    for (i, &value) in values.iter().enumerate() {
        let token = table.len_tokens() + i;
        table.block_mut(token / BLOCK_TOKENS)[token % BLOCK_TOKENS] = value;
    }
    table.advance(values.len());
    Ok(())
}

fn read(table: &BlockTable) -> Vec<u8> {
    (0..table.len_tokens())
        .map(|t| table.block(t / BLOCK_TOKENS)[t % BLOCK_TOKENS])
        .collect()
}

#[test]
fn a_failed_reserve_changes_nothing() {
    let (budget, pool) = pool_of(2);
    let mut table = BlockTable::new(&pool);
    append(&mut table, &[1, 2, 3]).unwrap();
    assert!(table.reserve(6).is_err());
    assert_eq!((table.len_blocks(), table.len_tokens()), (1, 3));
    assert_eq!(budget.charged(), page_bytes() as u64);
    table.reserve(5).unwrap();
    assert_eq!(table.capacity_tokens(), 8);
    assert!(table.reserve(usize::MAX).is_err());
}

#[test]
fn a_fork_copies_the_partial_block_before_writing() {
    let (_, pool) = pool_of(8);
    let mut a = BlockTable::new(&pool);
    append(&mut a, &[1, 2, 3, 4, 5]).unwrap();
    let mut b = a.fork();
    append(&mut b, &[60]).unwrap();
    append(&mut a, &[6]).unwrap();
    assert_eq!(read(&a), [1, 2, 3, 4, 5, 6]);
    assert_eq!(read(&b), [1, 2, 3, 4, 5, 60]);
    assert!(a.blocks()[0].is_same(&b.blocks()[0]));
    assert!(!a.blocks()[1].is_same(&b.blocks()[1]));
    assert_eq!(pool.stats().held_blocks, 3);
}

#[test]
fn cutting_into_a_shared_full_block_copies_it_too() {
    let (_, pool) = pool_of(8);
    let mut a = BlockTable::new(&pool);
    append(&mut a, &[1, 2, 3, 4]).unwrap();
    let mut b = a.fork();
    b.truncate(2);
    append(&mut b, &[9]).unwrap();
    assert_eq!((read(&a), read(&b)), (vec![1, 2, 3, 4], vec![1, 2, 9]));
}

#[test]
fn attached_blocks_are_shared() {
    let (_, pool) = pool_of(8);
    let mut a = BlockTable::new(&pool);
    append(&mut a, &[1, 2, 3, 4, 5, 6]).unwrap();
    let mut b = BlockTable::new(&pool);
    b.attach(a.share_block(0), BLOCK_TOKENS);
    b.attach(a.share_block(1), 1);
    append(&mut b, &[7]).unwrap();
    assert_eq!(
        (read(&a), read(&b)),
        (vec![1, 2, 3, 4, 5, 6], vec![1, 2, 3, 4, 5, 7])
    );
}

#[test]
#[should_panic(expected = "full and immutable")]
fn a_full_block_is_immutable() {
    let (_, pool) = pool_of(2);
    let mut table = BlockTable::new(&pool);
    append(&mut table, &[1, 2, 3, 4]).unwrap();
    let _ = table.block_mut(0);
}

#[test]
#[should_panic(expected = "reserve after the last fork")]
fn a_shared_block_is_not_written() {
    let (_, pool) = pool_of(2);
    let mut table = BlockTable::new(&pool);
    append(&mut table, &[1]).unwrap();
    let _fork = table.fork();
    let _ = table.block_mut(0);
}

#[test]
#[should_panic(expected = "do not fit")]
fn advance_is_checked() {
    let (_, pool) = pool_of(2);
    let mut table = BlockTable::new(&pool);
    table.reserve(1).unwrap();
    table.advance(5);
}

#[derive(Clone, Debug)]
enum Op {
    Append(usize, Vec<u8>),
    ReserveOnly(usize, usize),
    Fork(usize),
    Truncate(usize, usize),
    Drop(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (any::<usize>(), prop::collection::vec(1..255u8, 0..11)).prop_map(|(i, v)| Op::Append(i, v)),
        1 => (any::<usize>(), 0..9usize).prop_map(|(i, n)| Op::ReserveOnly(i, n)),
        2 => any::<usize>().prop_map(Op::Fork),
        2 => (any::<usize>(), 0..30usize).prop_map(|(i, n)| Op::Truncate(i, n)),
        1 => any::<usize>().prop_map(Op::Drop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 3 } else { 256 }, failure_persistence: None, ..Default::default() })]

    /// Tables against vectors of bytes: forks never see each other's writes, errors change nothing.
    #[test]
    fn agrees_with_naive_vectors(ops in prop::collection::vec(op(), 1..if cfg!(miri) { 20 } else { 120 })) {
        let (budget, pool) = pool_of(20);
        let mut tables = vec![BlockTable::new(&pool)];
        let mut naive: Vec<Vec<u8>> = vec![Vec::new()];
        for op in ops {
            match op {
                Op::Append(i, values) => {
                    let i = i % tables.len();
                    if append(&mut tables[i], &values).is_ok() {
                        naive[i].extend(values);
                    }
                }
                Op::ReserveOnly(i, n) => {
                    let i = i % tables.len();
                    let _ = tables[i].reserve(n);
                }
                Op::Fork(i) => {
                    let i = i % tables.len();
                    let fork = tables[i].fork();
                    tables.push(fork);
                    naive.push(naive[i].clone());
                }
                Op::Truncate(i, n) => {
                    let i = i % tables.len();
                    tables[i].truncate(n);
                    naive[i].truncate(n);
                }
                Op::Drop(i) if tables.len() > 1 => {
                    let i = i % tables.len();
                    tables.swap_remove(i);
                    naive.swap_remove(i);
                }
                Op::Drop(_) => {}
            }
            for (table, expected) in tables.iter().zip(&naive) {
                prop_assert_eq!(&read(table), expected);
                table.check_conservation().unwrap();
            }
            // Charged exactly for the distinct blocks that the tables hold.
            let mut distinct: Vec<*const u8> = tables.iter().flat_map(BlockTable::blocks).map(|b| b.bytes().as_ptr()).collect();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(budget.charged(), distinct.len() as u64 * page_bytes() as u64);
        }
    }
}

#[test]
fn blocks_behind_the_window_are_trimmed_and_no_others() {
    let page = crate::region::page_bytes();
    let budget = Budget::new(1 << 20);
    let window = crate::pool::Window {
        tokens: 6,
        head_bytes: page,
    };
    let pool = KvPool::with_window(&budget, 3 * page, 4, Some(window));
    let mut table = BlockTable::new(&pool);
    for len in 1..40 {
        table.reserve(1).unwrap();
        let index = (len - 1) / 4;
        table.block_mut(index)[(len - 1) % 4] = len as u8;
        table.advance(1);
        let shared = table.share_block(0);
        table.trim();
        drop(shared);
        table.trim();
        // The next token is at `len`, and sees from `len - 5` on.
        assert_eq!(table.trimmed_blocks(), len.saturating_sub(5) / 4, "{len}");
        table.check_conservation().unwrap();
        for t in 0..len {
            assert_eq!(table.block(t / 4)[t % 4], t as u8 + 1);
        }
    }
    let charged = (9 - 1) * page + 2 * 3 * page;
    assert_eq!(budget.charged(), charged as u64);
    let plain = KvPool::new(&budget, 3 * page, 4);
    let mut table = BlockTable::new(&plain);
    table.reserve(40).unwrap();
    table.advance(40);
    assert_eq!((table.trim(), table.blocks_behind_window()), (0, 0..0));
}
