//! A join link taken apart: the server, the room's secret, and where the page's own model is.

use baton_protocol::room::RoomSecret;
use std::net::IpAddr;
use url::{Host, Url};

/// What a join link says.
#[derive(Clone, Debug)]
pub(super) struct RoomLink {
    /// The signaling server's socket.
    pub(super) socket: String,
    /// The model that ships with the page.
    pub(super) embedded: String,
    /// The room's secret.
    pub(super) secret: RoomSecret,
    /// Whether the server is on this machine.
    pub(super) loopback: bool,
}

/// Why a text is not a join link.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LinkError {
    #[error(
        "this is not a join link: {reason}. Copy the whole link from the host's page, and put it in quotes; it looks like http://SERVER/#/join/CODE"
    )]
    NotALink { reason: String },
    #[error("{0}; copy the whole link from the host's page, and put it in quotes")]
    Secret(baton_protocol::room::RoomError),
}

const NO_SCHEME: &str = "it does not begin with https:// or http://";

impl RoomLink {
    /// Takes a link apart.
    pub(super) fn parse(text: &str) -> Result<Self, LinkError> {
        let refused = |reason: &str| LinkError::NotALink { reason: reason.to_owned() };
        let url = Url::parse(text.trim()).map_err(|error| match error {
            url::ParseError::RelativeUrlWithoutBase => refused(NO_SCHEME),
            error => refused(&format!("the address in it cannot be read ({error})")),
        })?;
        let scheme = match url.scheme() {
            "https" => "wss",
            "http" => "ws",
            _ => return Err(refused(NO_SCHEME)),
        };
        let host = url.host().ok_or_else(|| refused("it names no server"))?;
        let loopback = match &host {
            Host::Domain(name) => *name == "localhost",
            Host::Ipv4(ip) => IpAddr::from(*ip).is_loopback(),
            Host::Ipv6(ip) => IpAddr::from(*ip).is_loopback(),
        };
        let code = url.fragment().and_then(|fragment| fragment.strip_prefix("/join/"));
        let code = code.ok_or_else(|| {
            refused("it has no #/join/ in it; a shell cuts a link off there unless it stands in quotes")
        })?;
        let secret = RoomSecret::from_code(code).map_err(LinkError::Secret)?;
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let socket = format!("{scheme}://{host}{port}/ws");
        let embedded = url.join("static/model/").map_err(|error| refused(&error.to_string()))?;
        Ok(Self { socket, embedded: embedded.into(), secret, loopback })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test a panic is the verdict")]

    use super::*;

    const CODE: &str = "c2l4dGVlbiBieXRlcyBvaw";

    #[test]
    fn a_link_says_where_the_room_is() {
        let link = RoomLink::parse(&format!(" https://192.168.1.5:8787/#/join/{CODE}\n")).unwrap();
        assert_eq!(link.socket, "wss://192.168.1.5:8787/ws");
        assert_eq!(link.embedded, "https://192.168.1.5:8787/static/model/");
        assert_eq!((link.secret.to_code().as_str(), link.loopback), (CODE, false));
        let local =
            RoomLink::parse(&format!("http://[::1]:1/page/index.html?backend=cpu#/join/{CODE}")).unwrap();
        assert_eq!(local.socket, "ws://[::1]:1/ws");
        assert_eq!(local.embedded, "http://[::1]:1/page/static/model/");
        assert!(local.loopback);
        assert!(RoomLink::parse(&format!("http://localhost/#/join/{CODE}")).unwrap().loopback);
    }

    #[test]
    fn what_is_no_link_is_refused_with_what_to_do() {
        for (text, said) in [
            ("", "not a join link"),
            ("hello", "this is not a join link: it does not begin with https:// or http://. Copy"),
            ("hello", "it looks like http://SERVER/#/join/CODE"),
            ("192.168.1.5:8787", "begin with https://"),
            ("localhost:8787/#/join/x", "begin with https://"),
            ("http://host:port/#/join/x", "the address in it cannot be read (invalid port number)"),
            ("ftp://host/#/join/x", "begin with https://"),
            ("https://host/", "quotes"),
            ("https://host/#/other", "quotes"),
            ("https://host/#/join/short", "22 letters"),
        ] {
            let error = RoomLink::parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text:?}: {error}");
        }
        // A link is shown nowhere with its secret.
        let link = RoomLink::parse(&format!("https://host/#/join/{CODE}")).unwrap();
        assert!(!format!("{link:?}").contains(CODE));
    }
}
