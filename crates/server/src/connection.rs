//! Accepts connections, within limits.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tower_service::Service;

use crate::auth::Peer;

/// Time for a request's head to arrive, from the first byte or from the last answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a connection's buffer at most: also the longest head.
const BUFFER_BYTES: usize = 64 << 10;

/// Accepts until `closing` turns true. Ends when all connections have ended.
pub async fn accept(
    listener: TcpListener,
    router: Router,
    max_connections: u32,
    mut closing: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(max_connections as usize));
    loop {
        let accepted = tokio::select! {
            _ = closing.wait_for(|&c| c) => break,
            accepted = next(&listener, &places) => accepted,
        };
        let Some((stream, peer, place)) = accepted else {
            continue;
        };
        let (router, closing) = (router.clone(), closing.clone());
        tokio::spawn(async move {
            serve(stream, peer, router, closing).await;
            drop(place);
        });
    }
    drop(listener);
    let _ = places.acquire_many(max_connections).await;
}

async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, Peer, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
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
    match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
