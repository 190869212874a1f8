//! Starts and ends the server.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use neap_memory::pressure::watch::Watch;
use neap_model::decoder::Decoder;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::app::{self, App};
use crate::connection::{self, Places};
use crate::live::{InForce, Live};
use crate::openai::embeddings::EmbeddingModel;
use crate::openai::judging::ClassifierModel;
use crate::openai::responses::Store;
use crate::reload::{self, Configuration, Loaded, Slot, Slotted, Source};
use crate::serving::Serving;
use crate::traces::Traces;
use crate::worker::{Handle, Settings};

/// How the server is set up.
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub host: String,
    /// See `host`.
    pub port: u16,
    /// Makes vectors, beside the model that writes.
    pub embedding: Option<EmbeddingModel>,
    /// Classifies, or judges pairs, beside it.
    pub classifier: Option<ClassifierModel>,
    /// Watches the pressure on the system, if anything does.
    pub pressure: Option<Watch>,
    /// Where traces of requests go, if anywhere.
    pub traces: Option<Traces>,
    /// What can be changed while it runs.
    pub live: Live,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8080,
            embedding: None,
            classifier: None,
            pressure: None,
            traces: None,
            live: Live::default(),
        }
    }
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken, or not ours.
    #[error("can't listen on {address}: {why}; give another --host or --port")]
    Listen {
        /// Where it was to listen.
        address: String,
        /// Why not.
        why: std::io::Error,
    },
    /// The system has no thread or signal handler to give.
    #[error("the server can't start: {0}")]
    Start(#[from] std::io::Error),
}

/// A server that answers.
pub struct Running {
    /// Where.
    pub address: SocketAddr,
    app: Arc<App>,
    closing: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

/// Starts a server within the running runtime. What it is told to read again comes from `configuration`, if there is
/// one.
///
/// # Errors
/// When it can't listen, or can't have a thread.
pub async fn start<D: Decoder + Send + 'static>(
    loaded: Loaded<D>,
    configuration: Option<Box<dyn Configuration<D>>>,
    options: Options,
) -> Result<Running, ServeError> {
    let at = (options.host.as_str(), options.port);
    let failed = |why| ServeError::Listen {
        address: format!("{}:{}", options.host, options.port),
        why,
    };
    let listener = TcpListener::bind(at).await.map_err(failed)?;
    let address = listener.local_addr()?;
    let budget = loaded.engine.budget().clone();
    if let Some(pressure) = &options.pressure {
        pressure.set_mapped_bytes(loaded.mapped_bytes);
    }
    let live = options.live;
    let slot = Slot::<D>::default();
    let ways = (Arc::clone(&slot), options.traces);
    let (engine, model) = Handle::spawn(loaded, ways, Settings::from(&live))?;
    let app = Arc::new(App {
        serving: Serving::new(model),
        engine,
        places: Places::new(live.max_connections),
        in_force: InForce::new(live),
        responses: Arc::new(Store::new(&budget)),
        budget,
        embedding: options.embedding,
        classifier: options.classifier,
        pressure: options.pressure,
        configuration: configuration.map(|configuration| {
            let source: Arc<dyn Source> = Arc::new(Slotted {
                configuration,
                slot,
            });
            source
        }),
        reloading: tokio::sync::Mutex::default(),
    });
    let (closing, is_closing) = watch::channel(false);
    let router = app::router(Arc::clone(&app));
    let accepting = connection::accept(listener, router, app.places.clone(), is_closing);
    Ok(Running {
        address,
        app,
        closing,
        accepting: tokio::spawn(accepting),
    })
}

impl Running {
    /// Takes nothing new in and waits until what runs has finished, until `grace` has passed or `hurry` comes; then
    /// cancels the rest. When this returns, the engine is gone.
    pub async fn stop(self, grace: Duration, hurry: impl Future<Output = ()>) {
        let shared = &self.app.engine.shared;
        shared.draining.store(true, Ordering::Relaxed);
        self.closing.send_replace(true);
        let end = Instant::now() + grace;
        let drained = async {
            while shared.active.load(Ordering::Relaxed) > 0
                && !shared.ended.load(Ordering::Relaxed)
                && Instant::now() < end
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = drained => {}
            () = hurry => {}
        }
        let app = Arc::clone(&self.app);
        // The last words of each stream still go out.
        let _ = tokio::task::spawn_blocking(move || app.engine.stop()).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), self.accepting).await;
        while !shared.ended.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Reads the configuration again, as `POST /admin/reload` does; how it went is in the log.
    pub async fn reload(&self) {
        let _ = reload::reload(Arc::clone(&self.app)).await;
    }

    /// Whether the engine's thread has ended by itself: by a panic.
    pub fn has_failed(&self) -> bool {
        self.app.engine.shared.ended.load(Ordering::Relaxed)
    }
}

/// Serves until the process is asked to end (SIGINT or SIGTERM; a second one ends it without grace). SIGHUP has it read
/// its configuration again. `on_ready` is told the address.
///
/// # Errors
/// When it can't start.
pub fn run<D: Decoder + Send + 'static>(
    loaded: Loaded<D>,
    configuration: Option<Box<dyn Configuration<D>>>,
    options: Options,
    on_ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .thread_name("neap-http")
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let running = start(loaded, configuration, options).await?;
        on_ready(running.address);
        while signals.next().await == Asked::Reload {
            // The end can be asked for meanwhile.
            tokio::spawn(reload::reload(Arc::clone(&running.app)));
        }
        tracing::info!("ending: nothing new is taken in");
        let grace = running.app.live().grace;
        let hurry = async { while signals.next().await == Asked::Reload {} };
        running.stop(grace, hurry).await;
        Ok(())
    })
}

/// What the system asks of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    End,
    Reload,
}

/// The system's signals.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    #[cfg(unix)]
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }

    #[cfg(not(unix))]
    fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) -> Asked {
        let _ = tokio::signal::ctrl_c().await;
        Asked::End
    }
}
