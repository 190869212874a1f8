//! Which weights stay in memory when not all of them fit.
//!
//! A forward pass uses the layers in turn and then the output matrix: these are the *units*. A unit that is *held* is
//! charged to the budget. The others are *streamed*: the system is asked to read one ahead of its use, and its pages
//! are given back after it. Only a window is charged for them: the unit in use, and the next one that is being read.
//!
//! Every pass uses every unit once, so none is worth more than another, and least-recently-used would be the worst
//! choice of all (each unit would be let go of just before it is needed). The streamed ones are a fixed set, spread
//! evenly, so that one is read while the held ones before it are computed.

/// What one unit costs, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct UnitBytes {
    /// Its matrices in the file: what one pass reads if it is streamed.
    pub file: u64,
    /// Its matrices as they are held: in the file's pages, or repacked.
    pub held: u64,
}

/// Which units are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Residency {
    is_held: Vec<bool>,
}

impl Residency {
    /// All of `units` held.
    pub fn whole(units: usize) -> Self {
        Self {
            is_held: vec![true; units],
        }
    }

    /// `streamed` of `units` streamed. What streams in one choice does so in every choice that streams more.
    fn streaming(units: usize, streamed: usize) -> Self {
        let mut residency = Self::whole(units);
        for unit in spread_order(units).into_iter().take(streamed) {
            residency.is_held[unit] = false;
        }
        residency
    }

    /// The choice with one streamed unit less, and which that is; none if all are held.
    pub fn with_one_more(&self) -> Option<(usize, Self)> {
        let last = self.streamed().checked_sub(1)?;
        let unit = spread_order(self.is_held.len())[last];
        let mut more = self.clone();
        more.is_held[unit] = true;
        Some((unit, more))
    }

    /// The choice with the fewest streamed units that costs at most `room_bytes`; none if not even the window fits.
    pub fn fitting(units: &[UnitBytes], room_bytes: u64) -> Option<Self> {
        Self::choices(units).find(|choice| choice.bytes(units) <= room_bytes)
    }

    /// The choice that costs the fewest bytes.
    pub fn least(units: &[UnitBytes]) -> Self {
        Self::choices(units)
            .min_by_key(|choice| choice.bytes(units))
            .unwrap_or_else(|| Self::whole(0))
    }

    fn choices(units: &[UnitBytes]) -> impl Iterator<Item = Self> {
        let n = units.len();
        (0..=n).map(move |streamed| Self::streaming(n, streamed))
    }

    /// Bytes to be charged: of what is held, and of the window.
    pub fn bytes(&self, units: &[UnitBytes]) -> u64 {
        let held = self.of(units, true).map(|unit| unit.held).sum::<u64>();
        held + self.window_bytes(units)
    }

    /// Bytes of the two largest streamed units.
    pub fn window_bytes(&self, units: &[UnitBytes]) -> u64 {
        let mut sizes: Vec<u64> = self.of(units, false).map(|unit| unit.file).collect();
        sizes.sort_unstable_by_key(|&bytes| std::cmp::Reverse(bytes));
        sizes.iter().take(2).sum()
    }

    /// Bytes that one pass reads from the file.
    pub fn streamed_bytes(&self, units: &[UnitBytes]) -> u64 {
        self.of(units, false).map(|unit| unit.file).sum()
    }

    fn of<'a>(
        &'a self,
        units: &'a [UnitBytes],
        is_held: bool,
    ) -> impl Iterator<Item = &'a UnitBytes> {
        let wanted = move |&(_, &held): &(&UnitBytes, &bool)| held == is_held;
        units
            .iter()
            .zip(&self.is_held)
            .filter(wanted)
            .map(|(unit, _)| unit)
    }

    /// Whether `unit` is held.
    pub fn is_held(&self, unit: usize) -> bool {
        self.is_held[unit]
    }

    /// Streamed units.
    pub fn streamed(&self) -> usize {
        self.is_held.iter().filter(|&&held| !held).count()
    }

    /// The streamed unit that is used next after `unit`, in this pass or the one after it; itself if it is the only one.
    pub fn next_streamed(&self, unit: usize) -> Option<usize> {
        let n = self.is_held.len();
        (1..=n)
            .map(|ahead| (unit + ahead) % n)
            .find(|&next| !self.is_held[next])
    }
}

/// The numbers below `n` in an order of which every beginning is spread almost evenly, seen as a circle: multiples of
/// the golden ratio, by the three-gap theorem.
fn spread_order(n: usize) -> Vec<usize> {
    const GOLDEN: f64 = 0.618_033_988_749_894_8;
    let mut is_taken = vec![false; n];
    let mut order = Vec::with_capacity(n);
    let mut turns = 0.0;
    while order.len() < n {
        let at = ((turns % 1.0) * n as f64) as usize;
        if !std::mem::replace(&mut is_taken[at], true) {
            order.push(at);
        }
        turns += GOLDEN;
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn units(files: &[u64]) -> Vec<UnitBytes> {
        let unit = |&file| UnitBytes {
            file,
            held: file + 1,
        };
        files.iter().map(unit).collect()
    }

    #[test]
    fn streamed_units_are_spread_and_nested() {
        assert_eq!(spread_order(8), [0, 4, 1, 6, 3, 5, 2, 7]);
        for n in 1..40 {
            let mut order = spread_order(n);
            for streamed in 1..=n {
                let mut at = order[..streamed].to_vec();
                at.sort_unstable();
                let gap = |i: usize| (at[(i + 1) % streamed] + n - at[i] - 1) % n + 1;
                let widest = (0..streamed).map(gap).max();
                assert!(widest <= Some(3 * n.div_ceil(streamed)), "{n}: {at:?}");
            }
            order.sort_unstable();
            assert_eq!(order, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_window_is_the_unit_in_use_and_the_next() {
        let units = units(&[10, 10, 10, 10]);
        let all_streamed = Residency::streaming(4, 4);
        assert_eq!(all_streamed.window_bytes(&units), 20);
        assert_eq!(all_streamed.bytes(&units), 20);
        assert_eq!(all_streamed.streamed_bytes(&units), 40);
        assert_eq!(Residency::streaming(4, 2).bytes(&units), 22 + 20);
        assert_eq!(Residency::streaming(4, 1).bytes(&units), 33 + 10);
        assert_eq!(Residency::least(&units), all_streamed);
    }

    #[test]
    fn the_unit_that_was_streamed_last_is_held_first() {
        for streamed in 1..=8 {
            let (unit, more) = Residency::streaming(8, streamed).with_one_more().unwrap();
            assert_eq!(more, Residency::streaming(8, streamed - 1));
            assert!(more.is_held(unit) && !Residency::streaming(8, streamed).is_held(unit));
        }
        assert_eq!(Residency::whole(8).with_one_more(), None);
    }

    #[test]
    fn the_next_streamed_unit_may_be_in_the_next_pass() {
        let residency = Residency {
            is_held: vec![false, true, true, false, true],
        };
        assert_eq!(residency.next_streamed(0), Some(3));
        assert_eq!(residency.next_streamed(1), Some(3));
        assert_eq!(residency.next_streamed(3), Some(0));
        assert_eq!(Residency::whole(3).next_streamed(1), None);
    }

    proptest! {
        #[test]
        fn a_fitting_choice_fits_and_streams_no_more_than_it_must(
            files in proptest::collection::vec(0u64..100, 1..20),
            room in 0u64..2000,
        ) {
            let units = units(&files);
            let chosen = Residency::fitting(&units, room);
            let fits = |streamed| Residency::streaming(units.len(), streamed).bytes(&units) <= room;
            match &chosen {
                Some(chosen) => {
                    prop_assert!(chosen.bytes(&units) <= room);
                    prop_assert!((0..chosen.streamed()).all(|fewer| !fits(fewer)));
                }
                None => prop_assert!(Residency::least(&units).bytes(&units) > room),
            }
            for streamed in 0..=units.len() {
                prop_assert_eq!(Residency::streaming(units.len(), streamed).streamed(), streamed);
            }
        }
    }
}
