//! Dividing a mutable slice among the tasks of a region.

use crate::Context;
use crate::pool::WorkerPanic;
use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice of which tasks take disjoint parts.
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: parts are handed out only by `part`, whose caller promises that they do not overlap, so sharing this between
// threads is as sending `&mut [T]` pieces to them.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            _slice: PhantomData,
        }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No two parts that live at the same time overlap.
    ///
    /// # Panics
    /// If the range is not inside the slice.
    #[expect(
        clippy::mut_from_ref,
        reason = "that is what the safety contract is about"
    )]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "a part of the slice"
        );
        // SAFETY: inside the slice that this was made from, which is borrowed mutably for 'a; disjoint from other parts
        // by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Runs `f(part, range)` on consecutive parts of `x` of about `grain` elements (a multiple of `grain`), on the calling
/// thread alone if there is only one.
pub(crate) fn in_pieces<T: Send>(
    ctx: Context<'_>,
    x: &mut [T],
    grain: usize,
    f: impl Fn(&mut [T], Range<usize>) + Sync,
) -> Result<(), WorkerPanic> {
    let len = x.len();
    let tasks = len / grain;
    if tasks <= 1 || ctx.pool.threads() == 1 {
        f(x, 0..len);
        return Ok(());
    }
    let shared = SharedSlice::new(x);
    ctx.pool.run(tasks, &|task, _| {
        let end = if task + 1 == tasks {
            len
        } else {
            (task + 1) * grain
        };
        let range = task * grain..end;
        // SAFETY: the tasks' ranges are disjoint.
        f(unsafe { shared.part(range.clone()) }, range);
    })
}
