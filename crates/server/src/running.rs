//! Starts and ends the server.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use neap_engine::Engine;
use neap_memory::pressure::watch::Watch;
use neap_memory::session::Sessions;
use neap_model::decoder::Decoder;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::app::{self, App, ServedModel};
use crate::auth::Keys;
use crate::connection;
use crate::openai::embeddings::EmbeddingModel;
use crate::openai::responses::Store;
use crate::worker::Handle;

/// How the server is set up.
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub host: String,
    /// See `host`.
    pub port: u16,
    /// Requests in the engine at most, running and waiting; more are answered with 429.
    pub max_active: usize,
    /// Connections at once; more wait to be accepted.
    pub max_connections: u32,
    /// Bytes of a body at most.
    pub max_body_bytes: usize,
    /// A stream whose client takes nothing for so long is cancelled.
    pub slow_client: Duration,
    /// Keys that may generate; none: everybody may.
    pub api_keys: Vec<String>,
    /// The key for `/memory`; none: only this machine may.
    pub admin_key: Option<String>,
    /// Makes vectors, beside the model that writes.
    pub embedding: Option<EmbeddingModel>,
    /// Watches the pressure on the system, if anything does.
    pub pressure: Option<Watch>,
    /// Conversations on the disk level, if there is one.
    pub sessions: Option<Sessions>,
    /// Time for running requests to finish when the server is asked to end.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8080,
            max_active: 264,
            max_connections: 1024,
            max_body_bytes: 8 << 20,
            slow_client: Duration::from_secs(30),
            api_keys: Vec::new(),
            admin_key: None,
            embedding: None,
            pressure: None,
            sessions: None,
            grace: Duration::from_secs(30),
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

/// Starts a server within the running runtime.
///
/// # Errors
/// When it can't listen, or can't have a thread.
pub async fn start<D: Decoder + Send + 'static>(
    engine: Engine<D>,
    model: ServedModel,
    options: Options,
) -> Result<Running, ServeError> {
    let at = (options.host.as_str(), options.port);
    let failed = |why| ServeError::Listen {
        address: format!("{}:{}", options.host, options.port),
        why,
    };
    let listener = TcpListener::bind(at).await.map_err(failed)?;
    let address = listener.local_addr()?;
    let budget = engine.budget().clone();
    let app = Arc::new(App {
        model,
        engine: Handle::spawn(engine, options.max_active, options.sessions)?,
        keys: Keys::new(&options.api_keys, options.admin_key.as_deref()),
        responses: Store::new(&budget),
        budget,
        embedding: options.embedding,
        pressure: options.pressure,
        max_body_bytes: options.max_body_bytes,
        slow_client: options.slow_client,
    });
    let (closing, is_closing) = watch::channel(false);
    let router = app::router(Arc::clone(&app));
    let accepting = connection::accept(listener, router, options.max_connections, is_closing);
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

    /// Whether the engine's thread has ended by itself: by a panic.
    pub fn has_failed(&self) -> bool {
        self.app.engine.shared.ended.load(Ordering::Relaxed)
    }
}

/// Serves until the process is asked to end (SIGINT or SIGTERM; a second one ends it without grace).
/// `on_ready` is told the address.
///
/// # Errors
/// When it can't start.
pub fn run<D: Decoder + Send + 'static>(
    engine: Engine<D>,
    model: ServedModel,
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
        let grace = options.grace;
        let mut signals = Signals::new()?;
        let running = start(engine, model, options).await?;
        on_ready(running.address);
        signals.next().await;
        tracing::info!("ending: nothing new is taken in");
        running.stop(grace, signals.next()).await;
        Ok(())
    })
}

/// The system's requests to end.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
