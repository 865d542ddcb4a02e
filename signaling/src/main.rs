//! `baton-signaling`: the server with its flags, and the links to it on the screen.

use baton_protocol::signal::IceServer;
use baton_signaling::{
    Config, Limits, Timeouts,
    config::parse_ice_server,
    lan, serve,
    tls::{Identity, TlsError},
};
use clap::{Parser, value_parser};
use std::{
    io::{self, IsTerminal as _},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};
use tokio::net::TcpListener;

/// The signaling server of Baton: rooms, relayed sealed envelopes, and the built page.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    /// Address and port to listen on; port 0 takes any that is free
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8787)))]
    listen: SocketAddr,
    /// Folder of the built page
    #[arg(long, value_name = "DIR", default_value = "dist")]
    dist: PathBuf,
    /// STUN or TURN server: stun:HOST[:PORT], or turn:HOST[:PORT],USER,CREDENTIAL; may be given several times
    #[arg(long = "ice-server", value_name = "SERVER", value_parser = parse_ice_server)]
    ice_servers: Vec<IceServer>,
    /// Print no QR code
    #[arg(long)]
    no_qr: bool,

    /// Speak HTTPS with a certificate of our own for the addresses of this machine
    #[arg(long, help_heading = "HTTPS")]
    tls: bool,
    /// Where that certificate is kept
    #[arg(long, value_name = "DIR", default_value = ".baton", help_heading = "HTTPS")]
    tls_dir: PathBuf,
    /// Speak HTTPS with this certificate chain (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key", conflicts_with = "tls", help_heading = "HTTPS")]
    tls_cert: Option<PathBuf>,
    /// The key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "HTTPS")]
    tls_key: Option<PathBuf>,

    #[command(flatten, next_help_heading = "Limits")]
    limits: LimitFlags,
    #[command(flatten, next_help_heading = "Time-outs")]
    timeouts: TimeoutFlags,
}

#[derive(Debug, clap::Args)]
struct LimitFlags {
    /// Rooms
    #[arg(long, value_name = "N", default_value_t = Limits::default().rooms)]
    max_rooms: usize,
    /// Members of a room, the host among them
    #[arg(long, value_name = "N", default_value_t = Limits::default().members)]
    max_members: usize,
    /// Sockets
    #[arg(long, value_name = "N", default_value_t = Limits::default().sockets)]
    max_sockets: usize,
    /// Sockets from one IPv4 address or IPv6 /64; behind a proxy, all come from one
    #[arg(long, value_name = "N", default_value_t = Limits::default().sockets_per_network)]
    max_sockets_per_network: usize,
    /// Bytes of a message
    #[arg(long, value_name = "N", default_value_t = Limits::default().message_bytes)]
    max_message_bytes: usize,
    /// Messages a second that a client may send without end
    #[arg(long, value_name = "N", default_value_t = Limits::default().messages_per_second, value_parser = value_parser!(u32).range(1..))]
    messages_per_second: u32,
    /// Messages that a client may send at once
    #[arg(long, value_name = "N", default_value_t = Limits::default().message_burst, value_parser = value_parser!(u32).range(1..))]
    message_burst: u32,
    /// Bytes that may wait for a client to read them
    #[arg(long, value_name = "N", default_value_t = Limits::default().queue_bytes)]
    max_queue_bytes: usize,
}

#[derive(Debug, clap::Args)]
struct TimeoutFlags {
    /// For a request's head, the first of a connection or the next
    #[arg(long, value_name = "SECONDS", default_value_t = Timeouts::default().head.as_secs())]
    head_timeout: u64,
    /// For a new socket's first message
    #[arg(long, value_name = "SECONDS", default_value_t = Timeouts::default().join.as_secs())]
    join_timeout: u64,
    /// For any sign of life from a client
    #[arg(long, value_name = "SECONDS", default_value_t = Timeouts::default().silence.as_secs())]
    silence_timeout: u64,
    /// For a host whose connection dropped to come back
    #[arg(long, value_name = "SECONDS", default_value_t = Timeouts::default().grace.as_secs())]
    host_grace: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    match run(Flags::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("baton-signaling: {text}");
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> Result<(), String> {
    let listener =
        TcpListener::bind(flags.listen).await.map_err(|error| cannot_listen(flags.listen, &error))?;
    let bound = listener.local_addr().map_err(|error| error.to_string())?;
    let config = flags.config().map_err(|error| error.to_string())?;
    announce(bound, &config, !flags.no_qr);
    serve(listener, config, signal()).await.map_err(|error| error.to_string())
}

impl Flags {
    fn config(&self) -> Result<Config, TlsError> {
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(Identity { cert: cert.clone(), key: key.clone() }),
            _ if self.tls => {
                let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
                names.extend(lan::addresses().iter().map(ToString::to_string));
                Some(Identity::load_or_make(&self.tls_dir, &names, SystemTime::now().into())?)
            }
            _ => None,
        };
        let Self { limits, timeouts, .. } = self;
        Ok(Config {
            dist: self.dist.clone(),
            ice_servers: self.ice_servers.clone(),
            limits: Limits {
                rooms: limits.max_rooms,
                members: limits.max_members,
                sockets: limits.max_sockets,
                sockets_per_network: limits.max_sockets_per_network,
                message_bytes: limits.max_message_bytes,
                messages_per_second: limits.messages_per_second,
                message_burst: limits.message_burst,
                queue_bytes: limits.max_queue_bytes,
            },
            timeouts: Timeouts {
                head: Duration::from_secs(timeouts.head_timeout),
                join: Duration::from_secs(timeouts.join_timeout),
                silence: Duration::from_secs(timeouts.silence_timeout),
                grace: Duration::from_secs(timeouts.host_grace),
            },
            tls,
        })
    }
}

/// Prints where the server is: for programs (the first line), for the person at this machine, for the phones.
fn announce(bound: SocketAddr, config: &Config, with_qr: bool) {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let port = bound.port();
    let reachable = if bound.ip().is_unspecified() { (Ipv4Addr::LOCALHOST, port).into() } else { bound };
    println!("listening on {scheme}://{reachable}\n");
    if bound.ip().is_unspecified() || bound.ip().is_loopback() {
        println!("  on this machine   {scheme}://localhost:{port}");
    }
    let links = lan::links(scheme, bound);
    for link in &links {
        println!("  on the network    {link}");
    }
    let Some(link) = links.first() else { return };
    if config.tls.is_none() {
        println!("\n  Phones have WebGPU and storage over HTTPS only: start with --tls for those.");
    }
    let Some(qr) = lan::qr(link).filter(|_| with_qr) else { return };
    let (black_on_white, plain) =
        if io::stdout().is_terminal() { ("\x1b[30;107m", "\x1b[0m") } else { ("", "") };
    println!();
    for line in qr.lines() {
        println!("  {black_on_white}{line}{plain}");
    }
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {} is taken by another program: stop it, or choose another port with --listen {}:{}",
            address.port(),
            address.ip(),
            address.port().wrapping_add(1)
        ),
        _ => format!("cannot listen on {address}: {error}"),
    }
}

/// Resolves at SIGINT or SIGTERM; a second one ends the process at once.
async fn signal() {
    one_signal().await;
    tracing::info!("shutting down; once more to stop at once");
    tokio::spawn(async {
        one_signal().await;
        std::process::exit(130);
    });
}

async fn one_signal() {
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminated = async {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<Option<()>>();
    tokio::select! {
        () = interrupted => {}
        _ = terminated => {}
    }
}
