//! What can be chosen about a server: limits, time-outs, the page, the certificate.

use crate::{frame::MAX_MESSAGE_LEN, tls::Identity};
use baton_protocol::signal::IceServer;
use std::{path::PathBuf, time::Duration};

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of the built page.
    pub dist: PathBuf,
    /// STUN and TURN servers that every client is told of.
    pub ice_servers: Vec<IceServer>,
    /// How much of everything there may be.
    pub limits: Limits,
    /// How long the server waits for what.
    pub timeouts: Timeouts,
    /// The certificate; without one the server speaks plain HTTP.
    pub tls: Option<Identity>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dist: "dist".into(),
            ice_servers: Vec::new(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            tls: None,
        }
    }
}

/// How much of everything there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rooms.
    pub rooms: usize,
    /// Members of a room, the host among them.
    pub members: usize,
    /// Sockets.
    pub sockets: usize,
    /// Sockets from one address (IPv4) or one /64 (IPv6).
    pub sockets_per_network: usize,
    /// Bytes of a message.
    pub message_bytes: usize,
    /// Messages a second that a client may send without end.
    pub messages_per_second: u32,
    /// Messages that a client may send at once.
    pub message_burst: u32,
    /// Bytes that wait for a client to read them; one that lets more pile up is dropped.
    pub queue_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rooms: 1000,
            members: 32,
            sockets: 8192,
            // A hotel or a campus comes from one address.
            sockets_per_network: 512,
            message_bytes: MAX_MESSAGE_LEN,
            messages_per_second: 50,
            // A host that greets 31 peers at once sends each, for two connections, an offer and up to 15 candidates.
            message_burst: 1000,
            queue_bytes: 2 << 20,
        }
    }
}

/// How long the server waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a request's head: the first of a connection, and the next.
    pub head: Duration,
    /// For a new socket's `join`.
    pub join: Duration,
    /// For any frame of a member; clients ping every 10 s.
    pub silence: Duration,
    /// For a host whose socket dropped to come back to its room.
    pub grace: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            join: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            grace: Duration::from_secs(600),
        }
    }
}

impl Timeouts {
    /// How often [`Event::Tick`](crate::rooms::Event::Tick) is due so that no time-out is late by more than an eighth.
    pub(crate) fn tick(&self) -> Duration {
        let shortest = self.join.min(self.silence).min(self.grace);
        (shortest / 8).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }
}

/// A text that is not an ICE server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an ICE server: write stun:HOST[:PORT], or turn:HOST[:PORT],USER,CREDENTIAL")]
pub struct BadIceServer(String);

/// Reads `stun:host:port` or `turn:host:port,user,credential` (also `stuns:` and `turns:`).
///
/// # Errors
/// [`BadIceServer`] if the scheme is another, the host is missing, or a TURN server has no credential.
pub fn parse_ice_server(text: &str) -> Result<IceServer, BadIceServer> {
    let bad = || BadIceServer(text.to_owned());
    let mut parts = text.splitn(3, ',').map(str::trim);
    let url = parts.next().ok_or_else(bad)?;
    let login = match (parts.next(), parts.next()) {
        (Some(user), Some(credential)) if !user.is_empty() && !credential.is_empty() => {
            Some((user.to_owned(), credential.to_owned()))
        }
        (None, None) => None,
        _ => return Err(bad()),
    };
    let (scheme, host) = url.split_once(':').ok_or_else(bad)?;
    let fits = match scheme {
        "stun" | "stuns" => login.is_none(),
        "turn" | "turns" => login.is_some(),
        _ => false,
    };
    if !fits || host.is_empty() || host.starts_with('/') || host.contains(char::is_whitespace) {
        return Err(bad());
    }
    let (username, credential) = login.unzip();
    Ok(IceServer { urls: vec![url.to_owned()], username, credential })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ice_server_reads_as_webrtc_wants_it() {
        let stun = parse_ice_server("stun:stun.example:3478").unwrap();
        assert_eq!((stun.urls, stun.username), (vec!["stun:stun.example:3478".to_owned()], None));
        let turn = parse_ice_server("turn:t.example:3478?transport=tcp, ann ,pass,word").unwrap();
        assert_eq!(turn.urls, ["turn:t.example:3478?transport=tcp"]);
        assert_eq!((turn.username.as_deref(), turn.credential.as_deref()), (Some("ann"), Some("pass,word")));
        for bad in
            ["", "stun:", "http://x", "turn:t.example", "turn:t,ann", "turn:t,,x", "stun:s,a,b", "stun://s"]
        {
            assert!(parse_ice_server(bad).is_err(), "{bad}");
        }
    }
}
