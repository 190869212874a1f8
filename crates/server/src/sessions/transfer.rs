//! Sessions that leave and enter as files. They are read and written by threads of their own: the engine's only looks
//! a session up, or takes one in.

use std::future::poll_fn;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures_core::Stream;
use neap_memory::Namespace;
use neap_memory::session::{Imported, SessionError, SessionFile};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Answer, Ask, Place, allowed, now_ms, of_session};
use crate::app::App;
use crate::error::{ApiError, json_response};

/// Bytes of one piece on its way.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces on their way at most.
const PIECES: usize = 4;
/// The other side may take so long for one piece.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends what is written to it.
struct Outgoing {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    runtime: Handle,
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        let sending = timeout(PATIENCE, self.pieces.send(Ok(piece)));
        match self.runtime.block_on(sending) {
            Ok(Ok(())) => Ok(bytes.len()),
            Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Pieces(mpsc::Receiver<io::Result<Bytes>>);

impl Stream for Pieces {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// Reads what is sent to it.
struct Incoming {
    pieces: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Incoming {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.rest = piece,
                None => return Ok(0),
            }
        }
        let bytes = out.len().min(self.rest.len());
        out[..bytes].copy_from_slice(&self.rest.split_to(bytes));
        Ok(bytes)
    }
}

/// `GET /memory/sessions/ID/export`: the session as a file.
pub async fn export(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    allowed(&app, &request)?;
    let Answer::Export(export) = app.engine.ask(Ask::Export(id)).await? else {
        return Err(ApiError::internal("the engine answered something else"));
    };
    let (pieces, receiver) = mpsc::channel(PIECES);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let failed = pieces.clone();
        let out = Outgoing { pieces, runtime };
        let mut out = BufWriter::with_capacity(PIECE_BYTES, out);
        if let Err(why) = export.write(None, &mut out) {
            tracing::warn!(%why, "a session could not be exported");
            // The answer ends in the middle, which the client sees.
            let _ = failed.try_send(Err(io::Error::other(why)));
        }
    });
    let mut response = Response::new(Body::from_stream(Pieces(receiver)));
    let value = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    Ok(response)
}

/// `POST /memory/sessions/import`: keeps the session that the body is a file of. It becomes that of the API key in
/// `X-Session-Key`.
pub async fn import(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    allowed(&app, &request)?;
    let tenant = app.keys().tenant_of_session(request.headers())?;
    let Answer::Place(place) = app.engine.ask(Ask::Place(tenant.clone())).await? else {
        return Err(ApiError::internal("the engine answered something else"));
    };
    let (sender, pieces) = mpsc::channel(PIECES);
    let reading = tokio::task::spawn_blocking(move || {
        let rest = Bytes::new();
        read(&place, Incoming { pieces, rest })
    });
    pump(request.into_body(), sender).await?;
    let imported = reading
        .await
        .map_err(|_| ApiError::internal("the import ended early"))?
        .map_err(of_session)?;
    match app.engine.ask(Ask::Take(imported, tenant)).await? {
        Answer::Value(answer) => Ok(json_response(StatusCode::OK, &answer)),
        _ => Err(ApiError::internal("the engine answered something else")),
    }
}

/// Hands the body on, piece by piece, until its end or until nobody wants more.
async fn pump(body: Body, pieces: mpsc::Sender<Bytes>) -> Result<(), ApiError> {
    let mut body = body.into_data_stream();
    loop {
        let next = timeout(PATIENCE, poll_fn(|cx| Pin::new(&mut body).poll_next(cx))).await;
        let piece = match next {
            Ok(Some(Ok(piece))) => piece,
            Ok(None) => return Ok(()),
            Ok(Some(Err(_))) => return Err(ApiError::invalid("the body was cut off")),
            Err(_) => return Err(ApiError::invalid("the body took too long to arrive")),
        };
        if pieces.send(piece).await.is_err() {
            return Ok(());
        }
    }
}

fn read(place: &Place, body: Incoming) -> Result<Imported, SessionError> {
    let file = SessionFile::open(BufReader::with_capacity(PIECE_BYTES, body))?;
    if (file.fingerprint, file.block_tokens) != (place.fingerprint, place.block_tokens) {
        return Err(SessionError::Malformed {
            offset: 12,
            reason: "made by another model, tokenizer or position scheme",
        });
    }
    let namespace = |session: &neap_memory::session::Session| -> Result<Namespace, SessionError> {
        let quality = session.namespace.quality() as usize;
        Ok(place.namespaces[quality])
    };
    file.read(&place.disk, namespace, now_ms())
}
