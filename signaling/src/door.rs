//! Connections: accepted, encrypted if there is a certificate, and given to the app as HTTP/1.1 requests.
//!
//! A loop of our own over hyper, because neither `axum::serve` nor axum-server closes a connection that never says
//! anything; so few lines that it costs less than working around them.

use crate::SHUTDOWN_TIMEOUT;
use axum::{Extension, Router, extract::ConnectInfo};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

/// How long to wait when no connection can be accepted; mostly because the process has all its file descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// How connections are served.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) app: Router,
    /// How long a client may take over a handshake, and over the head of a request.
    pub(crate) patience: Duration,
    /// Connections at a time, not counting WebSockets; more wait in the kernel.
    pub(crate) most: usize,
}

impl Door {
    /// Serves until `stopped` is true, and for a moment longer those that have begun.
    pub(crate) async fn keep(self, listener: TcpListener, mut stopped: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        let watched = stopped.clone();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < self.most => match accepted {
                    Ok((stream, address)) => {
                        connections.spawn(self.clone().serve(stream, address, watched.clone()));
                    }
                    Err(error) => {
                        tracing::warn!("no connection could be accepted: {error}");
                        sleep(RETRY).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = stop(&mut stopped) => break,
            }
        }
        drop(listener);
        let over = async { while connections.join_next().await.is_some() {} };
        // Dropping the rest closes them.
        let _ = timeout(SHUTDOWN_TIMEOUT, over).await;
    }

    async fn serve(self, stream: TcpStream, address: SocketAddr, stopped: watch::Receiver<bool>) {
        // Signaling is small messages that somebody waits for.
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => self.speak(stream, address, stopped).await,
            Some(tls) => {
                if let Ok(Ok(stream)) = timeout(self.patience, tls.accept(stream)).await {
                    self.speak(stream, address, stopped).await;
                }
            }
        }
    }

    async fn speak(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        address: SocketAddr,
        mut stopped: watch::Receiver<bool>,
    ) {
        let app = self.app.clone().layer(Extension(ConnectInfo(address)));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.patience)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
            .with_upgrades();
        tokio::pin!(connection);
        // How a connection ends is its client's business: there is nobody here to tell.
        tokio::select! {
            _ = &mut connection => return,
            () = stop(&mut stopped) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

/// Waits until it is true, or nobody is left to say so.
async fn stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
