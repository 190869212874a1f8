//! The thread that watches the outside world and moves the budget's limit.
//!
//! It only moves the number and tells why; giving back the bytes is the business of whoever holds them.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::decide::{Config, Decision, Governed, Own, Reason};
use super::files::SystemFiles;
use crate::budget::Budget;

/// Decisions kept for the log.
const LOG_LEN: usize = 256;
/// Stall within the trigger's window that wakes us: 5 %.
#[cfg(any(target_os = "linux", target_os = "android"))]
const TRIGGER_STALL_US: u64 = super::psi_trigger::WINDOW_US / 20;
/// Longest wait without looking whether to stop.
const SLICE: Duration = Duration::from_millis(200);

/// One change of the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogEntry {
    /// Milliseconds since the watch began.
    pub at_ms: u64,
    /// The limit before.
    pub before: u64,
    /// What was decided, and why.
    pub decision: Decision,
}

/// What a watch needs.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// Where to read.
    pub files: SystemFiles,
    /// Thresholds and rates.
    pub config: Config,
    /// Time between readings when nothing wakes us earlier.
    pub interval: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            files: SystemFiles::real(),
            config: Config::default(),
            interval: Duration::from_millis(500),
        }
    }
}

struct Shared {
    operator_limit: AtomicU64,
    mapped_bytes: AtomicU64,
    log: Mutex<VecDeque<LogEntry>>,
}

/// A running watch; it ends when dropped.
pub struct Watch {
    shared: Arc<Shared>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to watch. What `budget` allows at this moment is the operator's word.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn begin(budget: &Budget, options: WatchOptions) -> std::io::Result<Self> {
        let (limit, allowed) = (budget.limit(), budget.allowed());
        let shared = Arc::new(Shared {
            operator_limit: AtomicU64::new(allowed),
            mapped_bytes: AtomicU64::new(0),
            log: Mutex::new(VecDeque::new()),
        });
        let (stop, stopped) = channel();
        let (budget, inner) = (budget.clone(), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("neap-pressure".into())
            .spawn(move || {
                let mut sleeper = Sleeper::new(&options);
                let mut governed = Governed::new(options.config, limit);
                let start = Instant::now();
                loop {
                    let now_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                    step(&budget, &options, &inner, &mut governed, now_ms);
                    if sleeper.sleep(&stopped, options.interval) {
                        break;
                    }
                }
            })?;
        Ok(Self {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What the operator allows.
    #[must_use]
    pub fn operator_limit(&self) -> u64 {
        self.shared.operator_limit.load(Ordering::Relaxed)
    }

    /// Sets what the operator allows; followed within one reading.
    pub fn set_operator_limit(&self, bytes: u64) {
        self.shared.operator_limit.store(bytes, Ordering::Relaxed);
        if let Some(stop) = &self.stop {
            // A message on the channel is a wake-up; its closing is the stop.
            let _ = stop.send(());
        }
    }

    /// Tells how many of the charged bytes are mapped files, which the system can take back by itself.
    pub fn set_mapped_bytes(&self, bytes: u64) {
        self.shared.mapped_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The latest changes, oldest first.
    #[must_use]
    pub fn log(&self) -> Vec<LogEntry> {
        let log = self
            .shared
            .log
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        log.iter().copied().collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn step(
    budget: &Budget,
    options: &WatchOptions,
    shared: &Shared,
    governed: &mut Governed,
    now_ms: u64,
) {
    let mapped = shared.mapped_bytes.load(Ordering::Relaxed);
    let own = Own {
        anonymous: budget.charged().saturating_sub(mapped),
        operator_limit: shared.operator_limit.load(Ordering::Relaxed),
    };
    let before = governed.target();
    let decision = governed.decide(&options.files.read(), own, now_ms);
    if decision.reason == Reason::Steady {
        return;
    }
    budget.set_limit_under_pressure(decision.target, own.operator_limit);
    tracing::info!(
        before_bytes = before,
        after_bytes = decision.target,
        reason = %decision.reason,
        "the budget follows"
    );
    let mut log = shared.log.lock().unwrap_or_else(PoisonError::into_inner);
    if log.len() == LOG_LEN {
        log.pop_front();
    }
    log.push_back(LogEntry {
        at_ms: now_ms,
        before,
        decision,
    });
}

/// Sleeps until the interval is over, the kernel reports stalls, or someone wakes or stops us.
struct Sleeper {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    trigger: Option<super::psi_trigger::PsiTrigger>,
}

impl Sleeper {
    fn new(options: &WatchOptions) -> Self {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        return Self {
            trigger: options
                .files
                .pressure_file()
                .and_then(|path| super::psi_trigger::PsiTrigger::arm(&path, TRIGGER_STALL_US).ok()),
        };
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        {
            let _ = options;
            Self {}
        }
    }

    /// Whether to stop.
    fn sleep(&mut self, stopped: &std::sync::mpsc::Receiver<()>, interval: Duration) -> bool {
        let deadline = Instant::now() + interval;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let slice = left.min(SLICE);
            let fired = self.wait_for_trigger(slice);
            let wait = if fired.is_some() {
                Duration::ZERO
            } else {
                slice
            };
            match stopped.recv_timeout(wait) {
                Ok(()) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) if fired == Some(true) || left <= slice => {
                    return false;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Waits at the trigger; `None` if there is none (any more).
    fn wait_for_trigger(&mut self, timeout: Duration) -> Option<bool> {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            let waited = self.trigger.as_ref()?.wait(timeout);
            if waited.is_err() {
                self.trigger = None;
            }
            waited.ok()
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        {
            let _ = timeout;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::ChargeKind;

    fn wait_until(mut done: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    #[test]
    fn a_watch_follows_files_and_operator_and_logs_why() {
        let root = std::env::temp_dir().join(format!("neap-watch-{}", std::process::id()));
        let meminfo = |available_mib: u64| {
            std::fs::create_dir_all(root.join("proc")).unwrap();
            let text = format!(
                "MemTotal: 8388608 kB\nMemAvailable: {} kB\n",
                available_mib * 1024
            );
            // Replaced as a whole, as the kernel's files change.
            std::fs::write(root.join("proc/new"), text).unwrap();
            std::fs::rename(root.join("proc/new"), root.join("proc/meminfo")).unwrap();
        };
        meminfo(7000);
        let budget = Budget::new(4 << 30);
        let options = WatchOptions {
            files: SystemFiles::below(&root),
            interval: Duration::from_millis(5),
            ..WatchOptions::default()
        };
        let watch = Watch::begin(&budget, options).unwrap();
        let _held = budget.try_charge(ChargeKind::Kv, 3 << 30).unwrap();
        meminfo(100);
        assert!(wait_until(|| budget.limit() < 3 << 30));
        assert!(matches!(
            watch.log()[0].decision.reason,
            Reason::Capacity(_)
        ));
        watch.set_operator_limit(1 << 30);
        assert!(wait_until(|| budget.limit() == 1 << 30));
        drop(watch);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
