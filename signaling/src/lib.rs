//! The signaling server: rooms, relayed envelopes that it cannot read, and the built page.
//!
//! * [`rooms`]: who is in which room, as a machine without sockets and clocks;
//! * [`frame`] and [`refusal`]: what comes in, and why it may be refused;
//! * [`config`], [`lan`], [`tls`]: limits, links, certificates;
//! * [`serve`]: all of it behind `/ws`, `/healthz`, `/metrics`, `/lan`, and the page everywhere else.

pub mod config;
mod door;
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
use door::Door;
use hub::Hub;
use rooms::Event;
use std::{sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch, time::timeout};

/// How long a shutdown waits for clients to read that it is one.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves on `listener` until `shutdown` resolves; then clients are told, and their sockets closed.
///
/// # Errors
/// [`TlsError`](tls::TlsError) if there is a certificate and it cannot be used. Nothing that comes from the network
/// is an error.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tls::TlsError> {
    let hub = Arc::new(Hub::new(&config));
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let bound = lan::Bound { scheme, address: listener.local_addr().ok() };
    let door = Door {
        tls: config.tls.as_ref().map(tls::Identity::load).transpose()?,
        app: routes(Arc::clone(&hub), bound, &config),
        patience: config.timeouts.head,
        most: config.limits.sockets,
    };
    let (stop, stopped) = watch::channel(false);
    let stopping = async {
        shutdown.await;
        hub.handle(Event::Shutdown);
        stop.send_replace(true);
        // What is not over then ends with the process.
        let _ = timeout(SHUTDOWN_TIMEOUT, hub.empty()).await;
    };
    tokio::select! {
        _ = async { tokio::join!(door.keep(listener, stopped), stopping) } => {}
        () = hub.tick(config.timeouts.tick()) => {}
    }
    Ok(())
}

fn routes(hub: Arc<Hub>, bound: lan::Bound, config: &Config) -> Router {
    Router::new()
        .route("/ws", get(socket::upgrade))
        .route("/metrics", get(metrics::metrics))
        .with_state(hub)
        .merge(Router::new().route("/lan", get(lan::lan)).with_state(bound))
        .route("/healthz", get(async || ([(header::CACHE_CONTROL, "no-store")], "ok\n")))
        .merge(page::routes(config.dist.clone()))
}
