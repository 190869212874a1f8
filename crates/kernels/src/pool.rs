//! A pool of threads for many short parallel regions.
//!
//! A decoding step is several hundred regions of tens to hundreds of microseconds each, one after another, so what
//! counts is the cost of opening and closing a region. The pool is built for that alone:
//!
//! * The calling thread takes part as worker 0; a pool of one thread has no thread of its own.
//! * A region is opened by one atomic store. Workers that are still spinning from the last region join at once;
//!   parked ones are woken, and never more than there are tasks for.
//! * Tasks are claimed by an atomic counter, so an uneven task or a preempted thread delays only itself.
//! * A region is closed when its tasks are used up: a worker that has not joined by then finds the door shut. Nobody
//!   waits for a thread that the scheduler has not run yet.
//! * Between regions a worker spins for [`SPIN_ROUNDS`] and then parks; an idle pool uses no CPU time.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};

#[cfg(test)]
mod tests;

/// How often a worker looks for a new region before it parks: about 50 µs on current x86 machines, which bridges the
/// serial work between two regions of a step but not the wait for the next request.
pub const SPIN_ROUNDS: u32 = if cfg!(miri) { 2 } else { 1500 };

/// A task of a parallel region panicked. The region has ended, and the pool can be used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerPanic {
    /// The first panic's message, or a note that it had none.
    pub message: String,
}

impl std::fmt::Display for WorkerPanic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a task of a parallel region panicked: {}", self.message)
    }
}

impl std::error::Error for WorkerPanic {}

/// Number of threads worth starting: the CPUs that this process may run on, by its affinity mask and its container's
/// CPU quota (rounded up), and at least one.
pub fn available_threads() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Threads that run sub-millisecond parallel regions. See the [module](self) for how.
///
/// Regions of one pool run one after another: a second thread that calls [`ThreadPool::run`] waits its turn.
pub struct ThreadPool {
    shared: Arc<Shared>,
    /// Held for the length of a region.
    turn: Mutex<()>,
    /// Handles by which parked workers are woken, worker 1 first.
    wakers: Vec<Thread>,
    handles: Vec<JoinHandle<()>>,
}

/// Keeps what different threads write on different cache lines (two, since lines are prefetched in pairs).
#[repr(align(128))]
struct Apart<T>(T);

/// A region's closure with its lifetime erased: valid while the region is open or a worker is inside it.
type Function = *const (dyn Fn(usize, usize) + Sync);

/// What one region runs.
struct Job {
    function: Function,
    tasks: usize,
}

struct Shared {
    /// The door: see [`OPEN`], [`STOP`], [`INSIDE`].
    door: Apart<AtomicU64>,
    /// Next task to claim; at or above `tasks` nothing is left.
    next: Apart<AtomicUsize>,
    job: Apart<UnsafeCell<Job>>,
    /// `parked[i]` is set while worker `i + 1` sleeps or is about to.
    parked: Vec<Apart<AtomicBool>>,
    /// Set while the caller sleeps until the last worker has left.
    caller_waits: AtomicBool,
    caller_lock: Mutex<()>,
    caller_wakes: Condvar,
    panic: Mutex<Option<String>>,
}

// SAFETY: `job` is written only by the thread that holds `turn`, while the door is shut and nobody is inside, and read
// only by threads that came in through the door; the door's release and acquire order the two. The closure behind the
// pointer is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the closure pointer is never used for anything but calls through a shared reference.
unsafe impl Send for Shared {}

/// The door's lowest bit: a region is open and workers may come in.
const OPEN: u64 = 1;
/// The pool is being dropped: workers end.
const STOP: u64 = 2;
/// One worker inside the region; the number of them is the door's bits 2 to 31.
const INSIDE: u64 = 4;
const INSIDE_MASK: u64 = ((1 << 32) - 1) & !(OPEN | STOP);
/// The number of the region, in the door's upper half: a worker that has seen a region's end does not join it again.
const REGION: u64 = 1 << 32;

thread_local! {
    /// The pool (by the address of its shared state) and the worker number this thread runs a task for.
    static INSIDE_TASK: Cell<Option<(usize, usize)>> = const { Cell::new(None) };
}

impl ThreadPool {
    /// A pool of `threads` threads, the caller of [`ThreadPool::run`] included; 0 is taken as 1. Threads that the
    /// system refuses to start are left out, so [`ThreadPool::threads`] may be less.
    pub fn new(threads: usize) -> Self {
        fn nothing(_: usize, _: usize) {}
        let workers = threads.clamp(1, 1 << 20) - 1;
        let shared = Arc::new(Shared {
            door: Apart(AtomicU64::new(0)),
            next: Apart(AtomicUsize::new(0)),
            job: Apart(UnsafeCell::new(Job {
                function: &nothing,
                tasks: 0,
            })),
            parked: (0..workers)
                .map(|_| Apart(AtomicBool::new(false)))
                .collect(),
            caller_waits: AtomicBool::new(false),
            caller_lock: Mutex::new(()),
            caller_wakes: Condvar::new(),
            panic: Mutex::new(None),
        });
        let mut handles = Vec::with_capacity(workers);
        for worker in 1..=workers {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name(format!("neap-{worker}"));
            match builder.spawn(move || shared.work(worker)) {
                Ok(handle) => handles.push(handle),
                Err(_) => break,
            }
        }
        let wakers = handles
            .iter()
            .map(|handle| handle.thread().clone())
            .collect();
        Self {
            shared,
            turn: Mutex::new(()),
            wakers,
            handles,
        }
    }

    /// Threads that share a region's tasks, the calling one included.
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Runs `f(task, worker)` once for every `task` in `0..tasks` and returns when all have ended. `worker` is in
    /// `0..self.threads()`, and no two calls that run at the same time have the same one, so it may index scratch
    /// space. Tasks start in rising order.
    ///
    /// Called from inside a task (of any pool) it runs everything on the calling thread, so nesting cannot deadlock.
    ///
    /// # Errors
    /// [`WorkerPanic`] if a task panicked: tasks not yet started are dropped, and all threads have left the region.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize, usize) + Sync)) -> Result<(), WorkerPanic> {
        if tasks == 0 {
            return Ok(());
        }
        let me = Arc::as_ptr(&self.shared) as usize;
        if let Some((pool, worker)) = INSIDE_TASK.get() {
            return run_inline(tasks, if pool == me { worker } else { 0 }, f);
        }
        let _turn = lock(&self.turn);
        let _inside = InsideTask::enter(me, 0);
        if tasks == 1 || self.handles.is_empty() {
            return run_inline(tasks, 0, f);
        }
        self.open(tasks, f);
        self.shared.claim_tasks(0, tasks, f);
        self.shared.close();
        match lock(&self.shared.panic).take() {
            Some(message) => Err(WorkerPanic { message }),
            None => Ok(()),
        }
    }

    /// Opens a region and wakes as many parked workers as it has tasks for.
    fn open(&self, tasks: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased. The pointer is used only between here and the end of `close`, which
        // returns after the last worker has left, and `run` does not return or unwind in between.
        let function = unsafe {
            std::mem::transmute::<
                *const (dyn Fn(usize, usize) + Sync + '_),
                *const (dyn Fn(usize, usize) + Sync + 'static),
            >(std::ptr::from_ref(f))
        };
        // SAFETY: the door is shut and nobody is inside (the last `close` saw to it), and this thread holds `turn`.
        unsafe { *shared.job.0.get() = Job { function, tasks } };
        shared.next.0.store(0, Ordering::Relaxed);
        let door = shared.door.0.load(Ordering::Relaxed);
        debug_assert_eq!(door & (OPEN | INSIDE_MASK), 0);
        shared.door.0.store(
            (door & !(OPEN | INSIDE_MASK)).wrapping_add(REGION) | OPEN,
            Ordering::Release,
        );
        // Pairs with the fence in `Shared::park`: either this thread sees that the worker sleeps, or the worker sees
        // that the door is open.
        fence(Ordering::SeqCst);
        let wanted = (tasks - 1).min(self.wakers.len());
        for (parked, waker) in shared.parked.iter().zip(&self.wakers).take(wanted) {
            if parked.0.load(Ordering::Relaxed) && parked.0.swap(false, Ordering::Relaxed) {
                waker.unpark();
            }
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.door.0.fetch_or(STOP, Ordering::SeqCst);
        for waker in &self.wakers {
            waker.unpark();
        }
        for handle in self.handles.drain(..) {
            // A worker catches every panic of a task, so this fails only if the panic's payload panics in its own
            // drop; there is nothing to do about that here.
            let _ = handle.join();
        }
    }
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadPool")
            .field("threads", &self.threads())
            .finish()
    }
}

impl Shared {
    /// A worker's life: wait for a region, take part, leave.
    fn work(&self, worker: usize) {
        let me = std::ptr::from_ref(self) as usize;
        let mut last_region = 0;
        while let Some(door) = self.wait_for_region(worker, last_region) {
            last_region = door / REGION;
            let Some((tasks, function)) = self.enter(door) else {
                continue;
            };
            {
                let _inside = InsideTask::enter(me, worker);
                // SAFETY: this thread is inside, so the caller has not returned and its closure is alive.
                self.claim_tasks(worker, tasks, unsafe { &*function });
            }
            self.leave();
        }
    }

    /// Waits until a region other than `last_region` is open and returns the door; nothing when the pool ends.
    fn wait_for_region(&self, worker: usize, last_region: u64) -> Option<u64> {
        let mut rounds = 0;
        loop {
            let door = self.door.0.load(Ordering::Relaxed);
            if door & STOP != 0 {
                return None;
            }
            if door & OPEN != 0 && door / REGION != last_region {
                return Some(door);
            }
            if rounds < SPIN_ROUNDS {
                rounds += 1;
                std::hint::spin_loop();
            } else {
                self.park(worker, last_region);
                rounds = 0;
            }
        }
    }

    fn park(&self, worker: usize, last_region: u64) {
        let Some(Apart(parked)) = self.parked.get(worker - 1) else {
            return;
        };
        parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let door = self.door.0.load(Ordering::Relaxed);
        let wanted = door & OPEN != 0 && door / REGION != last_region;
        if !wanted && door & STOP == 0 {
            thread::park();
        }
        parked.store(false, Ordering::Relaxed);
    }

    /// Goes in through the door if the region seen is still open, and returns what to run.
    fn enter(&self, mut door: u64) -> Option<(usize, Function)> {
        let region = door / REGION;
        while door & OPEN != 0 && door / REGION == region {
            match self.door.0.compare_exchange_weak(
                door,
                door + INSIDE,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    // SAFETY: this thread is inside, so nobody writes the job; the acquire above orders its writing
                    // before this.
                    let job = unsafe { &*self.job.0.get() };
                    return Some((job.tasks, job.function));
                }
                Err(now) => door = now,
            }
        }
        None
    }

    fn leave(&self) {
        let door = self.door.0.fetch_sub(INSIDE, Ordering::SeqCst) - INSIDE;
        if door & (OPEN | INSIDE_MASK) == 0 && self.caller_waits.load(Ordering::SeqCst) {
            let _held = lock(&self.caller_lock);
            self.caller_wakes.notify_one();
        }
    }

    /// Runs tasks until none is left. A panic is kept, and drops the tasks not yet claimed.
    fn claim_tasks(&self, worker: usize, tasks: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.0.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                f(task, worker);
            }
        }));
        if let Err(payload) = outcome {
            self.next.0.store(tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert_with(|| panic_message(payload.as_ref()));
            drop_quietly(payload);
        }
    }

    /// Shuts the door and waits until everyone has left: a short spin, then asleep.
    fn close(&self) {
        self.door.0.fetch_and(!OPEN, Ordering::SeqCst);
        for _ in 0..SPIN_ROUNDS {
            if self.door.0.load(Ordering::Acquire) & INSIDE_MASK == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        let mut held = lock(&self.caller_lock);
        self.caller_waits.store(true, Ordering::SeqCst);
        while self.door.0.load(Ordering::SeqCst) & INSIDE_MASK != 0 {
            held = self
                .caller_wakes
                .wait(held)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_waits.store(false, Ordering::SeqCst);
    }
}

/// Marks the thread as running a task, and restores what it was before.
struct InsideTask(Option<(usize, usize)>);

impl InsideTask {
    fn enter(pool: usize, worker: usize) -> Self {
        Self(INSIDE_TASK.replace(Some((pool, worker))))
    }
}

impl Drop for InsideTask {
    fn drop(&mut self) {
        INSIDE_TASK.set(self.0);
    }
}

fn run_inline(
    tasks: usize,
    worker: usize,
    f: &(dyn Fn(usize, usize) + Sync),
) -> Result<(), WorkerPanic> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        (0..tasks).for_each(|task| f(task, worker))
    }));
    outcome.map_err(|payload| {
        let message = panic_message(payload.as_ref());
        drop_quietly(payload);
        WorkerPanic { message }
    })
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "(no message)".to_owned()
    }
}

/// Drops a panic's payload, whose own drop may panic and must not unwind out of the pool.
fn drop_quietly(payload: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
