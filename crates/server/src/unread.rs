//! Bodies that are refused before they are read to their end.
//!
//! Where a connection is closed while bytes of the client are still on their way, the system answers them with a
//! reset, which may throw away the answer before the client has read it. So what is left of such a body is read first
//! and thrown away, within limits.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::timeout;

/// Bytes that are read and thrown away at most.
const MOST_IGNORED_BYTES: usize = 64 << 20;
/// Time for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A body that can be read on after its reader has dropped it.
#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
}

struct State {
    body: Body,
    is_touched: bool,
    is_over: bool,
}

impl Shared {
    fn new(body: Body) -> Self {
        let is_over = body.is_end_stream();
        let state = State {
            body,
            is_touched: false,
            is_over,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.with(|state| {
            state.is_touched = true;
            let polled = Pin::new(&mut state.body).poll_frame(cx);
            // After its end or an error a body must not be asked again.
            state.is_over |= matches!(polled, Poll::Ready(None | Some(Err(_))));
            polled
        })
    }

    fn is_end_stream(&self) -> bool {
        self.with(|state| state.is_over || state.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|state| state.body.size_hint())
    }
}

/// Answers as the rest does, and reads what an answer with an error has left of its request's body.
pub async fn read(request: Request, next: Next) -> Response {
    // Such a client sends nothing before it is asked to, and asking is reading.
    let waits = request.headers().contains_key(header::EXPECT);
    let (head, body) = request.into_parts();
    let body = Shared::new(body);
    let request = Request::from_parts(head, Body::new(body.clone()));
    let response = next.run(request).await;
    let status = response.status();
    let is_refused = status.is_client_error() || status.is_server_error();
    let (is_touched, is_over) = body.with(|state| (state.is_touched, state.is_over));
    if is_refused && !is_over && (is_touched || !waits) {
        let _ = timeout(PATIENCE, ignore(body)).await;
    }
    response
}

async fn ignore(mut body: Shared) {
    let mut ignored_bytes = 0;
    while ignored_bytes < MOST_IGNORED_BYTES && !body.is_end_stream() {
        match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            Some(Ok(frame)) => ignored_bytes += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) | None => return,
        }
    }
}
