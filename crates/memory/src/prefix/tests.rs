use super::*;
use crate::hash::Fingerprint;
use proptest::prelude::*;
use std::collections::HashMap;

const BLOCK: usize = 3;

fn namespace(tenant: &str) -> Namespace {
    Namespace::new(&[9; 32], tenant, &Fingerprint::of_parts(&[]))
}

#[test]
fn tenants_do_not_see_each_other() {
    let mut tree = PrefixTree::new(BLOCK);
    tree.insert(&namespace("a"), &[1, 2, 3, 4], |_| ());
    assert_eq!(tree.lookup(&namespace("b"), &[1, 2, 3, 4]).tokens, 0);
    assert_eq!(tree.lookup(&namespace("a"), &[1, 2, 3, 4]).tokens, 4);
}

#[test]
fn shared_prefixes_are_held_once() {
    let mut tree = PrefixTree::new(BLOCK);
    let ns = namespace("a");
    assert_eq!(tree.insert(&ns, &[1, 2, 3, 4, 5, 6], |i| i).new_nodes, 2);
    let second = tree.insert(&ns, &[1, 2, 3, 7, 8, 9], |i| i + 10);
    assert_eq!((second.new_nodes, tree.len()), (1, 3));
    assert_eq!(tree.get(second.path[0]), Some(&0));
    assert_eq!(tree.get(second.path[1]), Some(&11));
}

#[test]
fn children_go_before_parents_and_pins_hold() {
    let mut tree = PrefixTree::new(BLOCK);
    let path = tree
        .insert(&namespace("a"), &[1, 2, 3, 4, 5, 6], |i| i)
        .path;
    assert_eq!(tree.evict(path[0]), None);
    assert!(tree.pin(path[1]));
    assert_eq!(tree.evict(path[1]), None);
    assert!(tree.unpin(path[1]) && !tree.unpin(path[1]));
    assert_eq!(tree.evict(path[1]), Some(1));
    assert_eq!(tree.evict(path[1]), None, "a stale id finds nothing");
    assert_eq!(tree.evict(path[0]), Some(0));
    assert!(tree.is_empty() && tree.roots.is_empty());
}

#[test]
fn a_longer_block_takes_the_place_of_a_partial_one() {
    let mut tree = PrefixTree::new(BLOCK);
    let ns = namespace("a");
    let short = tree.insert(&ns, &[1, 2], |_| "short").path[0];
    assert_eq!(tree.insert(&ns, &[1], |_| "never").path, [short]);
    let short = tree.info(short).unwrap().hash;
    let long = tree.insert(&ns, &[1, 2, 3, 4], |_| "long");
    assert_eq!(
        (long.replaced, long.new_nodes, tree.len()),
        (Some(short), 2, 2)
    );
    let pinned = tree.insert(&ns, &[8, 8], |_| "pinned").path[0];
    tree.pin(pinned);
    assert_eq!(tree.insert(&ns, &[8, 8, 8], |_| "beside").replaced, None);
    assert_eq!(tree.get(pinned), Some(&"pinned"));
    tree.check_conservation().unwrap();
}

#[test]
fn lookups_count_as_uses_and_peeks_do_not() {
    let mut tree = PrefixTree::new(BLOCK);
    let ns = namespace("a");
    let id = tree.insert(&ns, &[1, 2, 3], |_| ()).path[0];
    let _ = tree.peek(&ns, &[1, 2, 3]);
    assert_eq!(tree.info(id).unwrap().hits, 0);
    let before = tree.info(id).unwrap().last_access;
    tree.lookup(&ns, &[1, 2]);
    assert_eq!(tree.info(id).unwrap().hits, 1);
    assert!(tree.info(id).unwrap().last_access > before);
}

/// The naive model: every held run of tokens from the start, with its tenant.
#[derive(Default)]
struct Naive {
    held: HashMap<(u8, Vec<u32>), u64>,
}

impl Naive {
    fn longest(&self, tenant: u8, tokens: &[u32]) -> usize {
        let mut best = 0;
        for (t, run) in self.held.keys() {
            let start = (run.len() - 1) / BLOCK * BLOCK;
            let common = common_len(run, tokens);
            // A block counts only when all the blocks before it match and are held.
            if *t == tenant && common > start && self.has_chain(tenant, &run[..start]) {
                best = best.max(common);
            }
        }
        best
    }

    fn has_chain(&self, tenant: u8, run: &[u32]) -> bool {
        (BLOCK..=run.len())
            .step_by(BLOCK)
            .all(|n| self.held.contains_key(&(tenant, run[..n].to_vec())))
    }

    fn insert(&mut self, tenant: u8, tokens: &[u32], value: u64) {
        for end in (0..tokens.len())
            .step_by(BLOCK)
            .map(|s| (s + BLOCK).min(tokens.len()))
        {
            let start = (end - 1) / BLOCK * BLOCK;
            let run = tokens[..end].to_vec();
            let longer = self.held.keys().any(|(t, k)| {
                *t == tenant && k.len() <= start + BLOCK && k.len() >= end && k[..end] == run[..]
            });
            if longer {
                continue;
            }
            let shorter: Vec<_> = self
                .held
                .keys()
                .filter(|(t, k)| {
                    *t == tenant && k.len() > start && k.len() < end && run[..k.len()] == k[..]
                })
                .cloned()
                .collect();
            for key in shorter {
                self.held.remove(&key);
            }
            self.held.insert((tenant, run), value);
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u8, Vec<u32>),
    Lookup(u8, Vec<u32>),
    Evict(usize),
}

fn op() -> impl Strategy<Value = Op> {
    // Few symbols, so that prefixes are shared often.
    let tokens = || prop::collection::vec(0..3u32, 1..11);
    prop_oneof![
        3 => (0..2u8, tokens()).prop_map(|(t, v)| Op::Insert(t, v)),
        3 => (0..2u8, tokens()).prop_map(|(t, v)| Op::Lookup(t, v)),
        1 => any::<usize>().prop_map(Op::Evict),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn agrees_with_a_naive_map(ops in prop::collection::vec(op(), 1..80)) {
        let names = [namespace("0"), namespace("1")];
        let mut tree: PrefixTree<(u8, Vec<u32>)> = PrefixTree::new(BLOCK);
        let mut naive = Naive::default();
        for op in ops {
            match op {
                Op::Insert(t, tokens) => {
                    tree.insert(&names[usize::from(t)], &tokens, |i| {
                        (t, tokens[..((i + 1) * BLOCK).min(tokens.len())].to_vec())
                    });
                    naive.insert(t, &tokens, 0);
                }
                Op::Lookup(t, tokens) => {
                    let found = tree.lookup(&names[usize::from(t)], &tokens);
                    prop_assert_eq!(found.tokens, naive.longest(t, &tokens));
                    // Every value found is the one of exactly these tokens.
                    for (i, id) in found.full.iter().enumerate() {
                        let (tenant, run) = tree.get(*id).unwrap();
                        prop_assert_eq!((*tenant, &run[..]), (t, &tokens[..(i + 1) * BLOCK]));
                    }
                    if let Some(partial) = found.partial {
                        let (tenant, run) = tree.get(partial.node).unwrap();
                        prop_assert_eq!(*tenant, t);
                        prop_assert_eq!(&run[..found.tokens], &tokens[..found.tokens]);
                    }
                }
                Op::Evict(pick) => {
                    let mut ids: Vec<NodeId> = tree.nodes().collect();
                    ids.sort_unstable();
                    if ids.is_empty() { continue; }
                    let id = ids[pick % ids.len()];
                    if let Some(key) = tree.evict(id) {
                        let children = naive.held.keys().any(|(t, k)| *t == key.0 && k.len() > key.1.len() && k[..key.1.len()] == key.1[..] && key.1.len() % BLOCK == 0);
                        prop_assert!(!children, "evicted a parent");
                        prop_assert!(naive.held.remove(&key).is_some());
                    }
                }
            }
            tree.check_conservation().unwrap();
            prop_assert_eq!(tree.len(), naive.held.len());
        }
    }
}
