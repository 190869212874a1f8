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
