//! Slots of one size, cut from large mapped regions.
//!
//! All slots of an arena have one size, so there is no external fragmentation: any free slot serves any
//! request. The lowest region with a free slot is used first, so that the highest ones run empty; a
//! region whose slots are all free is unmapped, but for one that is kept against see-sawing.

use std::collections::BTreeSet;
use std::io;
use std::ptr::NonNull;

use crate::region::Region;

/// Address space of one region, unless one slot is larger. Untouched pages cost nothing.
const REGION_TARGET_BYTES: usize = if cfg!(any(miri, test)) {
    4 * 4096
} else {
    64 << 20
};

/// The place of a slot: region and index within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotId {
    region: usize,
    index: usize,
}

/// Bytes of a huge page, where the system has them.
const HUGE_PAGE_BYTES: usize = 2 << 20;

struct Slots {
    memory: Region,
    /// Where the first slot begins.
    first: usize,
    free: Vec<usize>,
    taken: Vec<bool>,
}

/// See the module's description.
pub(crate) struct Arena {
    slot_bytes: usize,
    slots_per_region: usize,
    regions: Vec<Option<Slots>>,
    with_free: BTreeSet<usize>,
    taken: usize,
}

impl Arena {
    /// An arena of slots of `slot_bytes` (a positive multiple of the page size). Maps nothing yet.
    pub(crate) fn new(slot_bytes: usize) -> Self {
        Self {
            slot_bytes,
            slots_per_region: (REGION_TARGET_BYTES / slot_bytes).max(1),
            regions: Vec::new(),
            with_free: BTreeSet::new(),
            taken: 0,
        }
    }

    pub(crate) fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    pub(crate) fn mapped_bytes(&self) -> usize {
        self.regions
            .iter()
            .flatten()
            .map(|r| r.memory.bytes())
            .sum()
    }

    /// Takes a slot, whose bytes are all zero.
    pub(crate) fn take(&mut self) -> io::Result<(SlotId, NonNull<u8>)> {
        let region = match self.with_free.first() {
            Some(&region) => region,
            None => self.map_region()?,
        };
        let slot_bytes = self.slot_bytes;
        let slots = self.regions[region]
            .as_mut()
            .expect("region with free slots is mapped");
        let index = slots.free.pop().expect("region with free slots has one");
        slots.taken[index] = true;
        if slots.free.is_empty() {
            self.with_free.remove(&region);
        }
        self.taken += 1;
        // SAFETY: `first` leaves room for `slots_per_region` slots, and index is less, so the offset lies inside the region.
        let base = unsafe { slots.memory.base().add(slots.first + index * slot_bytes) };
        Ok((SlotId { region, index }, base))
    }

    /// Puts a slot back. Its bytes are zero again and nobody refers to them.
    pub(crate) fn put_back(&mut self, slot: SlotId) {
        let slots = self.regions[slot.region]
            .as_mut()
            .expect("region of a taken slot is mapped");
        assert!(slots.taken[slot.index], "a slot is put back once");
        slots.taken[slot.index] = false;
        slots.free.push(slot.index);
        self.taken -= 1;
        let is_empty = slots.free.len() == self.slots_per_region;
        self.with_free.insert(slot.region);
        if is_empty && self.with_free.len() > 1 {
            self.with_free.remove(&slot.region);
            self.regions[slot.region] = None;
        }
    }

    fn map_region(&mut self) -> io::Result<usize> {
        let bytes = self.slots_per_region * self.slot_bytes;
        let (memory, first) = match self.slot_bytes.is_multiple_of(HUGE_PAGE_BYTES) {
            true => map_huge(bytes)?,
            false => (Region::map(bytes)?, 0),
        };
        let slots = Slots {
            memory,
            first,
            free: (0..self.slots_per_region).rev().collect(),
            taken: vec![false; self.slots_per_region],
        };
        let region = match self.regions.iter().position(Option::is_none) {
            Some(hole) => hole,
            None => {
                self.regions.push(None);
                self.regions.len() - 1
            }
        };
        self.regions[region] = Some(slots);
        self.with_free.insert(region);
        Ok(region)
    }

    /// The conservation law: free + taken = total in every region, each free slot listed once, and the
    /// count of taken slots is their number.
    pub(crate) fn check_conservation(&self) -> Result<(), String> {
        let mut taken = 0;
        for (number, slots) in self.regions.iter().enumerate() {
            let Some(slots) = slots else {
                if self.with_free.contains(&number) {
                    return Err(format!("unmapped region {number} is listed as free"));
                }
                continue;
            };
            let mut seen = slots.taken.clone();
            for &index in &slots.free {
                if std::mem::replace(&mut seen[index], true) {
                    return Err(format!(
                        "slot {number}/{index} is free twice, or free and taken"
                    ));
                }
            }
            if seen.contains(&false) {
                return Err(format!("region {number} has lost a slot"));
            }
            if self.with_free.contains(&number) == slots.free.is_empty() {
                return Err(format!("region {number} is on the wrong list"));
            }
            taken += slots.taken.iter().filter(|&&t| t).count();
        }
        if taken != self.taken {
            return Err(format!(
                "{taken} slots are taken, {} are counted",
                self.taken
            ));
        }
        Ok(())
    }
}

/// A region with room for `bytes` bytes from a huge page's beginning on, and where that is.
///
/// Slots of whole huge pages are made of them: attention reads them faster (fewer pages to look up), and they go back
/// whole. Others are not: a huge page of which a part is given back stays the process's, though it no longer counts,
/// until the system is short of memory.
fn map_huge(bytes: usize) -> io::Result<(Region, usize)> {
    let memory = Region::map(bytes + HUGE_PAGE_BYTES)?;
    memory.advise_huge();
    let first = memory.base().addr().get().wrapping_neg() % HUGE_PAGE_BYTES;
    Ok((memory, first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 3 } else { 128 }, failure_persistence: None, ..Default::default() })]

        /// The arena against a list of (slot, mark): no slot is given twice, none reaches into another, what comes is
        /// zero, and no more than one empty region stays mapped.
        #[test]
        fn agrees_with_a_naive_arena(pages in 1..6usize, ops in prop::collection::vec((any::<bool>(), any::<u8>()), 1..if cfg!(miri) { 20 } else { 200 })) {
            let slot_bytes = pages * 4096;
            let mut arena = Arena::new(slot_bytes);
            let mut held: Vec<(SlotId, NonNull<u8>, u8)> = Vec::new();
            for (takes, pick) in ops {
                if takes || held.is_empty() {
                    let (slot, base) = arena.take().unwrap();
                    // SAFETY: the slot is ours until it is put back, and `slot_bytes` long.
                    let bytes = unsafe { std::slice::from_raw_parts_mut(base.as_ptr(), slot_bytes) };
                    prop_assert!(bytes.iter().all(|&byte| byte == 0));
                    bytes.fill(pick | 1);
                    held.push((slot, base, pick | 1));
                } else {
                    let (slot, base, mark) = held.swap_remove(usize::from(pick) % held.len());
                    // SAFETY: as above.
                    let bytes = unsafe { std::slice::from_raw_parts_mut(base.as_ptr(), slot_bytes) };
                    prop_assert!(bytes.iter().all(|&byte| byte == mark));
                    bytes.fill(0);
                    arena.put_back(slot);
                }
                prop_assert_eq!(arena.check_conservation(), Ok(()));
                prop_assert_eq!(arena.taken(), held.len());
                let starts: HashSet<_> = held.iter().map(|(_, base, _)| *base).collect();
                prop_assert_eq!(starts.len(), held.len());
                let region_bytes = (REGION_TARGET_BYTES / slot_bytes).max(1) * slot_bytes;
                let regions: HashSet<usize> = held.iter().map(|(slot, ..)| slot.region).collect();
                prop_assert!(arena.mapped_bytes() <= (regions.len() + 1) * region_bytes);
            }
        }
    }
}
