//! The signaling server: rooms, relayed envelopes that it cannot read, and the built page.
//!
//! * [`rooms`]: who is in which room, as a machine without sockets and clocks;
//! * [`frame`] and [`refusal`]: what comes in, and why it may be refused;
//! * [`config`], [`lan`], [`tls`]: limits, links, certificates;
//! * [`serve`]: all of it behind `/ws`, `/healthz`, `/metrics`, and the page everywhere else.

pub mod config;
pub mod frame;
mod hub;
pub mod lan;
mod metrics;
mod outbox;
mod page;
pub mod refusal;
pub mod rooms;
mod socket;
pub mod tls;

pub use config::{Config, Limits, Timeouts};

use axum::{Router, http::header, routing::get};
use hub::Hub;
use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::conn::auto::Builder,
};
use rooms::Event;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// How long a connection may take over a request's head, or stay idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a shutdown waits for clients to read that it is one.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a server stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The certificate is no good.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The listener failed.
    #[error("the server stopped: {0}")]
    Io(#[from] io::Error),
}

/// Serves on `listener` until `shutdown` resolves; then clients are told, and their sockets closed.
///
/// # Errors
/// [`ServeError::Tls`] if there is a certificate and it cannot be used, [`ServeError::Io`] if the listener fails.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let tls = config.tls.as_ref().map(tls::Identity::load).transpose()?;
    let hub = Arc::new(Hub::new(&config));
    let handle = axum_server::Handle::new();
    let app = routes(Arc::clone(&hub), &config).into_make_service_with_connect_info::<SocketAddr>();
    let mut server = axum_server::from_tcp(listener.into_std()?)?.handle(handle.clone());
    // Here and not by the server's own `http1_only`, with which no connection can become a WebSocket. Without it, a
    // connection that says nothing would be waited for without end.
    *server.http_builder() = Builder::new(TokioExecutor::new()).http1_only();
    server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let serving = async {
        match tls {
            None => server.serve(app).await,
            Some(tls) => server.acceptor(axum_server::tls_rustls::RustlsAcceptor::new(tls)).serve(app).await,
        }
    };
    let stopping = async {
        shutdown.await;
        hub.handle(Event::Shutdown);
        handle.graceful_shutdown(Some(SHUTDOWN_TIMEOUT));
        // Past the time-out the sockets end with the process.
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, hub.empty()).await;
    };
    tokio::select! {
        done = async { tokio::join!(serving, stopping).0 } => Ok(done?),
        () = hub.tick(config.timeouts.tick()) => Ok(()),
    }
}

fn routes(hub: Arc<Hub>, config: &Config) -> Router {
    Router::new()
        .route("/ws", get(socket::upgrade))
        .route("/metrics", get(metrics::metrics))
        .with_state(hub)
        .route("/healthz", get(async || ([(header::CACHE_CONTROL, "no-store")], "ok\n")))
        .merge(page::routes(config.dist.clone()))
}
