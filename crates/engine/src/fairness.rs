//! Whose turn it is: tenants share the engine equally, however much each of them asks for.
//!
//! Virtual token counters (Sheng et al. 2024, "Fairness in Serving Large Language Models"): each tenant has a counter
//! of the tokens that were computed and produced for it, and of those who wait the tenant with the least is next. A
//! tenant that comes back counts as if it had had what the least served of the present ones had, so that nobody saves
//! up. Between two tenants that both wait all the time, the counters differ by no more than what fits the engine at
//! once, so each gets its turn; within a tenant the order of rank holds, where waiting raises the rank.

use std::collections::HashMap;

/// A request that waits, as [`Shares::order`] sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting<'a> {
    /// Whose it is.
    pub tenant: &'a str,
    /// Its place within its tenant: the least first.
    pub rank: (i64, u64),
    /// Tokens that it takes at least.
    pub cost_tokens: u64,
}

/// What each tenant had so far.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    served_tokens: HashMap<String, u64>,
}

impl Shares {
    /// A request of `tenant` has come, while those of the `present` tenants are in the engine.
    pub fn enter<'a>(&mut self, tenant: &str, present: impl IntoIterator<Item = &'a str>) {
        let mut is_present = false;
        let mut least: Option<u64> = None;
        for other in present {
            is_present |= other == tenant;
            let served = self.served(other);
            least = Some(least.map_or(served, |l| l.min(served)));
        }
        if is_present {
            return;
        }
        let Some(least) = least else {
            // Nobody to be compared with: what was is forgotten.
            self.served_tokens.clear();
            return;
        };
        // Whoever is gone and below this would be lifted anyway.
        self.served_tokens.retain(|_, served| *served >= least);
        let served = self.served_tokens.entry(tenant.to_owned()).or_insert(least);
        *served = (*served).max(least);
    }

    /// So many tokens were computed and produced for `tenant`.
    pub fn charge(&mut self, tenant: &str, tokens: u64) {
        match self.served_tokens.get_mut(tenant) {
            Some(served) => *served += tokens,
            None => {
                self.served_tokens.insert(tenant.to_owned(), tokens);
            }
        }
    }

    fn served(&self, tenant: &str) -> u64 {
        self.served_tokens.get(tenant).copied().unwrap_or(0)
    }

    /// The order in which those who wait are to be taken in, as indices: again and again the first of the tenant that
    /// had least, what was just taken in counted as had.
    #[must_use]
    pub fn order(&self, waiting: &[Waiting<'_>]) -> Vec<usize> {
        let mut queues: Vec<(&str, u64, Vec<usize>)> = Vec::new();
        let mut index_of: HashMap<&str, usize> = HashMap::new();
        for (index, request) in waiting.iter().enumerate() {
            let queue = *index_of.entry(request.tenant).or_insert_with(|| {
                queues.push((request.tenant, self.served(request.tenant), Vec::new()));
                queues.len() - 1
            });
            queues[queue].2.push(index);
        }
        for (_, _, queue) in &mut queues {
            // The last is taken first.
            queue.sort_by_key(|&index| std::cmp::Reverse(waiting[index].rank));
        }
        let mut order = Vec::with_capacity(waiting.len());
        loop {
            let next = queues
                .iter_mut()
                .filter_map(|(_, served, queue)| {
                    let &first = queue.last()?;
                    Some(((*served, waiting[first].rank), served, queue))
                })
                .min_by_key(|(key, ..)| *key);
            let Some((_, served, queue)) = next else {
                return order;
            };
            if let Some(index) = queue.pop() {
                *served += waiting[index].cost_tokens;
                order.push(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn waiting<'a>(tenant: &'a str, rank: i64, cost_tokens: u64) -> Waiting<'a> {
        Waiting {
            tenant,
            rank: (rank, 0),
            cost_tokens,
        }
    }

    #[test]
    fn a_flood_does_not_keep_others_waiting() {
        let mut shares = Shares::default();
        shares.enter("flood", []);
        let mut queue: Vec<Waiting<'_>> = (0..50).map(|i| waiting("flood", i, 10)).collect();
        shares.charge("flood", 5000);
        shares.enter("late", ["flood"]);
        queue.push(waiting("late", 99, 10));
        // Both had the same then: rank decides, and the flood's turn counts.
        assert_eq!(shares.order(&queue)[..3], [0, 50, 1]);
    }

    #[test]
    fn nobody_saves_up_while_away() {
        let mut shares = Shares::default();
        shares.enter("a", []);
        shares.charge("a", 1000);
        shares.enter("b", ["a"]);
        shares.charge("b", 10);
        let queue = [waiting("b", 0, 1), waiting("a", 1, 1)];
        assert_eq!(shares.order(&queue), [1, 0], "b began where a was");
    }

    #[test]
    fn rank_orders_within_a_tenant() {
        let queue = [waiting("a", 5, 1), waiting("a", -5, 1), waiting("a", 0, 1)];
        assert_eq!(Shares::default().order(&queue), [1, 2, 0]);
    }

    const TENANTS: [&str; 3] = ["a", "b", "c"];
    const MAX_COST: u64 = 40;

    proptest! {
        #[test]
        fn an_order_names_everybody_once_and_keeps_ranks(
            requests in proptest::collection::vec((0_usize..3, -50_i64..50, 1_u64..MAX_COST), 0..40),
            served in proptest::collection::vec(0_u64..500, 3),
        ) {
            let mut shares = Shares::default();
            for (tenant, tokens) in TENANTS.iter().zip(served) {
                shares.charge(tenant, tokens);
            }
            let queue: Vec<Waiting<'_>> = requests.iter().enumerate().map(|(i, &(t, rank, cost_tokens))| Waiting {
                tenant: TENANTS[t], rank: (rank, i as u64), cost_tokens,
            }).collect();
            let order = shares.order(&queue);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..queue.len()).collect::<Vec<_>>());
            let mut last: BTreeMap<&str, (i64, u64)> = BTreeMap::new();
            for &index in &order {
                let before = last.insert(queue[index].tenant, queue[index].rank);
                prop_assert!(before.is_none_or(|b| b < queue[index].rank));
            }
        }

        /// One place, an adversary that floods with the best rank, and others: everybody is served.
        #[test]
        fn nobody_starves(
            mine in proptest::collection::vec((1_usize..3, 0_usize..60, 1_u64..MAX_COST), 1..12),
            flood_cost in 1_u64..MAX_COST,
        ) {
            let mut shares = Shares::default();
            let mut asked: Vec<Waiting<'static>> = Vec::new();
            let mut count = 0;
            for turn in 0..1200 {
                let flooding = asked.iter().filter(|r| r.tenant == "a").count();
                let mut come: Vec<(&'static str, i64, u64)> = vec![("a", -1000, flood_cost); 3 - flooding];
                come.extend(mine.iter().filter(|m| m.1 == turn).map(|m| (TENANTS[m.0], 0, m.2)));
                for (tenant, rank, cost_tokens) in come {
                    shares.enter(tenant, asked.iter().map(|r| r.tenant));
                    asked.push(Waiting { tenant, rank: (rank, count), cost_tokens });
                    count += 1;
                }
                let next = asked.swap_remove(shares.order(&asked)[0]);
                shares.charge(next.tenant, next.cost_tokens);
            }
            prop_assert!(asked.iter().all(|r| r.tenant == "a"));
        }
    }
}
