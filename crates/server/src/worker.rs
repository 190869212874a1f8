//! The engine on its own thread: requests come in by one bounded channel, events go back by one
//! bounded channel for each call.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use neap_engine::{Engine, Event, FinishReason, PRESSED_PAUSE, Request, RequestId};
use neap_memory::{KvQuality, Namespace};
use neap_model::decoder::Decoder;
use tokio::sync::{mpsc, oneshot};

use crate::adapters::{self, Names};
use crate::app::ServedModel;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::openai::params::SessionWish;
use crate::reload::{Loaded, Slot};
use crate::report::{Report, RunningRequest};
use crate::sessions::{Answer, Ask, Keeper};
use crate::traces::{Ended, Parent, Traces};

/// Events that may wait for one call. A reader so far behind has left or will never catch up.
const EVENTS_PER_CALL: usize = 4096;
/// Calls that may wait for the engine to look at them.
const CALLS_IN_FLIGHT: usize = 256;
/// How often an idle engine looks whether the budget shrank.
const IDLE_TICK: Duration = Duration::from_millis(100);
/// How often the engine's figures are published while it works.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);
/// Bytes that sink at a time while nothing runs: a request that comes waits for no more.
const SINK_BYTES: u64 = 64 << 20;

/// An event, with the index of the request within its call.
pub type Indexed = (usize, Event);

/// What a call is besides its requests.
#[derive(Clone)]
pub struct Asking {
    /// The conversation that the first of them goes on with.
    pub session: Option<SessionWish>,
    /// What traces call it.
    pub operation: &'static str,
    /// The trace that it belongs to, if its client began one.
    pub trace: Option<Parent>,
}

/// Requests that belong together: all are taken in, or none.
struct Call {
    requests: Vec<Request>,
    asking: Asking,
    events: mpsc::Sender<Indexed>,
    reply: oneshot::Sender<Result<(), ApiError>>,
    arrived: Instant,
}

enum Message {
    Call(Call),
    /// The admin asks about sessions.
    Sessions(Ask, oneshot::Sender<Result<Answer, ApiError>>),
    /// The admin adds or removes an adapter.
    Adapters(adapters::Ask, oneshot::Sender<Result<(), ApiError>>),
    /// Publish figures now, then answer.
    Publish(oneshot::Sender<()>),
    /// These from now on.
    Settings(Settings),
    /// Serve the model that waits in the slot; tells what it is called and its mapped bytes.
    Change(oneshot::Sender<Result<(ServedModel, u64), String>>),
    /// Cancel everything and end.
    Stop,
}

/// What can be changed while the thread runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Requests in the engine at most, running and waiting.
    pub max_active: usize,
    /// See [`neap_engine::EngineConfig::step_ms`].
    pub step_ms: Option<u64>,
    /// Cached blocks sink once nothing has run for so long.
    pub idle_sink_ms: Option<u64>,
}

/// What both sides see.
#[derive(Default)]
pub struct Shared {
    /// Nothing new is taken in.
    pub draining: AtomicBool,
    /// The thread has ended.
    pub ended: AtomicBool,
    /// Requests in the engine.
    pub active: AtomicUsize,
    /// The latest figures.
    pub report: Mutex<Report>,
    /// Counters and histograms.
    pub metrics: Metrics,
}

impl Shared {
    /// A copy of the latest figures.
    pub fn report(&self) -> Report {
        self.report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The way to the engine's thread.
pub struct Handle {
    messages: SyncSender<Message>,
    /// What both sides see.
    pub shared: Arc<Shared>,
}

impl Handle {
    /// Starts the thread, and tells what it serves. Models that are to take its place come by the slot.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn spawn<D: Decoder + Send + 'static>(
        mut loaded: Loaded<D>,
        (slot, traces): (Slot<D>, Option<Traces>),
        settings: Settings,
    ) -> std::io::Result<(Self, ServedModel)> {
        loaded.model.adapters = Names::of(&loaded.engine.adapters());
        let (messages, inbox) = sync_channel(CALLS_IN_FLIGHT);
        let shared = Arc::new(Shared::default());
        let mut worker = Worker {
            engine: loaded.engine,
            slot,
            inbox,
            shared: Arc::clone(&shared),
            active: HashMap::new(),
            settings,
            keeper: Keeper::new(loaded.sessions),
            told: Told {
                to: traces,
                model: loaded.model.id.clone(),
            },
            published: Instant::now(),
            stepping: Duration::ZERO,
            idle: Idle::default(),
        };
        worker.engine.set_step_ms(settings.step_ms);
        worker.publish();
        std::thread::Builder::new()
            .name("neap-engine".into())
            .spawn(move || worker.run())?;
        Ok((Self { messages, shared }, loaded.model))
    }

    /// Hands requests to the engine. Dropping the receiver takes them back.
    ///
    /// # Errors
    /// What to tell the client.
    pub async fn submit(
        &self,
        requests: Vec<Request>,
        asking: Asking,
    ) -> Result<mpsc::Receiver<Indexed>, ApiError> {
        if self.shared.draining.load(Ordering::Relaxed) {
            return Err(ApiError::unavailable("the server is shutting down"));
        }
        let (events, receiver) = mpsc::channel(EVENTS_PER_CALL);
        let (reply, answer) = oneshot::channel();
        let call = Call {
            requests,
            asking,
            events,
            reply,
            arrived: Instant::now(),
        };
        self.messages
            .try_send(Message::Call(call))
            .map_err(|why| match why {
                TrySendError::Full(_) => ApiError::busy(),
                TrySendError::Disconnected(_) => gone(),
            })?;
        answer.await.map_err(|_| gone())??;
        Ok(receiver)
    }

    /// Asks the engine's thread about sessions.
    ///
    /// # Errors
    /// What to tell the admin.
    pub async fn ask(&self, ask: Ask) -> Result<Answer, ApiError> {
        self.send(|reply| Message::Sessions(ask, reply)).await
    }

    /// Has the engine's thread add or remove an adapter.
    ///
    /// # Errors
    /// What to tell the admin.
    pub async fn adapters(&self, ask: adapters::Ask) -> Result<(), ApiError> {
        self.send(|reply| Message::Adapters(ask, reply)).await
    }

    async fn send<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<Result<T, ApiError>>) -> Message,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.messages.try_send(message(reply));
        sent.map_err(|why| match why {
            TrySendError::Full(_) => ApiError::busy(),
            TrySendError::Disconnected(_) => gone(),
        })?;
        answer.await.map_err(|_| gone())?
    }

    /// Changes what can be changed while the thread runs.
    pub async fn set(&self, settings: Settings) {
        let mut message = Message::Settings(settings);
        // A full channel means a thread that is busy: it takes some after its step.
        while let Err(TrySendError::Full(back)) = self.messages.try_send(message) {
            message = back;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Has the model in the slot take the place of the one that is served, which is to have no requests left.
    ///
    /// # Errors
    /// Why it can't: the old one goes on.
    pub async fn change(&self) -> Result<(ServedModel, u64), String> {
        let (reply, answer) = oneshot::channel();
        let sent = self.messages.try_send(Message::Change(reply));
        sent.map_err(|_| "the engine is too busy".to_owned())?;
        answer
            .await
            .map_err(|_| "the engine has ended".to_owned())?
    }

    /// Has the figures published; waits for it, but not for long.
    pub async fn refresh(&self) {
        let (reply, answer) = oneshot::channel();
        if self.messages.try_send(Message::Publish(reply)).is_ok() {
            let _ = tokio::time::timeout(Duration::from_millis(200), answer).await;
        }
    }

    /// Cancels everything; the thread ends.
    pub fn stop(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        // A full channel means a thread that is busy: it looks again after its step.
        let mut message = Message::Stop;
        while let Err(TrySendError::Full(back)) = self.messages.try_send(message) {
            message = back;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn gone() -> ApiError {
    ApiError::unavailable("the engine has ended")
}

/// One request in the engine.
struct Active {
    index: usize,
    events: mpsc::Sender<Indexed>,
    arrived: Instant,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    operation: &'static str,
    trace: Option<Parent>,
    prompt_tokens: usize,
    new_tokens: usize,
    turn: Option<Turn>,
}

/// What decides under which names a request's blocks are cached, but for its quality.
fn about(request: &Request) -> Request {
    Request {
        tenant: request.tenant.clone(),
        adapter: request.adapter.clone(),
        ..Request::default()
    }
}

/// What a conversation with a name has come to.
struct Turn {
    wish: SessionWish,
    tenant: String,
    namespace: Namespace,
    tokens: Vec<u32>,
}

struct Worker<D> {
    engine: Engine<D>,
    slot: Slot<D>,
    inbox: Receiver<Message>,
    shared: Arc<Shared>,
    active: HashMap<RequestId, Active>,
    settings: Settings,
    keeper: Keeper,
    told: Told,
    published: Instant,
    /// Time that steps took so far.
    stepping: Duration,
    idle: Idle,
}

/// Where traces go, if anywhere, and what they call the model.
struct Told {
    to: Option<Traces>,
    model: String,
}

impl Told {
    /// Tells of a request that has ended: in the log, and as a trace.
    fn tell(&self, (id, active): (RequestId, &Active), event: &Event) {
        let Event::Finished { reason, usage, .. } = event else {
            return;
        };
        let first_token_ms = active
            .first_token
            .map(|at| (at - active.arrived).as_millis() as u64);
        tracing::info!(
            request = id.0,
            operation = active.operation,
            model = self.model,
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.cached_tokens,
            new_tokens = usage.new_tokens,
            recomputed_tokens = usage.recomputed_tokens,
            first_token_ms,
            total_ms = active.arrived.elapsed().as_millis() as u64,
            %reason,
            "a request has ended"
        );
        if let Some(traces) = &self.to {
            traces.tell(&Ended {
                operation: active.operation,
                model: &self.model,
                parent: active.trace,
                arrived: active.arrived,
                first_token: active.first_token,
                reason,
                usage,
            });
        }
    }
}

/// The time without work.
#[derive(Default)]
struct Idle {
    since_ms: Option<u64>,
    /// Nothing more can sink.
    has_sunk: bool,
}

/// Tells that the thread has ended, also by a panic.
struct EndOfThread(Arc<Shared>);

impl Drop for EndOfThread {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

impl<D: Decoder> Worker<D> {
    fn run(mut self) {
        let _ended = EndOfThread(Arc::clone(&self.shared));
        loop {
            if !self.take_messages() {
                break;
            }
            self.cancel_abandoned();
            self.rest();
            let events = self.step();
            self.deliver(events);
            if self.engine.is_pressed() {
                std::thread::sleep(PRESSED_PAUSE);
            }
            let is_idle = self.engine.is_idle();
            self.keeper
                .save_some(self.engine.cache_mut(), is_idle, clock_ms());
            if self.engine.is_idle() || self.published.elapsed() >= PUBLISH_EVERY {
                self.publish();
                self.published = Instant::now();
            }
        }
        self.cancel_all();
        self.keeper
            .save_some(self.engine.cache_mut(), true, clock_ms());
        // With a disk level, what the cache holds is found again after a restart.
        self.engine.clear_cache();
        self.publish();
    }

    /// One step of the engine, timed if there was something to compute.
    fn step(&mut self) -> Vec<Event> {
        let (steps, start) = (self.engine.steps(), Instant::now());
        let events = self.engine.step(clock_ms());
        if self.engine.steps() > steps {
            self.stepping += start.elapsed();
        }
        events
    }

    /// What an engine does that has nothing to compute.
    fn rest(&mut self) {
        if !self.engine.is_idle() {
            self.idle = Idle::default();
            return;
        }
        let now_ms = clock_ms();
        self.engine.rest(now_ms);
        let since_ms = *self.idle.since_ms.get_or_insert(now_ms);
        let may_sink = self
            .settings
            .idle_sink_ms
            .is_some_and(|patience_ms| now_ms.saturating_sub(since_ms) >= patience_ms);
        if may_sink && !self.idle.has_sunk {
            self.idle.has_sunk = self.engine.sink_unused(SINK_BYTES, now_ms) == 0;
        }
    }

    /// The model in the slot takes the place of this one.
    fn change(&mut self) -> Result<(ServedModel, u64), String> {
        let load = self
            .slot
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let load = load.ok_or("no model is ready to be loaded")?;
        // Whoever is still here has no reader.
        self.cancel_all();
        let cache = self.engine.cache_mut();
        self.keeper.save_some(cache, true, clock_ms());
        self.engine.make_way(clock_ms());
        // A loader that panics must not end those who serve.
        let mut loaded = catch_unwind(AssertUnwindSafe(load))
            .unwrap_or_else(|_| Err("the model broke its loader; the log says where".into()))?;
        loaded.model.adapters = Names::of(&loaded.engine.adapters());
        self.engine = loaded.engine;
        self.engine.set_step_ms(self.settings.step_ms);
        self.keeper = Keeper::new(loaded.sessions);
        self.told.model.clone_from(&loaded.model.id);
        self.idle = Idle::default();
        self.publish();
        Ok((loaded.model, loaded.mapped_bytes))
    }

    /// Waits for a message if there is nothing to do. False: it is time to end.
    fn take_messages(&mut self) -> bool {
        let mut next = if self.engine.is_idle() {
            match self.inbox.recv_timeout(IDLE_TICK) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        } else {
            self.inbox.try_recv().ok()
        };
        while let Some(message) = next {
            match message {
                Message::Call(call) => self.admit(call),
                Message::Sessions(ask, reply) => {
                    let _ = reply.send(self.answer(ask));
                }
                Message::Adapters(ask, reply) => {
                    let _ = reply.send(ask.carry_out(&mut self.engine));
                    self.publish();
                }
                Message::Publish(reply) => {
                    self.publish();
                    let _ = reply.send(());
                }
                Message::Settings(settings) => {
                    self.settings = settings;
                    self.engine.set_step_ms(settings.step_ms);
                }
                Message::Change(reply) => {
                    let _ = reply.send(self.change());
                }
                Message::Stop => return false,
            }
            next = self.inbox.try_recv().ok();
        }
        true
    }

    fn answer(&mut self, ask: Ask) -> Result<Answer, ApiError> {
        let namespaces = match &ask {
            Ask::Place(tenant) => {
                Some(KvQuality::ALL.map(|q| self.engine.namespace(tenant, Some(q))))
            }
            _ => None,
        };
        let cache = self.engine.cache_mut();
        self.keeper.answer(ask, cache, namespaces, clock_ms())
    }

    fn admit(&mut self, call: Call) {
        let refusal = self.try_admit(&call).err();
        if refusal.is_some() {
            self.shared.metrics.refused.add(1);
        }
        // A client that has left shows itself by its events' channel.
        let _ = call.reply.send(refusal.map_or(Ok(()), Err));
    }

    fn try_admit(&mut self, call: &Call) -> Result<(), ApiError> {
        if self.active.len() + call.requests.len() > self.settings.max_active {
            return Err(ApiError::busy());
        }
        let (mut turn, mut quality) = (None, None);
        if let (Some(wish), Some(first)) = (&call.asking.session, call.requests.first()) {
            quality = self.quality_of(first, &wish.name)?;
            let namespace = self.engine.namespace_of(&Request {
                quality,
                ..about(first)
            })?;
            let cache = self.engine.cache_mut();
            self.keeper.begin(&namespace, &wish.name, cache, clock_ms());
            turn = Some(Turn {
                wish: wish.clone(),
                tenant: first.tenant.clone(),
                namespace,
                tokens: first.prompt.clone(),
            });
        }
        let mut ids = Vec::with_capacity(call.requests.len());
        for (index, request) in call.requests.iter().enumerate() {
            let request = Request {
                quality: request.quality.or(quality),
                ..request.clone()
            };
            match self.engine.submit(request) {
                Ok(id) => ids.push((id, index)),
                Err(why) => {
                    for (id, _) in ids {
                        self.engine.cancel(id);
                    }
                    return Err(why.into());
                }
            }
        }
        for (id, index) in ids {
            let request = &call.requests[index];
            let active = Active {
                index,
                events: call.events.clone(),
                arrived: call.arrived,
                first_token: None,
                last_token: None,
                operation: call.asking.operation,
                trace: call.asking.trace,
                prompt_tokens: request.prompt.len(),
                new_tokens: 0,
                // Of the first request.
                turn: turn.take(),
            };
            self.active.insert(id, active);
        }
        self.count_active();
        Ok(())
    }

    /// The quality that a request asks for, or else that its conversation has had, if this server still allows it.
    fn quality_of(&self, request: &Request, name: &str) -> Result<Option<KvQuality>, ApiError> {
        if request.quality.is_some() {
            return Ok(request.quality);
        }
        let of = |quality| {
            self.engine.namespace_of(&Request {
                quality,
                ..about(request)
            })
        };
        let allowed = of(None)?.quality();
        let mut namespaces = Vec::new();
        for quality in KvQuality::ALL.into_iter().filter(|&q| q <= allowed) {
            namespaces.push(of(Some(quality))?);
        }
        Ok(self.keeper.quality_of(&namespaces, name, clock_ms()))
    }

    fn count_active(&self) {
        self.shared
            .active
            .store(self.active.len(), Ordering::Relaxed);
    }

    /// Takes back what nobody reads any more.
    fn cancel_abandoned(&mut self) {
        let abandoned: Vec<RequestId> = self
            .active
            .iter()
            .filter(|(_, a)| a.events.is_closed())
            .map(|(&id, _)| id)
            .collect();
        for id in abandoned {
            if let Some(event) = self.engine.cancel(id) {
                self.deliver(vec![event]);
            }
        }
    }

    fn cancel_all(&mut self) {
        let ids: Vec<RequestId> = self.active.keys().copied().collect();
        let events = ids.into_iter().filter_map(|id| self.engine.cancel(id));
        let events = events.collect();
        self.deliver(events);
    }

    fn deliver(&mut self, events: Vec<Event>) {
        let now = Instant::now();
        let mut too_slow = Vec::new();
        for event in events {
            let id = match &event {
                Event::Token { request, .. } | Event::Finished { request, .. } => *request,
            };
            let Some(active) = self.active.get_mut(&id) else {
                continue;
            };
            let finished = matches!(event, Event::Finished { .. });
            measure(&self.shared.metrics, active, &event, now);
            self.told.tell((id, active), &event);
            if let (Some(turn), Event::Token { id, .. }) = (&mut active.turn, &event) {
                turn.tokens.push(*id);
            }
            if let Err(mpsc::error::TrySendError::Full(_)) =
                active.events.try_send((active.index, event))
            {
                too_slow.push(id);
            }
            if finished {
                let turn = self.active.remove(&id).and_then(|active| active.turn);
                if let Some(turn) = turn {
                    let whose = (turn.namespace, turn.tenant);
                    self.keeper.turn(whose, turn.wish, turn.tokens, clock_ms());
                }
            }
        }
        for id in too_slow {
            tracing::warn!(request = id.0, "cancelled: nobody reads its events");
            self.active.remove(&id);
            if self.engine.cancel(id).is_some() {
                self.shared.metrics.cancelled.add(1);
            }
        }
        self.count_active();
    }

    fn publish(&self) {
        let requests = self.active.iter().map(|(id, a)| RunningRequest {
            id: id.0,
            prompt_tokens: a.prompt_tokens,
            new_tokens: a.new_tokens,
            age_ms: a.arrived.elapsed().as_millis() as u64,
        });
        let report = Report {
            stepping: self.stepping,
            ..Report::of(&self.engine, requests.collect())
        };
        *self
            .shared
            .report
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = report;
    }
}

/// Times and counts.
fn measure(metrics: &Metrics, active: &mut Active, event: &Event, now: Instant) {
    match event {
        Event::Token { .. } => {
            active.new_tokens += 1;
            metrics.generation_tokens.add(1);
            match active.last_token.replace(now) {
                None => {
                    active.first_token = Some(now);
                    metrics.first_token.observe(now - active.arrived);
                }
                Some(last) => metrics.between_tokens.observe(now - last),
            }
        }
        Event::Finished { reason, usage, .. } => {
            metrics.prompt_tokens.add(usage.prompt_tokens as u64);
            metrics.cached_tokens.add(usage.cached_tokens as u64);
            metrics
                .recomputed_tokens
                .add(usage.recomputed_tokens as u64);
            metrics.whole_request.observe(now - active.arrived);
            match reason {
                FinishReason::EndOfText(_)
                | FinishReason::StopString(_)
                | FinishReason::GrammarComplete => &metrics.stopped,
                FinishReason::Length | FinishReason::ContextFull => &metrics.at_length,
                FinishReason::Cancelled => &metrics.cancelled,
                FinishReason::DeadlineExceeded => &metrics.late,
                FinishReason::OutOfBudget { .. }
                | FinishReason::GrammarFailed(_)
                | FinishReason::Failed(_) => &metrics.failed,
            }
            .add(1);
        }
    }
}

/// Milliseconds since 1970 when the program first asked, going on steadily from there.
pub fn clock_ms() -> u64 {
    static START: OnceLock<(u64, Instant)> = OnceLock::new();
    let (wall_ms, start) = START.get_or_init(|| {
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        (since_1970.as_millis() as u64, Instant::now())
    });
    wall_ms + start.elapsed().as_millis() as u64
}
