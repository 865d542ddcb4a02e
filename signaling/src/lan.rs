//! Where phones in the room find this machine: its addresses, for its own page too, and a QR code of a link.

use axum::{
    Json,
    extract::{ConnectInfo, State},
    http::header,
    response::IntoResponse,
};
use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

/// The addresses under which others may reach this machine, that of the default route first.
pub fn addresses() -> Vec<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let found = interfaces.into_iter().map(|interface| interface.ip());
    sorted(found, default_route())
}

/// The links to a server that listens on `bound`, for others: every address if it listens on all.
pub fn links(scheme: &str, bound: SocketAddr) -> Vec<String> {
    let hosts = match bound.ip() {
        ip if ip.is_unspecified() => addresses(),
        ip if ip.is_loopback() => Vec::new(),
        ip => vec![ip],
    };
    hosts.into_iter().map(|ip| format!("{scheme}://{}", SocketAddr::new(ip, bound.port()))).collect()
}

/// Where a server listens, and how it speaks there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) scheme: &'static str,
    /// None if the kernel does not say.
    pub(crate) address: Option<SocketAddr>,
}

/// `GET /lan`: the base URLs of [`links`], found anew, as the machine may have changed networks. They are for a page
/// that was opened at localhost, whose address phones cannot open; who comes from elsewhere gets none.
pub(crate) async fn lan(
    State(bound): State<Bound>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
) -> impl IntoResponse {
    let address = bound.address.filter(|_| client.ip().to_canonical().is_loopback());
    let links = address.map(|address| links(bound.scheme, address)).unwrap_or_default();
    let bases: Vec<_> = links.into_iter().map(|link| format!("{link}/")).collect();
    ([(header::CACHE_CONTROL, "no-store")], Json(bases))
}

/// A QR code of `text` in half blocks, dark modules as ink; none if the text is too long for one. On a screen it
/// needs black on white: some phones do not read it the other way round.
pub fn qr(text: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    Some(code.render::<Dense1x2>().quiet_zone(true).build())
}

/// The address that the kernel would send from. Connecting a UDP socket sends nothing.
fn default_route() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // TEST-NET-1 (RFC 5737): nobody's address.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Without loopback, link-local and IPv6 (whose addresses here are temporary and make long links).
fn sorted(found: impl IntoIterator<Item = IpAddr>, default: Option<IpAddr>) -> Vec<IpAddr> {
    let is_useful = |ip: &IpAddr| matches!(ip, IpAddr::V4(v4) if !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified());
    let mut useful: Vec<_> = found.into_iter().filter(is_useful).collect();
    useful.sort_unstable_by_key(|ip| (Some(*ip) != default, *ip));
    useful.dedup();
    useful
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_comes_first_and_loopback_never() {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let found =
            ips(&["127.0.0.1", "172.17.0.1", "192.168.1.5", "169.254.1.1", "::1", "10.0.0.2", "10.0.0.2"]);
        assert_eq!(
            sorted(found, Some("192.168.1.5".parse().unwrap())),
            ips(&["192.168.1.5", "10.0.0.2", "172.17.0.1"])
        );
    }

    #[test]
    fn a_server_on_loopback_has_no_link_for_others() {
        assert!(links("http", "127.0.0.1:80".parse().unwrap()).is_empty());
        assert_eq!(links("https", "10.1.2.3:8787".parse().unwrap()), ["https://10.1.2.3:8787"]);
    }

    #[test]
    fn a_link_has_a_qr_code() {
        let qr = qr("http://192.168.100.100:8787").unwrap();
        let widths: Vec<_> = qr.lines().map(|line| line.chars().count()).collect();
        // Version 2 (25 modules) and a quiet zone of 4 on each side, two rows a line.
        assert_eq!((widths.len(), widths[0]), (17, 33));
    }
}
