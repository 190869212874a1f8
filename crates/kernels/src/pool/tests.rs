use super::*;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

const REGIONS: usize = if cfg!(miri) { 12 } else { 5_000 };

/// Runs one region and checks that every task ran exactly once, on workers that exist.
fn check_region(pool: &ThreadPool, tasks: usize) {
    let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
    let busy: Vec<AtomicBool> = (0..pool.threads())
        .map(|_| AtomicBool::new(false))
        .collect();
    pool.run(tasks, &|task, worker| {
        assert!(
            !busy[worker].swap(true, Ordering::SeqCst),
            "two tasks at once on worker {worker}"
        );
        counts[task].fetch_add(1, Ordering::Relaxed);
        busy[worker].store(false, Ordering::SeqCst);
    })
    .unwrap();
    assert!(
        counts
            .iter()
            .all(|count| count.load(Ordering::Relaxed) == 1)
    );
}

#[test]
fn every_task_runs_once() {
    for threads in [0, 1, 2, 3, 8] {
        let pool = ThreadPool::new(threads);
        assert_eq!(pool.threads(), threads.max(1));
        for tasks in [0, 1, 2, 3, 7, 64] {
            check_region(&pool, tasks);
        }
    }
}

#[test]
fn many_regions_one_after_another() {
    for threads in [2, 5] {
        let pool = ThreadPool::new(threads);
        for region in 0..REGIONS {
            check_region(&pool, 1 + region % 9);
        }
    }
}

#[test]
fn workers_take_part() {
    // Two tasks that wait for each other can end only on two threads.
    let pool = ThreadPool::new(2);
    let arrived = AtomicUsize::new(0);
    for round in 1..=if cfg!(miri) { 3 } else { 50 } {
        pool.run(2, &|_, _| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 * round {
                thread::yield_now();
            }
        })
        .unwrap();
    }
}

#[test]
fn wakes_parked_workers() {
    let pool = ThreadPool::new(3);
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(5));
        let arrived = AtomicUsize::new(0);
        pool.run(3, &|_, _| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 3 {
                thread::yield_now();
            }
        })
        .unwrap();
    }
}

#[test]
fn a_panic_is_an_error_and_the_pool_lives_on() {
    for threads in [1, 2, 4] {
        let pool = ThreadPool::new(threads);
        for round in 0..if cfg!(miri) { 2 } else { 50 } {
            let bad = round % 8;
            let outcome = pool.run(8, &|task, _| assert!(task != bad, "task {task} fails"));
            let message = outcome.unwrap_err().message;
            assert!(message.contains(&format!("task {bad} fails")), "{message}");
            check_region(&pool, 8);
        }
    }
}

#[test]
fn every_task_may_panic() {
    let pool = ThreadPool::new(3);
    for _ in 0..if cfg!(miri) { 2 } else { 30 } {
        let outcome = pool.run(20, &|_, _| std::panic::panic_any(7_u32));
        assert_eq!(
            outcome,
            Err(WorkerPanic {
                message: "(no message)".to_owned()
            })
        );
    }
    check_region(&pool, 20);
}

#[test]
fn a_nested_region_runs_on_its_own_thread() {
    let pool = ThreadPool::new(3);
    let other = ThreadPool::new(2);
    let sum = AtomicUsize::new(0);
    pool.run(6, &|_, worker| {
        let me = thread::current().id();
        pool.run(5, &|task, inner| {
            assert_eq!((thread::current().id(), inner), (me, worker));
            sum.fetch_add(task, Ordering::Relaxed);
        })
        .unwrap();
        other
            .run(2, &|_, inner| {
                assert_eq!(inner, 0);
                pool.run(1, &|_, _| ()).unwrap();
            })
            .unwrap();
    })
    .unwrap();
    assert_eq!(sum.load(Ordering::Relaxed), 60);
}

#[test]
fn a_nested_panic_is_the_nested_regions_error() {
    let pool = ThreadPool::new(2);
    pool.run(4, &|_, _| {
        let inner = pool.run(2, &|_, _| panic!("inner"));
        assert_eq!(
            inner,
            Err(WorkerPanic {
                message: "inner".to_owned()
            })
        );
    })
    .unwrap();
}

#[test]
fn callers_take_turns() {
    let pool = ThreadPool::new(2);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for region in 0..REGIONS / 6 {
                    check_region(&pool, 2 + region % 3);
                }
            });
        }
    });
}

#[test]
fn a_slow_worker_is_waited_for() {
    let pool = ThreadPool::new(2);
    let ended = AtomicUsize::new(0);
    let started = AtomicUsize::new(0);
    pool.run(2, &|_, worker| {
        started.fetch_add(1, Ordering::SeqCst);
        while started.load(Ordering::SeqCst) < 2 {
            thread::yield_now();
        }
        if worker == 1 {
            thread::sleep(Duration::from_millis(20));
        }
        ended.fetch_add(1, Ordering::SeqCst);
    })
    .unwrap();
    assert_eq!(ended.load(Ordering::SeqCst), 2);
}

#[test]
fn drop_ends_the_threads() {
    let start = Instant::now();
    for round in 0..if cfg!(miri) { 2 } else { 100 } {
        let pool = ThreadPool::new(3);
        if round % 2 == 0 {
            check_region(&pool, 4);
        }
    }
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn at_least_one_thread_is_available() {
    assert!(available_threads() >= 1);
}
