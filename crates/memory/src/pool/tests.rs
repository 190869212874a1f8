use super::*;
use proptest::prelude::*;

fn pool_of(blocks: u64) -> (Budget, KvPool) {
    let page = page_bytes();
    let budget = Budget::new(blocks * page as u64);
    let pool = KvPool::new(&budget, page, 4);
    (budget, pool)
}

#[test]
fn blocks_are_zeroed_even_after_use() {
    let (_, pool) = pool_of(8);
    for _ in 0..20 {
        let mut block = pool.allocate().unwrap();
        assert!(block.bytes().iter().all(|&b| b == 0));
        block.bytes_mut().unwrap().fill(0xA5);
    }
}

#[test]
fn a_refusal_leaves_nothing_behind() {
    let (budget, pool) = pool_of(2);
    let held = [pool.allocate().unwrap(), pool.allocate().unwrap()];
    assert!(pool.allocate().is_err());
    assert_eq!(pool.stats().held_blocks, 2);
    drop(held);
    assert_eq!((budget.charged(), pool.stats().held_blocks), (0, 0));
    pool.check_conservation().unwrap();
}

#[test]
fn a_shared_block_is_charged_once_and_read_only() {
    let (budget, pool) = pool_of(2);
    let mut a = pool.allocate().unwrap();
    let b = a.clone();
    assert!(a.bytes_mut().is_none() && a.is_same(&b));
    assert_eq!(budget.charged(), page_bytes() as u64);
    let mut c = b.to_copy().unwrap();
    assert!(c.bytes_mut().is_some());
    assert!(b.to_copy().is_err());
    drop((a, b));
    assert_eq!(pool.stats().held_blocks, 1);
}

#[test]
fn a_block_is_replaced_by_a_smaller_form_out_of_its_own_charge() {
    let page = page_bytes();
    let (budget, pool) = pool_of(8);
    pool.set_reuse_bytes(8 * page as u64);
    let mut block = pool.allocate_at(Level::Hot, 3 * page).unwrap();
    block.bytes_mut().unwrap().fill(1);
    budget.set_limit(0);
    let claim = block.clone();
    let block = pool.replace(block, Level::Packed, &[7; 10]).unwrap_err();
    drop(claim);
    let block = pool
        .replace(block, Level::Packed, &vec![7; 3 * page + 1])
        .unwrap_err();
    let block = pool.replace(block, Level::Packed, &[7; 10]).unwrap();
    assert_eq!(
        (block.level(), block.bytes()),
        (Level::Packed, &[7; 10][..])
    );
    assert_eq!(budget.charged(), page as u64);
    pool.check_conservation().unwrap();
    drop(block);
    assert_eq!((budget.charged(), pool.stats().held_blocks), (0, 0));
}

#[test]
fn blocks_outlive_their_pool_handle() {
    let (budget, pool) = pool_of(2);
    let mut block = pool.allocate().unwrap();
    drop(pool);
    block.bytes_mut().unwrap()[0] = 1;
    assert_eq!(block.bytes()[0], 1);
    drop(block);
    assert_eq!(budget.charged(), 0);
}

#[test]
fn threads_share_a_pool() {
    let (budget, pool) = pool_of(16);
    std::thread::scope(|scope| {
        for t in 1..4u8 {
            let pool = pool.clone();
            scope.spawn(move || {
                for _ in 0..if cfg!(miri) { 5 } else { 300 } {
                    let Ok(mut block) = pool.allocate() else {
                        continue;
                    };
                    block.bytes_mut().unwrap().fill(t);
                    let other = block.clone();
                    drop(block);
                    assert!(other.bytes().iter().all(|&b| b == t));
                }
            });
        }
    });
    assert_eq!(budget.charged(), 0);
    pool.check_conservation().unwrap();
}

#[test]
fn kept_blocks_are_charged_zeroed_and_given_up_on_demand() {
    let page = page_bytes() as u64;
    let (budget, pool) = pool_of(8);
    pool.set_reuse_bytes(3 * page);
    let mut blocks: Vec<Block> = (0..5).map(|_| pool.allocate().unwrap()).collect();
    for block in &mut blocks {
        block.bytes_mut().unwrap().fill(7);
    }
    drop(blocks);
    assert_eq!(
        (pool.stats().kept_bytes, budget.charged()),
        (3 * page, 3 * page)
    );
    let again = pool.allocate().unwrap();
    assert!(again.bytes().iter().all(|&b| b == 0));
    assert_eq!((pool.stats().held_blocks, budget.charged()), (1, 3 * page));
    // Somebody else needs the bytes: the charge is granted all the same.
    let other = budget.try_charge(ChargeKind::Weights, 6 * page).unwrap();
    assert_eq!(pool.stats().kept_bytes, page);
    drop(other);
    assert_eq!(budget.set_limit(page), 0, "a shrink takes what is kept");
    pool.check_conservation().unwrap();
    budget.set_limit(8 * page);
    drop(again);
    pool.set_reuse_bytes(0);
    assert_eq!((pool.stats().kept_bytes, budget.charged()), (0, 0));
}

#[cfg(target_os = "linux")]
#[test]
#[cfg_attr(miri, ignore = "reads /proc")]
fn freed_blocks_leave_the_resident_set() {
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * page_bytes() as u64
    };
    let block_bytes = 1 << 20;
    let budget = Budget::new(1 << 40);
    let pool = KvPool::new(&budget, block_bytes, 32);
    let before = resident();
    let mut blocks: Vec<Block> = (0..128).map(|_| pool.allocate().unwrap()).collect();
    for block in &mut blocks {
        block.bytes_mut().unwrap().fill(1);
    }
    // Other tests run beside this one, hence the wide margins.
    assert!(resident() >= before + (96 << 20));
    blocks.truncate(1);
    assert!(resident() < before + (48 << 20));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 3 } else { 128 }, failure_persistence: None, ..Default::default() })]

    /// The pool against a list of (fill byte, length): contents never mix, laws hold at every step.
    #[test]
    fn agrees_with_a_naive_pool(reuse in 0..5u64, ops in prop::collection::vec((0..6u8, any::<usize>(), 1..3usize), 1..if cfg!(miri) { 20 } else { 200 })) {
        let (budget, pool) = pool_of(24);
        let page = page_bytes();
        pool.set_reuse_bytes(reuse * page as u64);
        let mut held: Vec<(Block, u8)> = Vec::new();
        for (op, pick, pages) in ops {
            match op {
                0..=2 => {
                    let free = budget.available() + pool.stats().kept_bytes;
                    match pool.allocate_at(Level::Packed, pages * page - pick % page) {
                        Ok(mut block) => {
                            prop_assert!(block.bytes().iter().all(|&b| b == 0));
                            let mark = (pick % 251) as u8;
                            block.bytes_mut().unwrap().fill(mark);
                            held.push((block, mark));
                        }
                        Err(_) => prop_assert!(free < (pages * page) as u64),
                    }
                }
                3 if !held.is_empty() => {
                    let shared = held[pick % held.len()].clone();
                    held.push(shared);
                }
                _ if !held.is_empty() => {
                    held.swap_remove(pick % held.len());
                }
                _ => {}
            }
            pool.check_conservation().unwrap();
            for (block, mark) in &held {
                prop_assert!(block.bytes().iter().all(|b| b == mark));
            }
        }
        drop(held);
        pool.set_reuse_bytes(0);
        prop_assert_eq!(budget.charged(), 0);
        prop_assert_eq!(pool.stats().held_blocks, 0);
    }
}

#[test]
#[cfg_attr(
    miri,
    ignore = "megabytes take Miri minutes; what it would check, smaller blocks show"
)]
fn blocks_of_whole_huge_pages_begin_with_one_and_go_back_whole() {
    let bytes = 4 << 20;
    let budget = Budget::new(3 * bytes as u64);
    let pool = KvPool::new(&budget, bytes, 32);
    let mut blocks = [(); 3].map(|()| pool.allocate().unwrap());
    for (block, number) in blocks.iter_mut().zip(1..) {
        assert!(block.bytes().as_ptr().addr().is_multiple_of(2 << 20));
        block.bytes_mut().unwrap().fill(number);
    }
    assert!(
        blocks
            .iter()
            .zip(1..)
            .all(|(b, n)| b.bytes() == vec![n; bytes])
    );
    drop(blocks);
    pool.check_conservation().unwrap();
    assert_eq!(budget.charged(), 0);
    assert!(pool.allocate().unwrap().bytes().iter().all(|&b| b == 0));
}

fn windowed(budget: &Budget) -> KvPool {
    let page = page_bytes();
    let window = Window {
        tokens: 6,
        head_bytes: page,
    };
    KvPool::with_window(budget, 4 * page, 4, Some(window))
}

#[test]
fn a_trimmed_block_is_its_head_at_the_price_of_its_head() {
    let page = page_bytes();
    let budget = Budget::new(u64::MAX);
    let pool = windowed(&budget);
    let mut block = pool.allocate().unwrap();
    block.bytes_mut().unwrap()[..page].fill(7);
    assert_eq!((block.is_trimmed(), block.hot_bytes()), (false, 4 * page));
    let claim = block.clone();
    let block = pool.trim(block, page).unwrap_err();
    drop(claim);
    budget.set_limit(0);
    let block = pool.trim(block, page).unwrap();
    assert_eq!((block.is_trimmed(), block.hot_bytes()), (true, page));
    assert_eq!(
        (block.bytes(), budget.charged()),
        (&vec![7; page][..], page as u64)
    );
    assert!(block.covers(&block.clone()));
    pool.check_conservation().unwrap();
    // Once, and it stays trimmed whatever becomes of it.
    let block = pool.trim(block, 1).unwrap_err();
    let block = pool.replace(block, Level::Packed, &[1; 9]).unwrap();
    assert!(block.is_trimmed() && block.hot_bytes() == page);
    let block = pool.trim(block, 1).unwrap_err();
    budget.set_limit(u64::MAX);
    assert!(block.to_copy().unwrap().is_trimmed());
    let whole = pool.allocate().unwrap();
    assert!(whole.covers(&block) && !block.covers(&whole));
}

#[test]
fn a_sequence_goes_on_where_no_block_in_the_window_is_trimmed() {
    let budget = Budget::new(u64::MAX);
    let pool = windowed(&budget);
    // Blocks of 4 tokens; the token at position p reads from p - 5 on.
    let startable =
        |tokens, trimmed: &[usize]| pool.startable_tokens(tokens, |block| trimmed.contains(&block));
    assert_eq!(startable(9, &[0]), 9, "the token at 9 reads 4 to 9");
    assert_eq!(startable(8, &[0]), 0, "that at 8 reads token 3");
    assert_eq!(startable(40, &[0, 1, 2, 7]), 40);
    assert_eq!(
        startable(36, &[0, 1, 2, 7]),
        28,
        "from 31 on: block 7 is read"
    );
    assert_eq!(startable(36, &[0, 1, 2, 6, 7]), 24);
    assert_eq!(startable(36, &[5, 6, 7]), 20);
    assert_eq!(startable(36, &[2, 3, 4, 5, 6, 7]), 8);
    assert_eq!(startable(34, &[8]), 32, "the last is read");
    assert_eq!(startable(0, &[]), 0);
    let plain = KvPool::new(&budget, 4 * page_bytes(), 4);
    assert_eq!(plain.startable_tokens(36, |_| true), 36);
    // A head of as many pages as the block is no head.
    let window = Window {
        tokens: 6,
        head_bytes: 3 * page_bytes() + 1,
    };
    let whole = KvPool::with_window(&budget, 4 * page_bytes(), 4, Some(window));
    assert_eq!(whole.window(), None);
    assert_eq!(whole.charged_head_bytes(), whole.charged_block_bytes());
}

proptest! {
    #[test]
    fn startable_is_the_longest_prefix_without_a_trimmed_block_in_its_window(
        tokens in 0_usize..60,
        trimmed in prop::collection::vec(any::<bool>(), 16),
        window in 1_usize..20,
    ) {
        let budget = Budget::new(u64::MAX);
        let head_bytes = page_bytes();
        let window = Window { tokens: window, head_bytes };
        let pool = KvPool::with_window(&budget, 4 * page_bytes(), 4, Some(window));
        // Token by token: the next one, at position `n`, reads the tails of `n + 1 - window` to `n - 1`, and is written
        // into its block.
        let can_go_on = |&n: &usize| {
            let first = (n + 1).saturating_sub(window.tokens);
            (first..n).chain((n % 4 > 0).then_some(n)).all(|t| !trimmed[t / 4])
        };
        let ends = (0..=tokens).rev().filter(|n| *n == tokens || n.is_multiple_of(4));
        let longest = ends.into_iter().find(can_go_on).unwrap();
        prop_assert_eq!(pool.startable_tokens(tokens, |block| trimmed[block]), longest);
    }
}
