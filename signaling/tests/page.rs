//! The built page as a browser asks for it: byte ranges, precompressed files, caching, security headers.
#![allow(clippy::unwrap_used)]

mod common;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use baton_signaling::{Config, lan};
use common::{Server, request};
use sha2::{Digest, Sha256};
use std::{fs, net::Ipv4Addr};
use tempfile::TempDir;
use tokio::net::TcpStream;

const SCRIPT: &str = "import init from '/web-0123456789abcdef.js'; await init();";

fn model() -> Vec<u8> {
    (0..100_000_u32).map(|n| (n % 251) as u8).collect()
}

async fn server() -> (Server, TempDir) {
    let dist = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(dist.path().join(name), bytes).unwrap();
    write("index.html", format!("<!doctype html><script type=module>{SCRIPT}</script>").as_bytes());
    write("model.safetensors", &model());
    write("model.safetensors.gz", b"not the model");
    write("web-0123456789abcdef_bg.wasm", b"\0asm plain");
    write("web-0123456789abcdef_bg.wasm.gz", b"gzipped");
    write("web-0123456789abcdef_bg.wasm.br", b"brotli");
    let config = Config { dist: dist.path().to_owned(), ..Config::default() };
    (Server::start(config).await, dist)
}

#[tokio::test]
async fn a_byte_range_is_of_the_file_itself_even_beside_a_compressed_one() {
    let (server, _dist) = server().await;
    let range = async |range, more: &[(&str, &str)]| {
        let headers = [&[("range", range), ("accept-encoding", "gzip, br")], more].concat();
        server.get("/model.safetensors", &headers).await
    };
    let middle = range("bytes=1000-4999", &[]).await;
    assert_eq!((middle.status, middle.header("content-range")), (206, "bytes 1000-4999/100000"));
    assert_eq!((middle.header("content-encoding"), middle.header("content-length")), ("", "4000"));
    assert_eq!(middle.body, model()[1000..5000]);
    assert_eq!(middle.header("content-type"), "application/octet-stream");
    let tail = range("bytes=-8", &[]).await;
    assert_eq!((tail.status, tail.body), (206, model()[99_992..].to_vec()));
    let beyond = range("bytes=100000-", &[]).await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, "bytes */100000"));
    assert_eq!(range("bytes=9-3", &[]).await.status, 416);
    // A validator of another file: the whole of this one, not a part of it.
    let whole = range("bytes=0-9", &[("if-range", "\"other\"")]).await;
    assert_eq!(whole.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_precompressed_file_is_sent_to_who_takes_it() {
    let (server, _dist) = server().await;
    for (accepted, encoding, body) in [
        ("gzip, deflate, br, zstd", "br", "brotli"),
        ("gzip", "gzip", "gzipped"),
        ("identity", "", "\0asm plain"),
    ] {
        let response = server.get("/web-0123456789abcdef_bg.wasm", &[("accept-encoding", accepted)]).await;
        assert_eq!(response.status, 200);
        assert_eq!((response.header("content-encoding"), &*response.text()), (encoding, body));
        // Without this type a browser compiles no stream.
        assert_eq!(response.header("content-type"), "application/wasm");
        assert_eq!(response.header("vary"), "accept-encoding");
        assert_eq!(response.header("cache-control"), "public, max-age=31536000, immutable");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_page_is_asked_for_anew_and_sent_only_if_it_changed() {
    let (server, _dist) = server().await;
    let first = server.get("/", &[]).await;
    assert_eq!((first.status, first.header("cache-control")), (200, "no-cache"));
    let again = server.get("/", &[("if-modified-since", first.header("last-modified"))]).await;
    assert_eq!((again.status, again.body.len()), (304, 0));
    assert_eq!(again.header("content-security-policy"), first.header("content-security-policy"));
    server.stop().await;
}

#[tokio::test]
async fn the_policy_lets_run_what_the_page_was_built_with_and_nothing_else() {
    let (server, dist) = server().await;
    let policy = |response: &common::Response| response.header("content-security-policy").to_owned();
    let allowed = |script: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(script)));
    let page = server.get("/", &[]).await;
    let scripts = policy(&page);
    let scripts = scripts.split("; ").find(|part| part.starts_with("script-src")).unwrap();
    assert_eq!(scripts, format!("script-src 'self' 'wasm-unsafe-eval' {}", allowed(SCRIPT)));
    // Sockets, and models from wherever their folder is.
    let connections = policy(&page);
    assert!(connections.contains("; connect-src 'self' ws: wss: http: https: blob:;"), "{connections}");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(page.header("referrer-policy"), "no-referrer");
    assert_eq!(page.header("cross-origin-opener-policy"), "same-origin");
    assert_eq!(page.header("cross-origin-embedder-policy"), "credentialless");
    // A worker runs under the policy that its own script came with.
    let worker = server.get("/web-0123456789abcdef_bg.wasm", &[]).await;
    assert!(policy(&worker).contains("'wasm-unsafe-eval'"));
    assert_eq!(worker.header("cross-origin-embedder-policy"), "credentialless");
    // A rebuilt page needs no restart.
    fs::write(dist.path().join("index.html"), "<script>\r\nother()</script>").unwrap();
    assert!(policy(&server.get("/index.html", &[]).await).contains(&allowed("\nother()")));
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_nothing_outside_is_there() {
    let (server, dist) = server().await;
    fs::write(dist.path().parent().unwrap().join("baton-outside.txt"), "outside").unwrap();
    for path in [
        "/nothing",
        "/model.safetensors/x",
        "/../baton-outside.txt",
        "/%2e%2e/baton-outside.txt",
        "/..%2fbaton-outside.txt",
        "//etc/passwd",
        "/a%00b",
    ] {
        let response = server.get(path, &[]).await;
        assert_eq!((response.status, response.header("cache-control")), (404, "no-store"), "{path}");
    }
    fs::remove_file(dist.path().parent().unwrap().join("baton-outside.txt")).unwrap();
    let stream = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(request(stream, "POST", "/", &[]).await.status, 405);
    server.stop().await;
}

#[tokio::test]
async fn a_page_at_localhost_learns_where_phones_find_it_and_nobody_else_does() {
    let bases = |response: &common::Response| {
        assert_eq!((response.status, response.header("content-type")), (200, "application/json"));
        assert_eq!(response.header("cache-control"), "no-store");
        serde_json::from_slice::<Vec<String>>(&response.body).unwrap()
    };
    let server = Server::start_at(Ipv4Addr::UNSPECIFIED, Config::default()).await;
    let port = server.address.port();
    let addresses = lan::addresses();
    let expected: Vec<_> = addresses.iter().map(|ip| format!("http://{ip}:{port}/")).collect();
    assert_eq!(bases(&server.get("/lan", &[]).await), expected);
    for ip in addresses {
        let stream = TcpStream::connect((ip, port)).await.unwrap();
        assert!(bases(&request(stream, "GET", "/lan", &[]).await).is_empty(), "{ip}");
    }
    server.stop().await;
    // Where nobody else reaches it.
    let server = Server::start(Config::default()).await;
    assert!(bases(&server.get("/lan", &[]).await).is_empty());
    server.stop().await;
}

#[tokio::test]
async fn a_page_that_is_not_built_yet_says_so_until_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let dist = dir.path().join("dist");
    let server = Server::start(Config { dist: dist.clone(), ..Config::default() }).await;
    let page = server.get("/", &[]).await;
    assert_eq!((page.status, page.header("cache-control")), (503, "no-store"));
    assert!(page.text().contains("cargo xtask serve") && page.text().contains(dist.to_str().unwrap()));
    fs::create_dir(&dist).unwrap();
    fs::write(dist.join("index.html"), "built").unwrap();
    assert_eq!(server.get("/", &[]).await.text(), "built");
    server.stop().await;
}
