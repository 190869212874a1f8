//! Accepts connections, within limits.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tower_service::Service;

use crate::auth::Peer;

/// Time for a request's head to arrive, from the first byte or from the last answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a connection's buffer at most: also the longest head.
const BUFFER_BYTES: usize = 64 << 10;

/// Places for connections: as many as there are may be open at once.
#[derive(Clone)]
pub struct Places {
    free: Arc<Semaphore>,
    count: Arc<Mutex<usize>>,
}

impl Places {
    /// So many.
    pub fn new(count: usize) -> Self {
        let count = count.min(Semaphore::MAX_PERMITS);
        Self {
            free: Arc::new(Semaphore::new(count)),
            count: Arc::new(Mutex::new(count)),
        }
    }

    /// So many from now on. Of those that are too many, the taken ones stay.
    pub fn set(&self, count: usize) {
        let count = count.min(Semaphore::MAX_PERMITS);
        let mut now = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        if count > *now {
            self.free.add_permits(count - *now);
            *now = count;
        } else {
            *now -= self.free.forget_permits(*now - count);
        }
    }

    async fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).acquire_owned().await.ok()
    }
}

/// Accepts until `closing` turns true. Ends when all connections have ended.
pub async fn accept(
    listener: TcpListener,
    router: Router,
    places: Places,
    mut closing: watch::Receiver<bool>,
) {
    // Each connection holds a sender; when all are gone, the receiver hears it.
    let (open, mut all_ended) = mpsc::channel::<Infallible>(1);
    loop {
        let accepted = tokio::select! {
            _ = closing.wait_for(|&c| c) => break,
            accepted = next(&listener, &places) => accepted,
        };
        let Some((stream, peer, place)) = accepted else {
            continue;
        };
        let (router, closing, open) = (router.clone(), closing.clone(), open.clone());
        tokio::spawn(async move {
            serve(stream, peer, router, closing).await;
            drop((place, open));
        });
    }
    drop(listener);
    drop(open);
    let _ = all_ended.recv().await;
}

async fn next(
    listener: &TcpListener,
    places: &Places,
) -> Option<(TcpStream, Peer, OwnedSemaphorePermit)> {
    let place = places.take().await?;
    match listener.accept().await {
        Ok((stream, address)) => {
            // Tokens are small and must not wait for more.
            let _ = stream.set_nodelay(true);
            let abort = Arc::new(Notify::new());
            Some((stream, Peer { address, abort }, place))
        }
        Err(why) => {
            // Out of file descriptors, most likely: it passes.
            tracing::warn!(%why, "a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

async fn serve(stream: TcpStream, peer: Peer, router: Router, mut closing: watch::Receiver<bool>) {
    let abort = Arc::clone(&peer.abort);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let mut router = router.clone();
        async move { Ok::<Response, Infallible>(call(&mut router, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut is_closing = false;
    loop {
        tokio::select! {
            result = &mut connection => {
                if let Err(why) = result {
                    tracing::debug!(%why, "a connection ended early");
                }
                return;
            }
            () = abort.notified() => return,
            _ = closing.wait_for(|&c| c), if !is_closing => {
                is_closing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn call(router: &mut Router, request: hyper::Request<Incoming>) -> Response {
    let begin = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (status, ms) = (response.status().as_u16(), begin.elapsed().as_millis());
    tracing::debug!(%method, path, status, ms = ms as u64, "answered");
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_and_go() {
        let places = Places::new(2);
        let take = || Arc::clone(&places.free).try_acquire_owned();
        let (first, second) = (take().unwrap(), take().unwrap());
        assert!(take().is_err());
        places.set(3);
        let third = take().unwrap();
        // All are taken: they stay until they are given back, and one may go at the next change.
        places.set(1);
        assert!(take().is_err());
        drop((first, second));
        places.set(1);
        assert!(take().is_err(), "the one place is the third's");
        drop(third);
        assert!(take().is_ok());
    }
}
